//! Results in Redis, as Celery keeps them (golden/03_result_backend_redis).
//!
//! Read `link` first, the connection that all commands share; `announcements` is the other one, on which
//! those who wait are told.

use async_trait::async_trait;
use rtask_protocol::{Record, names};
use serde::Deserialize;

use crate::{BrokerError, Patience, ResultBackend, Retention, connect::patiently};

mod announcements;
mod failure;
mod link;

use announcements::Announcements;
use link::Link;

/// Seconds after which an attempt is forgotten.
const ATTEMPTS_LIFETIME: i64 = 86_400;
/// How Celery begins a value that it has compressed (`celery/backends/base.py`, `_compress_payload`).
const COMPRESSED: &[u8] = b"\0celery-compressed\0";

/// A result backend at a `redis://` or `rediss://` URL.
pub struct RedisBackend {
    link: Link,
    announcements: Announcements,
    retention: Retention,
}

impl RedisBackend {
    /// Connect to `url`, whose path is the database's number.
    ///
    /// # Errors
    /// See [`crate::connect_backend`].
    pub async fn connect(url: &str, retention: Retention, patience: Patience) -> Result<Self, BrokerError> {
        let link = Link::new(url, patience.within())?;
        patiently(patience, || link.connect()).await?;
        let announcements = Announcements::new(link.client().clone(), link.url().to_owned());
        Ok(Self { link, announcements, retention })
    }

    async fn fetch(&self, key: &str) -> Result<Option<Vec<u8>>, BrokerError> {
        let mut command = redis::pipe();
        command.get(key);
        let (stored,) = self.link.ask(&command).await?;
        Ok(stored)
    }

    /// One transaction, as Celery's: whoever hears the announcement finds the value.
    fn writing(&self, key: &str, value: &str) -> redis::Pipeline {
        let mut transaction = redis::pipe();
        transaction.atomic();
        match self.retention.expires {
            Some(expires) => transaction.set_ex(key, value, expires.as_secs().max(1)),
            None => transaction.set(key, value),
        };
        transaction.publish(key, value);
        transaction
    }
}

#[async_trait]
impl ResultBackend for RedisBackend {
    async fn store(&self, record: &Record) -> Result<(), BrokerError> {
        let key = names::result_key(&record.task_id);
        if self.fetch(&key).await?.is_some_and(|stored| is_success(&stored)) {
            return Ok(());
        }
        self.link.ask::<redis::Value>(&self.writing(&key, &record.encode())).await.map(drop)
    }

    async fn get(&self, task_id: &str) -> Result<Option<Record>, BrokerError> {
        let key = names::result_key(task_id);
        self.fetch(&key).await?.map(|stored| decode(&key, &stored)).transpose()
    }

    async fn wait(&self, task_id: &str) -> Result<Record, BrokerError> {
        let mut news = self.announcements.subscribe(names::result_key(task_id));
        loop {
            // First of all when the subscription stands, so that nothing falls between looking and listening.
            news.changed().await;
            match self.get(task_id).await {
                Ok(Some(record)) if record.status.is_ready() => return Ok(record),
                Ok(_) => {}
                Err(error) if error.is_permanent() => return Err(error),
                // The subscription is on a connection of its own, which says when the server is back.
                Err(error) => {
                    tracing::warn!(%error, task_id, "asking again for a result");
                    news.look_again().await;
                }
            }
        }
    }

    async fn count_attempt(&self, key: &str) -> Result<u32, BrokerError> {
        let key = format!("rtask-attempts-{key}");
        let mut transaction = redis::pipe();
        transaction.atomic().incr(&key, 1).expire(&key, ATTEMPTS_LIFETIME).ignore();
        // Asked again after a lost answer it counts twice; rather that than a message that is never given up.
        let (count,): (i64,) = self.link.ask(&transaction).await?;
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }
}

/// A value that is no record is overwritten, as one of a state that may still change.
fn is_success(stored: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Stored<'a> {
        #[serde(borrow)]
        status: std::borrow::Cow<'a, str>,
    }
    serde_json::from_slice::<Stored>(stored).is_ok_and(|stored| stored.status == "SUCCESS")
}

fn decode(key: &str, stored: &[u8]) -> Result<Record, BrokerError> {
    let damaged = |reason: String| BrokerError::Damaged { what: format!("the result under `{key}`"), reason };
    if stored.starts_with(COMPRESSED) {
        return Err(damaged("it is compressed (`result_compression`), which is not read".to_owned()));
    }
    serde_json::from_slice(stored).map_err(|error| damaged(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_stored_success_is_final() {
        let rows: [(&[u8], bool); 5] = [
            (br#"{"status": "SUCCESS", "result": 4}"#, true),
            (br#"{"status": "FAILURE", "result": null}"#, false),
            (br#"{"status": "STARTED"}"#, false),
            (b"\0celery-compressed\0application/x-gzip", false),
            (b"", false),
        ];
        for (stored, expected) in rows {
            assert_eq!(is_success(stored), expected, "{}", String::from_utf8_lossy(stored));
        }
    }
}
