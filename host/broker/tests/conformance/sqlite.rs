//! What is particular to the file.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::FutureExt;
use rtask_broker::{
    Attempts, Broker, BrokerError, Patience, Refusal, ResultBackend, Retention, connect_broker,
    sqlite::{SqliteBackend, SqliteBroker},
};
use tempfile::TempDir;

use crate::{
    backends::success,
    brokers::{body, next, subscription},
    servers::{publication, soon, until},
};

/// Long enough not to run out by itself.
pub const LONG_LEASE: Duration = Duration::from_secs(60);
/// Runs out while a test looks on.
pub const SHORT_LEASE: Duration = Duration::from_millis(300);

pub fn file() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rtask.db");
    (folder, path)
}

/// As another process would open it.
pub async fn apart(path: &Path, lease: Duration) -> SqliteBroker {
    SqliteBroker::open_apart(path.to_owned(), lease).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_is_woken_by_a_message_and_by_a_result() {
    let (_folder, path) = file();
    let (here, there) = (apart(&path, LONG_LEASE).await, apart(&path, LONG_LEASE).await);
    let mut consumer = here.consume(subscription(&["q"], 1)).await.unwrap();
    for round in 0..20 {
        there.publish(publication("q", &round.to_string())).await.unwrap();
        let delivery = next(&mut consumer).await;
        assert_eq!(body(&delivery), round.to_string());
        delivery.ack().await.unwrap();
    }
    let retention = Retention::default();
    let here = SqliteBackend::open_apart(path.clone(), retention).await.unwrap();
    let there = SqliteBackend::open_apart(path, retention).await.unwrap();
    for round in 0..20 {
        let id = round.to_string();
        let record = success(&id, round);
        let (waited, stored) = soon(futures::future::join(here.wait(&id), there.store(&record, None))).await;
        stored.unwrap();
        assert_eq!(waited.unwrap().result.get(), id);
    }
}

#[test]
fn what_a_dead_process_had_claimed_is_delivered_again() {
    let (_folder, path) = file();
    let dying = tokio::runtime::Runtime::new().unwrap();
    dying.block_on(async {
        let broker = apart(&path, SHORT_LEASE).await;
        broker.publish(publication("q", "held")).await.unwrap();
        let mut consumer = broker.consume(subscription(&["q"], 1)).await.unwrap();
        // A killed process cleans nothing up.
        std::mem::forget(next(&mut consumer).await);
        std::mem::forget((consumer, broker));
    });
    dying.shutdown_background();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let broker = apart(&path, SHORT_LEASE).await;
        let mut consumer = broker.consume(subscription(&["q"], 1)).await.unwrap();
        let delivery = next(&mut consumer).await;
        assert_eq!((body(&delivery), delivery.attempts), ("held", Attempts::Number(2)));
        delivery.ack().await.unwrap();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_renewed_for_as_long_as_a_delivery_is_held() {
    let (_folder, path) = file();
    let (here, there) = (apart(&path, SHORT_LEASE).await, apart(&path, SHORT_LEASE).await);
    here.publish(publication("q", "held")).await.unwrap();
    let held = here.take("q").await.unwrap().unwrap();
    drop(here);
    // `there` returns what it takes for abandoned, several times in a lease.
    assert!(there.take("q").await.unwrap().is_none());
    let looking = rusqlite::Connection::open(&path).unwrap();
    let leases = |which: &str| -> i64 {
        looking.query_row(&format!("SELECT {which}(expires_at) FROM leases"), [], |row| row.get(0)).unwrap()
    };
    let begun = leases("max");
    let several = i64::try_from(4 * SHORT_LEASE.as_millis()).unwrap();
    until(async || leases("min") > begun + several).await;
    assert_eq!(there.waiting("q").await.unwrap(), 0);
    held.ack().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_is_given_back_when_its_caller_has_gone() {
    let (_folder, path) = file();
    let broker = apart(&path, LONG_LEASE).await;
    broker.publish(publication("q", "given back")).await.unwrap();
    // The lease is there, so the next future's first step asks for the message.
    assert!(broker.take("empty").await.unwrap().is_none());
    assert!(broker.take("q").now_or_never().is_none());
    until(async || broker.waiting("q").await.unwrap() == 1).await;
    let delivery = broker.take("q").await.unwrap().unwrap();
    assert_eq!(body(&delivery), "given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_dropped_gives_back_what_it_held() {
    let (_folder, path) = file();
    let (here, there) = (apart(&path, LONG_LEASE).await, apart(&path, LONG_LEASE).await);
    here.publish(publication("q", "")).await.unwrap();
    let mut consumer = here.consume(subscription(&["q"], 1)).await.unwrap();
    until(async || there.waiting("q").await.unwrap() == 0).await;
    drop(next(&mut consumer).await);
    drop((consumer, here));
    until(async || there.waiting("q").await.unwrap() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_file_and_its_folder_are_for_their_owner_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/deep/rtask.db");
    let broker = connect_broker(&format!("sqlite:{}", path.display()), Patience::FailFast).await.unwrap();
    broker.publish(publication("q", "")).await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    let files: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_others_may_write_is_refused() {
    let (_folder, path) = file();
    let url = format!("sqlite:{}", path.display());
    connect_broker(&url, Patience::FailFast).await.unwrap().close().await;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let refused = connect_broker(&url, Patience::FailFast).await.err().expect("others could send tasks by it");
    assert!(matches!(refused, BrokerError::Refused { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_not_ours_is_refused() {
    let (folder, path) = file();
    let open = async |path: &Path| {
        let url = format!("sqlite:{}", path.display());
        soon(connect_broker(&url, Patience::Forever)).await.err().unwrap()
    };
    let text = folder.path().join("text");
    fs::write(&text, "not a database, and long enough to be looked at as one: ".repeat(20)).unwrap();
    assert!(matches!(open(&text).await, BrokerError::Damaged { .. }));
    let another = folder.path().join("another.db");
    rusqlite::Connection::open(&another).unwrap().execute("CREATE TABLE messages (text)", []).unwrap();
    assert!(matches!(open(&another).await, BrokerError::Damaged { .. }));
    drop(SqliteBroker::open_apart(path.clone(), LONG_LEASE).await.unwrap());
    let newer = rusqlite::Connection::open(&path).unwrap();
    newer.execute("UPDATE rooms SET version = version + 1", []).unwrap();
    let error = open(&path).await;
    assert!(matches!(&error, BrokerError::Damaged { .. }) && error.to_string().contains("version 3"), "{error}");
    let error = open(Path::new("/proc/rtask/rtask.db")).await;
    assert!(matches!(error, BrokerError::Refused { refusal: Refusal::Permission, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_and_results_outlive_the_process() {
    let (_folder, path) = file();
    let broker = apart(&path, LONG_LEASE).await;
    broker.publish(publication("q", "kept")).await.unwrap();
    let backend = SqliteBackend::open_apart(path.clone(), Retention::default()).await.unwrap();
    backend.store(&success("t", 4), None).await.unwrap();
    drop((broker, backend));
    let broker = apart(&path, LONG_LEASE).await;
    assert_eq!(body(&broker.take("q").await.unwrap().unwrap()), "kept");
    let backend = SqliteBackend::open_apart(path, Retention::default()).await.unwrap();
    assert_eq!(backend.get("t").await.unwrap().unwrap().result.get(), "4");
}
