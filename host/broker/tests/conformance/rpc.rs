//! Results as messages, over every broker.

use std::sync::Arc;

use rtask_broker::{
    BrokerError, Patience, Publication, ResultBackend, Retention, SharedBackend, SharedBroker, Target,
    connect_backend_over, rpc::RpcBackend,
};
use rtask_protocol::{Message, Record, State};

use crate::{
    backends::success,
    servers::{BrokerLab, soon, unique, until},
};

macro_rules! facts {
    ($($fact:ident),* $(,)?) => {
        facts!(sqlite: $($fact),*);
        facts!(rabbitmq: $($fact),*);
        facts!(redis: $($fact),*);
    };
    ($server:ident: $($fact:ident),*) => {
        mod $server {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $fact() {
                super::$fact(crate::servers::BrokerLab::$server().await).await
            })*
        }
    };
}

facts![
    a_result_goes_to_whoever_sent_the_task,
    several_wait_at_once_and_each_hears_of_its_own,
    what_came_early_is_there_to_be_asked_for,
    a_task_without_an_address_is_not_answered,
    an_answer_to_somebody_who_is_gone_is_dropped,
    the_results_of_others_are_elsewhere,
    what_is_no_result_is_passed_over,
    a_wait_that_is_given_up_leaves_the_others,
    whoever_waits_is_told_that_nothing_will_come,
];

/// The worker's side of `lab`'s broker, and a client that has said where it waits.
async fn both(lab: &BrokerLab) -> (SharedBackend, SharedBackend, String) {
    let over = async |broker: &SharedBroker| {
        connect_backend_over(broker, "rpc://", Retention::default(), Patience::FailFast).await.unwrap()
    };
    let (worker, client) = (over(&lab.broker).await, over(&lab.other).await);
    let reply_to = soon(client.reply_to()).await.unwrap().expect("there is an address");
    (worker, client, reply_to)
}

async fn a_result_goes_to_whoever_sent_the_task(lab: BrokerLab) {
    let (worker, client, reply_to) = both(&lab).await;
    assert_eq!(client.reply_to().await.unwrap().as_ref(), Some(&reply_to));
    let id = unique("task");
    assert!(client.get(&id).await.unwrap().is_none());
    let waiting = tokio::spawn({
        let (client, id) = (client.clone(), id.clone());
        async move { client.wait(&id).await }
    });
    worker.store(&Record::started(&id, 7, "w1@host"), Some(&reply_to)).await.unwrap();
    until(async || client.get(&id).await.unwrap().is_some_and(|record| record.status == State::Started)).await;
    worker.store(&success(&id, 4), Some(&reply_to)).await.unwrap();
    let record = soon(waiting).await.unwrap().unwrap();
    assert_eq!((record.task_id.as_str(), record.result.get()), (id.as_str(), "4"));
    assert_eq!(client.get(&id).await.unwrap().unwrap().status, State::Success);
}

async fn several_wait_at_once_and_each_hears_of_its_own(lab: BrokerLab) {
    let (worker, client, reply_to) = both(&lab).await;
    let ids: Vec<_> = (0..20).map(|index| unique(&index.to_string())).collect();
    // Two for each.
    let waiting: Vec<_> = ids.iter().chain(&ids).map(|id| (client.clone(), id.clone())).collect();
    let waiting: Vec<_> =
        waiting.into_iter().map(|(client, id)| tokio::spawn(async move { client.wait(&id).await })).collect();
    for (index, id) in ids.iter().enumerate().rev() {
        worker.store(&success(id, index as i64), Some(&reply_to)).await.unwrap();
    }
    for (waiting, index) in waiting.into_iter().zip((0..20).chain(0..20)) {
        let record = soon(waiting).await.unwrap().unwrap();
        assert_eq!((record.task_id.as_str(), record.result.get()), (ids[index].as_str(), &*index.to_string()));
    }
}

async fn what_came_early_is_there_to_be_asked_for(lab: BrokerLab) {
    let (worker, client, reply_to) = both(&lab).await;
    let id = unique("task");
    worker.store(&success(&id, 4), Some(&reply_to)).await.unwrap();
    until(async || client.get(&id).await.unwrap().is_some()).await;
    assert_eq!(soon(client.wait(&id)).await.unwrap().result.get(), "4");
}

