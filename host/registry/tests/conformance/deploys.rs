//! Versions, and who owns which task.

use jiff::Timestamp;
use rtask_registry::{Deployment, Digest, Manifest, RegistryError};

use crate::lab::{Lab, manifest, row, soon, unique};

pub async fn a_tenant_without_modules_serves_nothing(lab: &Lab) {
    assert_eq!(lab.registry.modules(&lab.tenant).await.unwrap(), []);
    assert_eq!(lab.registry.current(&lab.tenant).await.unwrap(), []);
}

pub async fn versions_are_numbered_and_the_last_is_current(lab: &Lab) {
    for (component, number) in [("one", 1), ("two", 2), ("one", 3)] {
        let version = lab.deploy("hello", &["a"], component).await.unwrap();
        assert_eq!(version.number, number);
        assert_eq!(lab.served().await, [row("hello", number, &["a"])]);
    }
    assert_eq!(lab.deploy("other", &["b"], "one").await.unwrap().number, 1);
    assert_eq!(lab.served().await, [row("hello", 3, &["a"]), row("other", 1, &["b"])]);
    assert_eq!(lab.numbers("hello").await, [1, 2, 3]);
}

pub async fn a_version_is_remembered_as_it_was_deployed(lab: &Lab) {
    let text = r#"{"module":"m","sdk":"rust/0.1.0","tasks":[{"name":"añadir","doc":"\"Add\"\n","parameters":[
        {"name":"x","type":"f64"},{"name":"y","required":false,"default":{"k":[0.1,null]}},{"name":"r","kind":"variadic"}
        ],"options":{"acks_late":false,"time_limit":0.1,"memory":18446744073709551615}}]}"#;
    let deployment = Deployment { manifest: Manifest::parse(text).unwrap(), ..lab.deployment("hello", &["a"], "one") };
    let before = Timestamp::now();
    let version = lab.registry.deploy(deployment.clone()).await.unwrap();
    assert_eq!(
        (&version.tenant, &*version.module, &version.manifest, &*version.deployed_by),
        (&lab.tenant, "hello", &deployment.manifest, "ada")
    );
    assert_eq!((version.size, version.digest), (deployment.component.len() as u64, Digest::of(&deployment.component)));
    assert!(before <= version.deployed_at && version.deployed_at <= Timestamp::now());

    let current = lab.other.current(&lab.tenant).await.unwrap();
    assert_eq!(current, std::slice::from_ref(&version));
    let modules = lab.other.modules(&lab.tenant).await.unwrap();
    assert_eq!((modules.len(), &*modules[0].name, modules[0].current), (1, "hello", 1));
    assert_eq!(modules[0].versions, [version]);
}

pub async fn the_same_again_is_the_same_version(lab: &Lab) {
    let first = lab.deploy("hello", &["a"], "one").await.unwrap();
    let again = lab.other.deploy(lab.deployment("hello", &["a"], "one")).await.unwrap();
    assert_eq!(again, first);
    assert_eq!(lab.numbers("hello").await, [1]);

    let described_anew = lab.deploy("hello", &["a", "b"], "one").await.unwrap();
    assert_eq!((described_anew.number, described_anew.digest), (2, first.digest));
}

pub async fn a_taken_name_changes_nothing(lab: &Lab) {
    lab.deploy("hello", &["a", "b"], "one").await.unwrap();
    let before = lab.registry.modules(&lab.tenant).await.unwrap();
    for module in ["new", "new"] {
        let refused = lab.deploy(module, &["c", "b"], "two").await.unwrap_err();
        let RegistryError::NameTaken { task, module } = &refused else { panic!("{refused}") };
        assert_eq!((&**task, &**module), ("b", "hello"));
        assert!(refused.is_permanent());
    }
    assert_eq!(lab.other.modules(&lab.tenant).await.unwrap(), before);
    assert_eq!(lab.served().await, [row("hello", 1, &["a", "b"])]);
    let digest = Digest::of(&lab.component("two"));
    let component = lab.registry.component(&digest).await;
    assert!(matches!(component, Err(RegistryError::UnknownDigest(_))), "{component:?}");
    // Nor is the name that was free claimed.
    lab.deploy("third", &["c"], "three").await.unwrap();
}

