//! The [`ResultBackend`] port on a file.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use rtask_protocol::Record;
use rusqlite::{OptionalExtension, params};

use super::{
    broker::blocking,
    store::{LOOK_EVERY, Store},
};
use crate::{BrokerError, ResultBackend, Retention};

/// A result backend in a file, which may be a broker's too.
pub struct SqliteBackend {
    store: Arc<Store>,
    retention: Retention,
}

impl SqliteBackend {
    /// Open the file, made with its folder if it does not exist.
    ///
    /// # Errors
    /// When it cannot be opened, is no database, or was made by a newer rtask.
    pub async fn open(path: PathBuf, retention: Retention) -> Result<Self, BrokerError> {
        blocking(move || Store::open(&path)).await.map(|store| Self { store, retention })
    }

    /// As another process would open it.
    ///
    /// # Errors
    /// See [`Self::open`].
    #[doc(hidden)]
    pub async fn open_apart(path: PathBuf, retention: Retention) -> Result<Self, BrokerError> {
        blocking(move || Store::open_apart(&path)).await.map(|store| Self { store, retention })
    }
}

#[async_trait]
impl ResultBackend for SqliteBackend {
    async fn store(&self, record: &Record, _reply_to: Option<&str>) -> Result<(), BrokerError> {
        let (task_id, text) = (record.task_id.clone(), record.encode());
        let status = record.status.name().to_owned();
        let lifetime = self.retention.expires.map(|expires| i64::try_from(expires.as_millis()).unwrap_or(i64::MAX));
        self.store
            .run(move |turn| {
                let expires_at = lifetime.map(|lifetime| turn.now.saturating_add(lifetime));
                turn.connection
                    .prepare_cached(
                        "INSERT INTO results (task_id, status, record, expires_at) VALUES (?1, ?2, ?3, ?4)
                         ON CONFLICT (task_id) DO UPDATE
                         SET status = excluded.status, record = excluded.record, expires_at = excluded.expires_at
                         WHERE results.status <> 'SUCCESS' OR results.expires_at <= ?5",
                    )?
                    .execute(params![task_id, status, text, expires_at, turn.now])?;
                turn.wake_others();
                Ok(())
            })
            .await
    }

    async fn get(&self, task_id: &str) -> Result<Option<Record>, BrokerError> {
        let id = task_id.to_owned();
        let stored: Option<String> = self
            .store
            .run(move |turn| {
                turn.connection
                    .prepare_cached(
                        "SELECT record FROM results
                         WHERE task_id = ?1 AND (expires_at IS NULL OR expires_at > ?2)",
                    )?
                    .query_row(params![id, turn.now], |row| row.get(0))
                    .optional()
            })
            .await?;
        let damaged = |error: serde_json::Error| BrokerError::Damaged {
            what: format!("the result of task {task_id}"),
            reason: error.to_string(),
        };
        stored.map(|text| serde_json::from_str(&text).map_err(damaged)).transpose()
    }

    async fn wait(&self, task_id: &str) -> Result<Record, BrokerError> {
        let mut changes = self.store.changes();
        loop {
            // Before looking, so that what comes while we look is noticed after it.
            changes.mark_unchanged();
            match self.get(task_id).await {
                Ok(Some(record)) if record.status.is_ready() => return Ok(record),
                Err(error) if error.is_permanent() => return Err(error),
                Err(error) => tracing::warn!(%error, task_id, "asking again for a result"),
                Ok(_) => {}
            }
            // Time-out or change: look again.
            let _ = tokio::time::timeout(LOOK_EVERY, changes.changed()).await;
        }
    }
}
