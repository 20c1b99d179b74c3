//! What is particular to Redis.

use std::time::Duration;

use redis::{AsyncTypedCommands, Client};
use rtask_broker::{
    BrokerError, Patience, Refusal, Retention, SharedBackend, Transport, connect_backend, connect_ledger,
};
use rtask_protocol::{Compression, Record};

use crate::{
    backends::success,
    proxy::Proxy,
    servers::{persistently, redis_url, soon, unique, until},
};

const AT_ONCE: Duration = Duration::from_secs(5);

async fn connect(url: &str, patience: Patience) -> Result<SharedBackend, BrokerError> {
    connect_backend(url, Retention::default(), patience).await
}

/// What another program sees.
async fn raw() -> redis::aio::MultiplexedConnection {
    Client::open(redis_url()).unwrap().get_multiplexed_async_connection().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_is_kept_and_announced_as_celery_does() {
    let (backend, id) = (connect(&redis_url(), Patience::FailFast).await.unwrap(), unique("task"));
    let key = format!("celery-task-meta-{id}");
    let mut listening = Client::open(redis_url()).unwrap().get_async_pubsub().await.unwrap();
    listening.subscribe(&key).await.unwrap();
    let record = success(&id, 4);
    backend.store(&record, None).await.unwrap();
    let mut raw = raw().await;
    assert_eq!(raw.get(&key).await.unwrap().unwrap(), record.encode());
    let lifetime = redis::cmd("TTL").arg(&key).query_async::<i64>(&mut raw).await.unwrap();
    assert!((86_000..=86_400).contains(&lifetime), "{lifetime}");
    let heard = soon(futures::StreamExt::next(&mut listening.on_message())).await.unwrap();
    assert_eq!(heard.get_payload::<String>().unwrap(), record.encode());
    // A result that is not stored is not announced.
    backend.store(&Record::started(&id, 7, "w1@host"), None).await.unwrap();
    raw.publish(&key, "last").await.unwrap();
    let heard = soon(futures::StreamExt::next(&mut listening.on_message())).await.unwrap();
    assert_eq!(heard.get_payload::<String>().unwrap(), "last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_expiry_results_stay() {
    let id = unique("task");
    let eternal = connect_backend(&redis_url(), Retention { expires: None }, Patience::FailFast).await.unwrap();
    eternal.store(&success(&id, 4), None).await.unwrap();
    let key = format!("celery-task-meta-{id}");
    assert_eq!(redis::cmd("TTL").arg(&key).query_async::<i64>(&mut raw().await).await.unwrap(), -1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_is_forgotten_after_a_day() {
    let (ledger, key) = (connect_ledger(&redis_url(), Patience::FailFast).await.unwrap(), unique("message"));
    ledger.count_attempt(&key).await.unwrap();
    let key = format!("rtask-attempts-{key}");
    let lifetime = redis::cmd("TTL").arg(&key).query_async::<i64>(&mut raw().await).await.unwrap();
    assert!((86_000..=86_400).contains(&lifetime), "{lifetime}");
}

/// As Celery compresses them: golden/03_result_backend_redis/53_result_no_expiry_gzip.json.
fn compressed(record: &Record) -> Vec<u8> {
    let compression = Compression::Zlib;
    let start = format!("\0celery-compressed\0{}\0", compression.content_type());
    [start.as_bytes(), &compression.compress(record.encode().as_bytes())].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compressed_result_is_read_and_only_a_success_stays() {
    let (backend, mut raw) = (connect(&redis_url(), Patience::FailFast).await.unwrap(), raw().await);
    let rows = [(success("t", 4), "4"), (Record::started("t", 7, "w1@host"), "5")];
    for (kept, expected) in rows {
        let id = unique("task");
        raw.set(format!("celery-task-meta-{id}"), compressed(&kept)).await.unwrap();
        assert_eq!(backend.get(&id).await.unwrap().unwrap().status, kept.status);
        backend.store(&success(&id, 5), None).await.unwrap();
        assert_eq!(backend.get(&id).await.unwrap().unwrap().result.get(), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_is_no_record_gives_way_to_one() {
    let (backend, mut raw) = (connect(&redis_url(), Patience::FailFast).await.unwrap(), raw().await);
    let deep = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
    for value in ["", "nonsense", "7", "null", "[]", r#"{"status": ["SUCCESS"]}"#, &deep, "\0celery-compressed\0"] {
        let id = unique("task");
        raw.set(format!("celery-task-meta-{id}"), value).await.unwrap();
        backend.store(&success(&id, 5), None).await.unwrap();
        assert_eq!(backend.get(&id).await.unwrap().unwrap().result.get(), "5", "{value:.40}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_has_forgotten_the_scripts_is_told_them_again() {
    let (backend, id) = (connect(&redis_url(), Patience::FailFast).await.unwrap(), unique("task"));
    for round in 4..6 {
        redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut raw().await).await.unwrap();
        backend.store(&success(&id, round), None).await.unwrap();
    }
    assert_eq!(backend.get(&id).await.unwrap().unwrap().result.get(), "4");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefix_sets_results_apart_as_celery_does() {
    let (app, id) = (unique("app"), unique("task"));
    let transport = Transport { key_prefix: app.clone(), ..Patience::FailFast.into() };
    let backend = connect_backend(&redis_url(), Retention::default(), transport).await.unwrap();
    let (waited, stored) = soon(futures::future::join(backend.wait(&id), backend.store(&success(&id, 4), None))).await;
    stored.unwrap();
    assert_eq!(waited.unwrap().result.get(), "4");
    assert!(raw().await.exists(format!("{app}_celery-task-meta-{id}")).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_is_no_record_is_reported() {
    let (backend, id) = (connect(&redis_url(), Patience::FailFast).await.unwrap(), unique("task"));
    for value in ["nonsense", "\0celery-compressed\0application/x-gzip\0"] {
        raw().await.set(format!("celery-task-meta-{id}"), value).await.unwrap();
        let error = backend.get(&id).await.unwrap_err();
        assert!(matches!(error, BrokerError::Damaged { .. }), "{error}");
        assert!(soon(backend.wait(&id)).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_survives_lost_connections() {
    let (proxy, url) = Proxy::to(&redis_url()).await;
    let backend = connect(&url, Patience::Forever).await.unwrap();
    let id = unique("task");
    let waiting = {
        let (backend, id) = (backend.clone(), id.clone());
        tokio::spawn(async move { backend.wait(&id).await })
    };
    let key = format!("celery-task-meta-{id}");
    let is_heard = async || {
        let counts: (String, u32) =
            redis::cmd("PUBSUB").arg("NUMSUB").arg(&key).query_async(&mut raw().await).await.unwrap();
        counts.1 == 1
    };
    until(is_heard).await;
    proxy.cut();
    until(async || proxy.connections() > 0).await;
    until(is_heard).await;
    // Stored while nobody can be told, it is found on coming back.
    proxy.go_down();
    until(async || proxy.connections() == 0).await;
    connect(&redis_url(), Patience::FailFast).await.unwrap().store(&success(&id, 4), None).await.unwrap();
    proxy.come_up();
    assert_eq!(soon(waiting).await.unwrap().unwrap().result.get(), "4");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_go_on_after_the_connection_is_cut() {
    let (proxy, url) = Proxy::to(&redis_url()).await;
    let backend = connect(&url, Patience::Forever).await.unwrap();
    for round in 0..3 {
        let id = unique("task");
        soon(backend.store(&success(&id, round), None)).await.unwrap();
        proxy.cut();
        let stored = persistently(async || backend.get(&id).await).await.unwrap();
        assert_eq!(stored.result.get(), round.to_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_ends_at_once_however_patient_one_is() {
    let (url, user) = (redis_url(), unique("user"));
    let mut raw = raw().await;
    let mut set_user = redis::cmd("ACL");
    set_user.arg("SETUSER").arg(&user).arg("on").arg(">secret").arg("~*").arg("+@connection").arg("+select");
    set_user.exec_async(&mut raw).await.unwrap();
    let host = crate::proxy::host_of(&url);
    let rows = [
        (format!("redis://{user}:wrong@{host}/0"), Refusal::Credentials),
        (format!("redis://nobody:wrong@{host}/0"), Refusal::Credentials),
        (format!("redis://{host}/99999"), Refusal::Database),
    ];
    for patience in [Patience::FailFast, Patience::Forever] {
        for (url, expected) in &rows {
            let refused = tokio::time::timeout(AT_ONCE, connect(url, patience)).await;
            let error = refused.expect("it takes too long").err().expect(url);
            assert!(error.is_permanent() && !error.to_string().contains("wrong"), "{error}");
            let BrokerError::Refused { refusal, .. } = error else { panic!("{error}") };
            assert_eq!(refusal, *expected, "{url}");
        }
        let allowed = connect(&format!("redis://{user}:secret@{host}/0"), patience).await.unwrap();
        let error = soon(allowed.get("t")).await.unwrap_err();
        assert!(matches!(error, BrokerError::Refused { refusal: Refusal::Permission, .. }), "{error}");
    }
    redis::cmd("ACL").arg("DELUSER").arg(&user).exec_async(&mut raw).await.unwrap();
}