pub async fn a_name_that_was_taken_over_is_served_by_its_new_owner_alone(lab: &Lab) {
    let first = lab.deploy("hello", &["a", "b"], "one").await.unwrap();
    lab.take_over("new", &["b", "c"], "two").await;
    assert_eq!(lab.served().await, [row("hello", 1, &["a"]), row("new", 1, &["b", "c"])]);
    // History is not rewritten.
    assert_eq!(lab.other.modules(&lab.tenant).await.unwrap()[0].versions, [first]);

    // The loser's own deploys are refused now, the same bytes too, until it takes its name back.
    for component in ["one", "three"] {
        let refused = lab.deploy("hello", &["a", "b"], component).await.unwrap_err();
        assert!(matches!(&refused, RegistryError::NameTaken { module, .. } if module == "new"), "{refused}");
    }
    assert_eq!(lab.take_over("hello", &["a", "b"], "one").await.number, 1);
    assert_eq!(lab.served().await, [row("hello", 1, &["a", "b"]), row("new", 1, &["c"])]);
}

pub async fn a_module_without_names_is_not_served(lab: &Lab) {
    lab.deploy("hello", &["a"], "one").await.unwrap();
    lab.take_over("new", &["a"], "two").await;
    assert_eq!(lab.served().await, [row("new", 1, &["a"])]);
    assert_eq!(lab.numbers("hello").await, [1]);
}

pub async fn a_name_that_was_given_up_can_be_had(lab: &Lab) {
    lab.deploy("hello", &["a", "b"], "one").await.unwrap();
    lab.deploy("hello", &["b"], "two").await.unwrap();
    lab.deploy("new", &["a"], "three").await.unwrap();
    assert_eq!(lab.served().await, [row("hello", 2, &["b"]), row("new", 1, &["a"])]);
}

pub async fn names_that_cannot_be_keys_are_refused(lab: &Lab) {
    for name in ["", "a:b", "../a", "a\0"] {
        let refused = lab.deploy(name, &["a"], "one").await.unwrap_err();
        assert!(matches!(refused, RegistryError::InvalidName { what: "module", .. }), "{refused}");
        let refused = lab.registry.current(name).await.unwrap_err();
        assert!(matches!(refused, RegistryError::InvalidName { what: "tenant", .. }), "{refused}");
        let refused = lab.registry.modules(name).await.unwrap_err();
        assert!(matches!(refused, RegistryError::InvalidName { what: "tenant", .. }), "{refused}");
    }
    assert_eq!(lab.registry.modules(&lab.tenant).await.unwrap(), []);
}

pub async fn deploys_at_the_same_time_get_numbers_of_their_own(lab: &Lab) {
    let deploys = (0..12).map(|index| {
        let registry = if index % 2 == 0 { &lab.registry } else { &lab.other };
        registry.deploy(lab.deployment("hello", &["a"], &index.to_string()))
    });
    let versions = soon(futures::future::try_join_all(deploys)).await.unwrap();
    let mut numbers: Vec<_> = versions.iter().map(|version| version.number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=12).collect::<Vec<_>>());
    assert_eq!(lab.numbers("hello").await, numbers);
    assert_eq!(lab.served().await, [row("hello", 12, &["a"])]);
    let last = versions.iter().find(|version| version.number == 12).unwrap();
    assert_eq!(&lab.registry.current(&lab.tenant).await.unwrap()[0], last);
}

pub async fn one_of_two_who_claim_a_name_at_the_same_time_gets_it(lab: &Lab) {
    let (one, other) = soon(async {
        tokio::join!(
            lab.registry.deploy(lab.deployment("one", &["a"], "one")),
            lab.other.deploy(lab.deployment("other", &["a"], "other")),
        )
    })
    .await;
    let (winner, loser) = match (one, other) {
        (Ok(winner), Err(loser)) | (Err(loser), Ok(winner)) => (winner, loser),
        both => panic!("{both:?}"),
    };
    assert!(matches!(&loser, RegistryError::NameTaken { module, .. } if *module == winner.module), "{loser}");
    assert_eq!(lab.served().await, [row(&winner.module, 1, &["a"])]);
}

pub async fn tenants_do_not_see_each_other(lab: &Lab) {
    let neighbour = unique("tenant");
    lab.deploy("hello", &["a"], "one").await.unwrap();
    let theirs = Deployment { tenant: neighbour.clone(), ..lab.deployment("hello", &["a", "b"], "two") };
    let theirs = lab.registry.deploy(theirs).await.unwrap();
    assert_eq!(theirs.number, 1);
    assert_eq!(lab.served().await, [row("hello", 1, &["a"])]);
    assert_eq!(lab.registry.current(&neighbour).await.unwrap(), [theirs]);
    assert_eq!(lab.registry.modules(&lab.tenant).await.unwrap()[0].versions[0].manifest, manifest(&["a"]));
}

pub async fn a_deploy_is_noticed_through_another_connection(lab: &Lab) {
    for component in ["one", "two"] {
        let mut changes = lab.other.changes();
        let before = *changes.borrow_and_update();
        lab.deploy("hello", &["a"], component).await.unwrap();
        soon(changes.changed()).await.unwrap();
        assert!(*changes.borrow() > before);
    }
}