async fn a_task_without_an_address_is_not_answered(lab: BrokerLab) {
    let (worker, client, reply_to) = both(&lab).await;
    let (silent, last) = (unique("task"), unique("task"));
    for nowhere in [None, Some("")] {
        worker.store(&success(&silent, 4), nowhere).await.unwrap();
    }
    worker.store(&success(&last, 5), Some(&reply_to)).await.unwrap();
    soon(client.wait(&last)).await.unwrap();
    assert!(client.get(&silent).await.unwrap().is_none());
}

async fn an_answer_to_somebody_who_is_gone_is_dropped(lab: BrokerLab) {
    let (worker, client, reply_to) = both(&lab).await;
    drop(client);
    until(async || lab.broker.inspect(&reply_to).await.unwrap().is_none_or(|found| found.messages == 0)).await;
    let nobody = unique("nobody");
    for gone in [&reply_to, &nobody] {
        soon(worker.store(&success("t", 4), Some(gone))).await.unwrap();
    }
}

async fn the_results_of_others_are_elsewhere(lab: BrokerLab) {
    let backend = RpcBackend::over(lab.broker.clone());
    let error = backend.get("t").await.unwrap_err();
    assert!(matches!(error, BrokerError::Elsewhere { .. }) && error.is_permanent(), "{error}");
    assert!(error.to_string().contains("rpc://"), "{error}");
    assert!(matches!(soon(backend.wait("t")).await, Err(BrokerError::Elsewhere { .. })));
}

async fn what_is_no_result_is_passed_over(lab: BrokerLab) {
    let (worker, client, reply_to) = both(&lab).await;
    let target = Target::Reply { exchange: String::new(), routing_key: reply_to.clone() };
    for body in ["", "nonsense", "{}", r#"{"status": 1}"#, "\0\u{1}\u{2}"] {
        let message = Message { body: body.into(), ..Message::default() };
        lab.broker.publish(Publication { target: target.clone(), message }).await.unwrap();
    }
    let id = unique("task");
    worker.store(&success(&id, 4), Some(&reply_to)).await.unwrap();
    assert_eq!(soon(client.wait(&id)).await.unwrap().result.get(), "4");
}

async fn a_wait_that_is_given_up_leaves_the_others(lab: BrokerLab) {
    let (worker, client, reply_to) = both(&lab).await;
    let id = unique("task");
    let mut patient = std::pin::pin!(client.wait(&id));
    assert!(futures::poll!(&mut patient).is_pending());
    {
        let mut hasty = std::pin::pin!(client.wait(&id));
        assert!(futures::poll!(&mut hasty).is_pending());
    }
    worker.store(&success(&id, 4), Some(&reply_to)).await.unwrap();
    assert_eq!(soon(patient).await.unwrap().result.get(), "4");
}

async fn whoever_waits_is_told_that_nothing_will_come(lab: BrokerLab) {
    let (_, client, _) = both(&lab).await;
    let mut waiting = std::pin::pin!(client.wait("t"));
    assert!(futures::poll!(&mut waiting).is_pending());
    soon(lab.other.close()).await;
    assert!(matches!(soon(waiting).await, Err(BrokerError::Closed { .. })));
    assert!(matches!(soon(client.wait("another")).await, Err(BrokerError::Closed { .. })));
}

/// golden/03b_result_backend_rpc/01_rpc_success.json.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_what_celery_sends() {
    let lab = BrokerLab::sqlite().await;
    let record = success("11b951ed-5d49-4f52-906b-f8c8f9d06e6b", 4);
    let (name, mut consumer) = lab.other.reply_queue().await.unwrap();
    let backends = [RpcBackend::over(lab.broker.clone()), RpcBackend::over(lab.broker.clone()).persistent()];
    for (backend, delivery_mode) in backends.map(Arc::new).iter().zip([1, 2]) {
        backend.store(&record, Some(&name)).await.unwrap();
        let delivery = soon(consumer.next()).await.unwrap();
        let Message { headers, properties, body } = &delivery.message;
        assert!(headers.is_empty());
        assert_eq!(properties.content_type.as_deref(), Some("application/json"));
        assert_eq!(properties.content_encoding.as_deref(), Some("utf-8"));
        assert_eq!((properties.delivery_mode, properties.priority), (Some(delivery_mode), Some(0)));
        assert_eq!(properties.correlation_id.as_ref(), Some(&record.task_id));
        assert_eq!(body, record.encode().as_bytes());
    }
}
