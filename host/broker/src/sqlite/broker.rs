//! The [`Broker`] port on a file.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use rtask_protocol::Message;
use tokio::{
    sync::{OnceCell, Semaphore, mpsc},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    holder::{Holder, LEASE},
    mailbox,
    publish::{self, Row},
    queues,
    receive::{CLAIM, Feed, Found, look},
    store::Store,
};
use crate::{
    Broker, BrokerError, Consumer, Delivery, Publication, Queue, QueueStats, Subscription, Target,
    limits::{check_length, check_queue_name},
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
        let Publication { target, message } = publication;
        publish::check(&target)?;
        let row = Row::of(&message)?;
        let (target, takers) = self
            .store
            .run(move |turn| {
                let takers = publish::publish(turn, &target, &message, &row)?;
                Ok((target, takers))
            })
            .await?;
        match (target, takers) {
            (Target::Exchange { exchange, routing_key }, 0) => Err(BrokerError::NotConfirmed {
                queue: routing_key,
                reason: format!("no queue is bound to exchange `{}` that takes it", exchange.name),
            }),
            (Target::Queue(_) | Target::Exchange { .. } | Target::Reply { .. }, _) => Ok(()),
        }
    }

    async fn consume(&self, subscription: Subscription) -> Result<Consumer, BrokerError> {
        subscription.queues.iter().try_for_each(check_queue)?;
        let holder = self.holder().await?.clone();
        let registered = register(&holder, subscription.queues.clone()).await?;
        let (room, places) = match usize::from(subscription.prefetch) {
            // As many as the reader takes.
            0 => (Semaphore::MAX_PERMITS, CLAIM),
            prefetch => (prefetch, prefetch * subscription.queues.len().max(1)),
        };
        let (sender, deliveries) = mpsc::channel(places);
        let cancelled = CancellationToken::new();
        let mut feeding = JoinSet::new();
        for queue in subscription.queues {
            let feed = Feed {
                holder: holder.clone(),
                queue: queue.name.into(),
                room: Arc::new(Semaphore::new(room)),
                cancelled: cancelled.clone(),
            };
            feeding.spawn(feed.run(sender.clone()));
        }
        let receiving = tokio::spawn(async move {
            while feeding.join_next().await.is_some() {}
            if let Err(error) = unregister(&holder, registered).await {
                tracing::warn!(%error, "a consumer that has ended is counted until its lease is forgotten");
            }
        });
        Ok(Consumer::new(deliveries, cancelled.drop_guard(), receiving))
    }

    async fn declare(&self, queue: &Queue) -> Result<(), BrokerError> {
        self.check_open()?;
        check_queue(queue)?;
        let queue = queue.clone();
        self.store.run(move |turn| queues::declare(turn, &queue)).await
    }

    async fn inspect(&self, queue: &str) -> Result<Option<QueueStats>, BrokerError> {
        let queue = queue.to_owned();
        self.store.run(move |turn| queues::stats(turn, &queue)).await
    }

    async fn take(&self, queue: &str) -> Result<Option<Delivery>, BrokerError> {
        match look(self.holder().await?, &queue.into(), 1).await? {
            Found::Messages(claimed) => Ok(claimed.into_iter().next().map(|claimed| claimed.delivery(None))),
            Found::Nothing { .. } => Ok(None),
        }
    }

    async fn purge(&self, queue: &str) -> Result<u64, BrokerError> {
        self.check_open()?;
        let last = self.store.run(queues::last_message).await?;
        let mut removed = 0;
        loop {
            let queue = queue.to_owned();
            match self.store.run(move |turn| queues::purge(turn, &queue, last)).await? {
                0 => return Ok(removed),
                more => removed += more,
            }
        }
    }

    async fn listen(&self, node: &str) -> Result<Consumer, BrokerError> {
        self.check_open()?;
        mailbox::listen(self.store.clone(), node, &self.closed).await
    }

    async fn broadcast(&self, message: Message) -> Result<(), BrokerError> {
        self.check_open()?;
        let row = Row::of(&message)?;
        self.store.run(move |turn| mailbox::broadcast(turn, &row)).await
    }

    async fn reply_queue(&self) -> Result<(String, Consumer), BrokerError> {
        let name = Uuid::new_v4().to_string();
        let consumer = mailbox::replies(self.holder().await?.clone(), &name).await?;
        Ok((name, consumer))
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

fn check_queue(queue: &Queue) -> Result<(), BrokerError> {
    check_queue_name(&queue.name)?;
    queue.bindings.iter().try_for_each(|binding| {
        check_length("an exchange's name", &binding.exchange.name)?;
        check_length("a routing key", &binding.routing_key)
    })
}

/// Declare queues, and say that this process consumes them.
async fn register(holder: &Holder, queues: Vec<Queue>) -> Result<Vec<i64>, BrokerError> {
    let id = holder.id.clone();
    holder
        .store
        .run(move |turn| {
            let mut registered = Vec::with_capacity(queues.len());
            for queue in &queues {
                queues::declare(turn, queue)?;
                turn.connection
                    .prepare_cached("INSERT INTO consumers (queue, holder) VALUES (?1, ?2)")?
                    .execute([&*queue.name, &*id])?;
                registered.push(turn.connection.last_insert_rowid());
            }
            Ok(registered)
        })
        .await
}

async fn unregister(holder: &Holder, registered: Vec<i64>) -> Result<(), BrokerError> {
    let delete = "DELETE FROM consumers WHERE id = ?1";
    holder
        .store
        .run(move |turn| {
            registered.iter().try_for_each(|id| turn.connection.prepare_cached(delete)?.execute([id]).map(drop))
        })
        .await
}
