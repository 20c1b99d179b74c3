//! What holds for every ledger.

use std::time::{Duration, Instant};

use rtask_broker::{
    Ledger, Patience, Revocation, SharedLedger, Transport, connect_ledger,
    ledger::{Allowance, FURTHEST_TURN},
    redis::RedisLedger,
    sqlite::SqliteLedger,
};
use tempfile::TempDir;

use crate::servers::{redis_url, unique, until};

macro_rules! facts {
    ($($fact:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $fact() {
                super::$fact(super::Lab::sqlite()).await
            })*
        }
        mod redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $fact() {
                super::$fact(super::Lab::redis()).await
            })*
        }
    };
}

facts![
    attempts_are_counted_by_key,
    a_task_is_revoked_for_everybody,
    a_revocation_outlives_whoever_made_it,
    the_latest_revocations_come_first_and_no_more_than_asked_for,
    a_revocation_made_anew_is_the_latest,
    stamps_are_remembered_as_they_are,
    the_oldest_revocations_go_first,
    many_revocations_at_once_are_all_kept,
    two_handles_share_a_rate,
    rates_of_different_keys_are_apart,
    turns_that_nobody_took_are_not_saved_up,
    no_allowance_is_too_large,
];

/// An allowance that no test waits for.
const HOUR: Allowance = Allowance { every: Duration::from_secs(3600) };

/// Where ledgers meet. What is revoked there is this test's alone.
struct Lab {
    url: String,
    transport: Transport,
    _folder: Option<TempDir>,
}

impl Lab {
    fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("rtask.db").display());
        Self { url, transport: Patience::FailFast.into(), _folder: Some(folder) }
    }

    fn redis() -> Self {
        let transport = Transport { key_prefix: unique("ledger:"), ..Patience::FailFast.into() };
        Self { url: redis_url(), transport, _folder: None }
    }

    async fn ledger(&self) -> SharedLedger {
        connect_ledger(&self.url, self.transport.clone()).await.unwrap()
    }

    /// As another process's, and with another bound.
    async fn remembering(&self, limit: usize) -> Box<dyn Ledger> {
        match self.url.strip_prefix("sqlite:") {
            Some(path) => Box::new(SqliteLedger::open_apart(path.into(), limit).await.unwrap()),
            None => Box::new(RedisLedger::connect_with(&self.url, &self.transport, limit).await.unwrap()),
        }
    }
}

fn task(id: impl Into<String>) -> Revocation {
    Revocation::Task { id: id.into() }
}

fn stamp(header: &str, value: &str) -> Revocation {
    Revocation::Stamp { header: header.to_owned(), value: value.to_owned() }
}

async fn attempts_are_counted_by_key(lab: Lab) {
    let (here, there) = (lab.ledger().await, lab.remembering(10).await);
    let (key, other) = (unique("message"), unique("message"));
    assert_eq!(here.count_attempt(&key).await.unwrap(), 1);
    assert_eq!(there.count_attempt(&key).await.unwrap(), 2);
    assert_eq!(here.count_attempt(&key).await.unwrap(), 3);
    assert_eq!(here.count_attempt(&other).await.unwrap(), 1);
}

async fn a_task_is_revoked_for_everybody(lab: Lab) {
    let (here, there) = (lab.ledger().await, lab.remembering(10).await);
    here.revoke(&[task("a"), task("b")]).await.unwrap();
    for ledger in [&*here, &*there] {
        for (id, expected) in [("a", true), ("b", true), ("c", false), ("", false)] {
            assert_eq!(ledger.is_revoked(id).await.unwrap(), expected, "{id}");
        }
    }
    here.revoke(&[]).await.unwrap();
    assert!(here.is_revoked("a").await.unwrap());
}

async fn a_revocation_outlives_whoever_made_it(lab: Lab) {
    let dying = lab.remembering(10).await;
    dying.revoke(&[task("a"), stamp("monitor", "x")]).await.unwrap();
    drop(dying);
    let after = lab.remembering(10).await;
    assert!(after.is_revoked("a").await.unwrap());
    assert_eq!(after.revocations(10).await.unwrap(), [task("a"), stamp("monitor", "x")]);
}

async fn the_latest_revocations_come_first_and_no_more_than_asked_for(lab: Lab) {
    let ledger = lab.ledger().await;
    ledger.revoke(&[task("1"), stamp("h", "1"), task("2")]).await.unwrap();
    ledger.revoke(&[stamp("h", "2"), task("3")]).await.unwrap();
    let all = [task("3"), task("2"), task("1"), stamp("h", "2"), stamp("h", "1")];
    assert_eq!(ledger.revocations(10).await.unwrap(), all);
    assert_eq!(ledger.revocations(1).await.unwrap(), [task("3"), stamp("h", "2")]);
    assert_eq!(ledger.revocations(0).await.unwrap(), []);
    assert_eq!(ledger.revocations(usize::MAX).await.unwrap(), all);
}

