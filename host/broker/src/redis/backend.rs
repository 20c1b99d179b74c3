//! The [`ResultBackend`] port on Redis: results as Celery keeps them (golden/03_result_backend_redis).

use std::sync::LazyLock;

use async_trait::async_trait;
use redis::Script;
use rtask_protocol::{Record, names};
use serde::Deserialize;

use super::{announcements::Announcements, link::Link, stored};
use crate::{BrokerError, ResultBackend, Retention, Transport, connect::patiently};

/// Keep and announce ARGV[1] for ARGV[2] seconds, or for ever if that is 0, unless a SUCCESS is kept already: what
/// Celery does in a GET followed by a MULTI of SETEX and PUBLISH, in one step, so that nobody comes between. A kept
/// value that cannot be read here (it may be compressed) is answered, to be judged by the caller; if that finds it to
/// be no SUCCESS, it names the value in ARGV[3].
static STORE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local kept = redis.call('GET', KEYS[1])
        if kept and kept ~= ARGV[3] then
            local readable, record = pcall(cjson.decode, kept)
            if not readable then
                return kept
            end
            if type(record) == 'table' and record.status == 'SUCCESS' then
                return false
            end
        end
        if ARGV[2] == '0' then
            redis.call('SET', KEYS[1], ARGV[1])
        else
            redis.call('SETEX', KEYS[1], ARGV[2], ARGV[1])
        end
        redis.call('PUBLISH', KEYS[1], ARGV[1])
        return false",
    )
});
/// How many kept values are judged for one that is to be stored; each further one was written meanwhile.
const JUDGED: usize = 8;

/// A result backend at a `redis://` or `rediss://` URL.
pub struct RedisBackend {
    link: Link,
    announcements: Announcements,
    retention: Retention,
    /// Before the keys that Celery names.
    prefix: String,
}

impl RedisBackend {
    /// Connect to `url`, whose path is the database's number.
    ///
    /// # Errors
    /// See [`crate::connect_backend`].
    pub async fn connect(url: &str, retention: Retention, transport: &Transport) -> Result<Self, BrokerError> {
        let link = Link::new(url, transport)?;
        patiently(transport.patience, || link.connect()).await?;
        let announcements = Announcements::new(link.address().clone());
        Ok(Self { link, announcements, retention, prefix: result_prefix(&transport.key_prefix) })
    }

    fn key(&self, task_id: &str) -> String {
        format!("{}{}", self.prefix, names::result_key(task_id))
    }
}

#[async_trait]
impl ResultBackend for RedisBackend {
    async fn store(&self, record: &Record, _reply_to: Option<&str>) -> Result<(), BrokerError> {
        let (key, value) = (self.key(&record.task_id), record.encode());
        let seconds = self.retention.expires.map_or(0, |expires| expires.as_secs().max(1));
        let mut no_success = Vec::new();
        for _ in 0..JUDGED {
            let mut storing = STORE.prepare_invoke();
            storing.key(&key).arg(&value).arg(seconds).arg(&no_success);
            let unread: Option<Vec<u8>> = self.link.run(&storing).await?;
            match unread {
                None => return Ok(()),
                Some(kept) if is_success(&kept) => return Ok(()),
                Some(kept) => no_success = kept,
            }
        }
        let reason = format!("`{key}` changes faster than it can be read");
        Err(BrokerError::Failed { url: self.link.url().to_owned(), reason })
    }

    async fn get(&self, task_id: &str) -> Result<Option<Record>, BrokerError> {
        let key = self.key(task_id);
        let mut command = redis::pipe();
        command.get(&key);
        let (kept,): (Option<Vec<u8>>,) = self.link.ask(&command).await?;
        kept.map(|kept| stored::decode(&key, &kept)).transpose()
    }

    async fn wait(&self, task_id: &str) -> Result<Record, BrokerError> {
        let mut news = self.announcements.subscribe(self.key(task_id));
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
}

/// As Celery spells a result backend's `global_keyprefix` (`celery/backends/base.py`, `_add_global_keyprefix`).
fn result_prefix(prefix: &str) -> String {
    match prefix.chars().last() {
        None | Some(':' | '_' | '-' | '.') => prefix.to_owned(),
        Some(_) => format!("{prefix}_"),
    }
}

/// A value that is no record is overwritten, as one of a state that may still change.
fn is_success(kept: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Kept<'a> {
        #[serde(borrow)]
        status: std::borrow::Cow<'a, str>,
    }
    let status = |plain: &[u8]| serde_json::from_slice::<Kept>(plain).is_ok_and(|kept| kept.status == "SUCCESS");
    stored::plain(kept).is_ok_and(|plain| status(&plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kept_success_is_final() {
        let rows: [(&[u8], bool); 5] = [
            (br#"{"status": "SUCCESS", "result": 4}"#, true),
            (br#"{"status": "FAILURE", "result": null}"#, false),
            (br#"{"status": "STARTED"}"#, false),
            (b"\0celery-compressed\0application/x-gzip", false),
            (b"", false),
        ];
        for (kept, expected) in rows {
            assert_eq!(is_success(kept), expected, "{}", String::from_utf8_lossy(kept));
        }
    }

    #[test]
    fn a_prefix_is_set_off_as_celery_does() {
        let rows = [("", ""), ("app", "app_"), ("app:", "app:"), ("app_", "app_"), ("a-", "a-"), ("a.", "a.")];
        for (prefix, expected) in rows {
            assert_eq!(result_prefix(prefix), expected);
        }
    }
}
