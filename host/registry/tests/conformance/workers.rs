//! Who is alive.

use std::{collections::BTreeMap, time::Duration};

use rtask_registry::{DEFAULT_TENANT, Digest, RegistryError, WorkerStatus, module::Readiness};

use crate::lab::{Lab, unique, until};

fn worker(name: &str) -> WorkerStatus {
    WorkerStatus { name: unique(name), tenants: vec![DEFAULT_TENANT.to_owned()], modules: BTreeMap::new() }
}

/// How the other connection sees a worker; other tests' workers may be there too.
async fn seen(lab: &Lab, worker: &WorkerStatus) -> Option<WorkerStatus> {
    let workers = lab.other.workers().await.unwrap();
    assert!(workers.is_sorted_by(|one, other| one.name < other.name), "each once, by name");
    workers.into_iter().find(|seen| seen.name == worker.name)
}

pub async fn they_come_change_and_go(lab: &Lab) {
    let (mut one, two) = (worker("celery@one"), worker("celery@two"));
    assert_eq!(seen(lab, &one).await, None);
    lab.registry.announce(&one).await.unwrap();
    lab.registry.announce(&two).await.unwrap();
    assert_eq!(seen(lab, &one).await, Some(one.clone()));

    one.modules = BTreeMap::from([
        (Digest::of(b"1"), Readiness::Compiling),
        (Digest::of(b"2"), Readiness::Ready),
        (Digest::of(b"3"), Readiness::Failed("it \"spins\"\n".to_owned())),
    ]);
    lab.registry.announce(&one).await.unwrap();
    assert_eq!(seen(lab, &one).await, Some(one.clone()));

    lab.registry.retire(&one.name).await.unwrap();
    assert_eq!(seen(lab, &one).await, None);
    assert_eq!(seen(lab, &two).await, Some(two));
    lab.registry.retire(&one.name).await.unwrap();
}

pub async fn one_that_says_nothing_any_more_expires(lab: &Lab) {
    let (silent, living) = (worker("celery@silent"), worker("celery@living"));
    let minutes = lab.forgetting(Duration::from_secs(600)).await;
    minutes.announce(&living).await.unwrap();
    minutes.announce(&silent).await.unwrap();
    assert_eq!(seen(lab, &silent).await, Some(silent.clone()));
    // The last word counts, with its lifetime.
    lab.forgetting(Duration::from_millis(50)).await.announce(&silent).await.unwrap();
    until(async || seen(lab, &silent).await.is_none()).await;
    assert_eq!(seen(lab, &living).await, Some(living));

    minutes.announce(&silent).await.unwrap();
    assert_eq!(seen(lab, &silent).await, Some(silent), "it may come back");
}

pub async fn a_name_that_is_none_is_refused(lab: &Lab) {
    for name in [String::new(), "n".repeat(256)] {
        let nameless = WorkerStatus { name, ..worker("celery@x") };
        let refused = lab.registry.announce(&nameless).await.unwrap_err();
        assert!(matches!(refused, RegistryError::InvalidName { what: "worker", .. }), "{refused}");
    }
}
