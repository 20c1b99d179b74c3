//! What holds for every result backend.

use std::time::Duration;

use jiff::Timestamp;
use rtask_protocol::{Exception, Record, State};
use serde_json::value::to_raw_value;

use crate::servers::{BackendLab, soon, unique, until};

macro_rules! facts {
    ($($fact:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $fact() {
                super::$fact(crate::servers::BackendLab::sqlite().await).await
            })*
        }
        mod redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $fact() {
                super::$fact(crate::servers::BackendLab::redis().await).await
            })*
        }
    };
}

facts![
    an_unknown_task_has_no_record,
    a_stored_record_reads_back_from_another_connection,
    a_success_is_never_overwritten,
    a_failure_gives_way_to_a_success,
    wait_answers_what_is_there_already,
    wait_wakes_when_another_connection_stores,
    everybody_who_waits_is_told,
    a_wait_that_is_given_up_leaves_nothing_behind,
    a_record_expires,
    nobody_has_to_be_told_where_to_reply,
];

pub fn success(task_id: &str, value: i64) -> Record {
    Record::success(task_id, to_raw_value(&value).unwrap(), Timestamp::now())
}

fn failure(task_id: &str) -> Record {
    let exception = Exception::builtin("ValueError", "no");
    Record::failure(task_id, &exception, Some("Traceback".to_owned()), Timestamp::now())
}

async fn an_unknown_task_has_no_record(lab: BackendLab) {
    assert!(lab.backend.get(&unique("task")).await.unwrap().is_none());
}

async fn a_stored_record_reads_back_from_another_connection(lab: BackendLab) {
    let id = unique("task");
    let progress = to_raw_value(&serde_json::json!({"done": 1})).unwrap();
    for record in [
        Record::started(&id, 7, "w1@host"),
        Record::custom(&id, "PROGRESS".to_owned(), progress),
        failure(&id),
        success(&id, 4),
    ] {
        lab.backend.store(&record, None).await.unwrap();
        let stored = lab.other.get(&id).await.unwrap().unwrap();
        assert_eq!(stored.encode(), record.encode());
    }
}

async fn a_success_is_never_overwritten(lab: BackendLab) {
    let id = unique("task");
    lab.backend.store(&success(&id, 4), None).await.unwrap();
    for later in [failure(&id), Record::started(&id, 7, "w2@host"), success(&id, 5)] {
        lab.other.store(&later, None).await.unwrap();
    }
    let stored = lab.backend.get(&id).await.unwrap().unwrap();
    assert_eq!((stored.status, stored.result.get()), (State::Success, "4"));
}

async fn a_failure_gives_way_to_a_success(lab: BackendLab) {
    let id = unique("task");
    lab.backend.store(&failure(&id), None).await.unwrap();
    lab.other.store(&success(&id, 4), None).await.unwrap();
    assert_eq!(lab.backend.get(&id).await.unwrap().unwrap().status, State::Success);
}

async fn wait_answers_what_is_there_already(lab: BackendLab) {
    let id = unique("task");
    lab.backend.store(&failure(&id), None).await.unwrap();
    assert_eq!(soon(lab.other.wait(&id)).await.unwrap().status, State::Failure);
}

async fn wait_wakes_when_another_connection_stores(lab: BackendLab) {
    let id = unique("task");
    let waiting = lab.other.wait(&id);
    let storing = async {
        lab.backend.store(&Record::started(&id, 7, "w1@host"), None).await.unwrap();
        lab.backend.store(&success(&id, 4), None).await.unwrap();
    };
    let (record, ()) = soon(futures::future::join(waiting, storing)).await;
    assert_eq!(record.unwrap().result.get(), "4");
}

async fn everybody_who_waits_is_told(lab: BackendLab) {
    let ids = [unique("task"), unique("task")];
    let waiting: Vec<_> = [&ids[0], &ids[1], &ids[0]]
        .into_iter()
        .map(|id| {
            let (backend, id) = (lab.other.clone(), id.clone());
            tokio::spawn(async move { backend.wait(&id).await.unwrap().task_id })
        })
        .collect();
    for id in &ids {
        lab.backend.store(&success(id, 4), None).await.unwrap();
    }
    for (waiting, expected) in waiting.into_iter().zip([&ids[0], &ids[1], &ids[0]]) {
        assert_eq!(&soon(waiting).await.unwrap(), expected);
    }
}

async fn a_wait_that_is_given_up_leaves_nothing_behind(lab: BackendLab) {
    let id = unique("task");
    let given_up = tokio::time::timeout(Duration::from_millis(50), lab.other.wait(&id)).await;
    assert!(given_up.is_err());
    lab.backend.store(&success(&id, 4), None).await.unwrap();
    assert_eq!(soon(lab.other.wait(&id)).await.unwrap().result.get(), "4");
}

async fn a_record_expires(lab: BackendLab) {
    let id = unique("task");
    let forgetful = lab.keeping(Some(Duration::from_secs(1))).await;
    forgetful.store(&success(&id, 4), None).await.unwrap();
    until(async || lab.other.get(&id).await.unwrap().is_none()).await;
    // It is as if it had never been.
    lab.backend.store(&failure(&id), None).await.unwrap();
    assert_eq!(lab.other.get(&id).await.unwrap().unwrap().status, State::Failure);
}

async fn nobody_has_to_be_told_where_to_reply(lab: BackendLab) {
    assert_eq!(lab.backend.reply_to().await.unwrap(), None);
    let id = unique("task");
    lab.backend.store(&success(&id, 4), Some("somewhere")).await.unwrap();
    assert_eq!(lab.other.get(&id).await.unwrap().unwrap().result.get(), "4");
}