async fn a_revocation_made_anew_is_the_latest(lab: Lab) {
    let ledger = lab.ledger().await;
    ledger.revoke(&[task("1"), task("2")]).await.unwrap();
    ledger.revoke(&[task("1")]).await.unwrap();
    assert_eq!(ledger.revocations(10).await.unwrap(), [task("1"), task("2")]);
}

async fn stamps_are_remembered_as_they_are(lab: Lab) {
    let ledger = lab.ledger().await;
    let stamps = [stamp("", ""), stamp("a", "b:c"), stamp("a:b", "c"), stamp("zażółć", "\"\n\0")];
    ledger.revoke(&stamps).await.unwrap();
    let kept = ledger.revocations(10).await.unwrap();
    assert_eq!(kept, stamps.iter().rev().cloned().collect::<Vec<_>>());
    // A stamp is no task.
    assert!(!ledger.is_revoked("a").await.unwrap() && !ledger.is_revoked("").await.unwrap());
}

async fn the_oldest_revocations_go_first(lab: Lab) {
    let ledger = lab.remembering(3).await;
    for id in ["1", "2", "3"] {
        ledger.revoke(&[task(id), stamp("h", id)]).await.unwrap();
    }
    ledger.revoke(&[task("1"), task("4"), task("5")]).await.unwrap();
    assert_eq!(
        ledger.revocations(10).await.unwrap(),
        [task("5"), task("4"), task("1"), stamp("h", "3"), stamp("h", "2"), stamp("h", "1"),]
    );
    assert!(!ledger.is_revoked("2").await.unwrap() && ledger.is_revoked("1").await.unwrap());
}

async fn many_revocations_at_once_are_all_kept(lab: Lab) {
    let ledger = lab.ledger().await;
    let revocations: Vec<_> = (0..2_500).map(|index| task(index.to_string())).collect();
    ledger.revoke(&revocations).await.unwrap();
    assert_eq!(ledger.revocations(10_000).await.unwrap().len(), 2_500);
    for id in ["0", "999", "1000", "2499"] {
        assert!(ledger.is_revoked(id).await.unwrap(), "{id}");
    }
}

async fn two_handles_share_a_rate(lab: Lab) {
    let (here, there) = (lab.ledger().await, lab.remembering(10).await);
    let key = unique("task");
    assert_eq!(here.reserve_turn(&key, HOUR).await.unwrap(), Duration::ZERO);
    for turn in 1..=4 {
        let ledger = if turn % 2 == 0 { &*here } else { &*there };
        let wait = ledger.reserve_turn(&key, HOUR).await.unwrap();
        // Less by what has passed since the first.
        assert!(wait <= HOUR.every * turn && wait > HOUR.every * turn - HOUR.every / 2, "{turn}: {wait:?}");
    }
}

async fn rates_of_different_keys_are_apart(lab: Lab) {
    let ledger = lab.ledger().await;
    for _ in 0..3 {
        assert_eq!(ledger.reserve_turn(&unique("task"), HOUR).await.unwrap(), Duration::ZERO);
    }
}

async fn turns_that_nobody_took_are_not_saved_up(lab: Lab) {
    let (ledger, key) = (lab.ledger().await, unique("task"));
    let often = Allowance { every: Duration::from_millis(250) };
    let begun = Instant::now();
    ledger.reserve_turn(&key, often).await.unwrap();
    // Several turns pass.
    until(async || begun.elapsed() > often.every * 5).await;
    loop {
        let asked = Instant::now();
        assert_eq!(ledger.reserve_turn(&key, often).await.unwrap(), Duration::ZERO);
        let second = ledger.reserve_turn(&key, often).await.unwrap();
        // A machine that was too slow for it has to try again.
        if asked.elapsed() < often.every {
            return assert!(second > Duration::ZERO);
        }
        until(async || asked.elapsed() > often.every * 5).await;
    }
}

async fn no_allowance_is_too_large(lab: Lab) {
    let (ledger, key) = (lab.ledger().await, unique("task"));
    let never = Allowance { every: Duration::MAX };
    assert_eq!(ledger.reserve_turn(&key, never).await.unwrap(), Duration::ZERO);
    for _ in 0..3 {
        assert!(ledger.reserve_turn(&key, never).await.unwrap() <= FURTHEST_TURN);
    }
    let unlimited = Allowance { every: Duration::ZERO };
    for _ in 0..3 {
        assert_eq!(ledger.reserve_turn(&unique("free"), unlimited).await.unwrap(), Duration::ZERO);
    }
}
