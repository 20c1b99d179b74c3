//! The [`Broker`] port on a file.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use rusqlite::params;
use tokio::{
    sync::{OnceCell, Semaphore, mpsc},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    holder::{Holder, LEASE},
    receive::{Feed, claim},
    store::Store,
};
use crate::{
    Broker, BrokerError, Consumer, Delivery, Publication, Subscription,
    limits::{check_queue_name, lifetime},
};

/// A broker in a file, shared with every other process that opens the same.
pub struct SqliteBroker {
    store: Arc<Store>,
    lease: Duration,
    closed: CancellationToken,
    /// Only those who receive need a lease.
    holder: OnceCell<Arc<Holder>>,
}

impl SqliteBroker {
    /// Open the file, made with its folder if it does not exist.
    ///
    /// # Errors
    /// When it cannot be opened, is no database, or was made by a newer rtask.
    pub async fn open(path: PathBuf) -> Result<Self, BrokerError> {
        blocking(move || Store::open(&path)).await.map(|store| Self::on(store, LEASE))
    }

    /// As another process would open it, and with a lease of another length.
    ///
    /// # Errors
    /// See [`Self::open`].
    #[doc(hidden)]
    pub async fn open_apart(path: PathBuf, lease: Duration) -> Result<Self, BrokerError> {
        blocking(move || Store::open_apart(&path)).await.map(|store| Self::on(store, lease))
    }

    fn on(store: Arc<Store>, lease: Duration) -> Self {
        Self { store, lease, closed: CancellationToken::new(), holder: OnceCell::new() }
    }

    async fn holder(&self) -> Result<&Arc<Holder>, BrokerError> {
        self.check_open()?;
        self.holder.get_or_try_init(|| Holder::begin(self.store.clone(), self.lease)).await
    }

    fn check_open(&self) -> Result<(), BrokerError> {
        if self.closed.is_cancelled() {
            return Err(BrokerError::Closed { url: self.store.url() });
        }
        Ok(())
    }
}

/// Run what waits for the disk where it holds nobody up.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BrokerError> + Send + 'static,
) -> Result<T, BrokerError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(error) => Err(BrokerError::Failed { url: "sqlite".to_owned(), reason: error.to_string() }),
    }
}

#[async_trait]
impl Broker for SqliteBroker {
    async fn publish(&self, publication: Publication) -> Result<(), BrokerError> {
        self.check_open()?;
        let Publication { queue, message } = publication;
        check_queue_name(&queue)?;
        let priority = message.properties.priority.unwrap_or(0);
        let lifetime = lifetime(&message.properties)?;
        let headers = encode(&message.headers)?;
        let properties = encode(&message.properties)?;
        self.store
            .run(move |turn| {
                let expires_at = lifetime.map(|lifetime| turn.now + i64::from(lifetime));
                turn.connection
                    .prepare_cached(
                        "INSERT INTO messages (queue, priority, headers, properties, body, expires_at)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    )?
                    .execute(params![queue, priority, headers, properties, &message.body[..], expires_at])?;
                turn.wake_others();
                Ok(())
            })
            .await
    }

    async fn consume(&self, subscription: Subscription) -> Result<Consumer, BrokerError> {
        subscription.queues.iter().try_for_each(|queue| check_queue_name(queue))?;
        let holder = self.holder().await?;
        let prefetch = usize::from(subscription.prefetch.max(1));
        let (sender, deliveries) = mpsc::channel(prefetch * subscription.queues.len().max(1));
        let cancelled = CancellationToken::new();
        let mut feeding = JoinSet::new();
        for queue in subscription.queues {
            let feed = Feed {
                holder: holder.clone(),
                queue: queue.into(),
                room: Arc::new(Semaphore::new(prefetch)),
                cancelled: cancelled.clone(),
            };
            feeding.spawn(feed.run(sender.clone()));
        }
        let receiving = tokio::spawn(async move { while feeding.join_next().await.is_some() {} });
        Ok(Consumer::new(deliveries, cancelled.drop_guard(), receiving))
    }

    async fn waiting(&self, queue: &str) -> Result<u64, BrokerError> {
        let queue = queue.to_owned();
        let count: i64 = self
            .store
            .run(move |turn| {
                turn.connection
                    .prepare_cached(
                        "SELECT count(*) FROM messages
                         WHERE queue = ?1 AND claimed_by IS NULL AND (expires_at IS NULL OR expires_at > ?2)",
                    )?
                    .query_row(params![queue, turn.now], |row| row.get(0))
            })
            .await?;
        Ok(count.unsigned_abs())
    }

    async fn take(&self, queue: &str) -> Result<Option<Delivery>, BrokerError> {
        let holder = self.holder().await?;
        let claimed = claim(holder, &queue.into(), 1).await?;
        Ok(claimed.into_iter().next().map(|claimed| claimed.delivery(None)))
    }

    async fn close(&self) {
        self.closed.cancel();
        if let Some(holder) = self.holder.get()
            && let Err(error) = holder.end().await
        {
            tracing::warn!(%error, "what was claimed goes back only when the lease runs out");
        }
    }
}

fn encode<T: serde::Serialize>(value: &T) -> Result<String, BrokerError> {
    serde_json::to_string(value).map_err(|error| BrokerError::unsendable(error.to_string()))
}
