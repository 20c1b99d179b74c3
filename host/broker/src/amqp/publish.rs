//! Publishing: confirmed, concurrent, and carried over a lost connection.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use lapin::{
    Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::ShortString,
};
use tokio::{sync::Semaphore, time::Instant};

use super::{declare, link::Link, properties};
use crate::{BrokerError, Publication, backoff::Backoff, limits::lifetime};

/// So many publications may be unconfirmed at once; more wait their turn.
const CHANNELS: usize = 64;
/// More queue names than this are not remembered as declared; the set is begun anew then.
const REMEMBERED_QUEUES: usize = 10_000;

/// Publishes over channels that each carry one message at a time. lapin hands a returned message to whichever
/// confirmation of its channel comes next; with one in flight that is certainly its own, and an unroutable
/// message is never taken for a kept one.
pub(super) struct Publisher {
    link: Arc<Link>,
    within: Duration,
    turns: Semaphore,
    idle: Mutex<Vec<Channel>>,
    declared: Mutex<HashSet<String>>,
}

impl Publisher {
    /// `within` bounds a publication with all of its attempts.
    pub fn new(link: Arc<Link>, within: Duration) -> Self {
        let turns = Semaphore::new(CHANNELS);
        Self { link, within, turns, idle: Mutex::default(), declared: Mutex::default() }
    }

    /// Publish until the broker has confirmed, over fresh connections if need be.
    pub async fn publish(&self, publication: &Publication) -> Result<(), BrokerError> {
        let queue = declare::queue_name(&publication.queue)?;
        lifetime(&publication.message.properties)?;
        let deadline = Instant::now() + self.within;
        let mut backoff = Backoff::default();
        let mut failure = None;
        loop {
            let error = match tokio::time::timeout_at(deadline, self.attempt(publication, &queue)).await {
                Ok(Err(error)) if !error.is_permanent() => error,
                Ok(answer) => return answer,
                Err(_) => return Err(failure.unwrap_or_else(|| self.unanswered(publication))),
            };
            let pause = backoff.pause();
            if Instant::now() + pause >= deadline {
                return Err(error);
            }
            tracing::debug!(%error, queue = publication.queue, ?pause, "publishing again");
            tokio::time::sleep(pause).await;
            failure = Some(error);
        }
    }

    pub async fn close(&self) {
        self.turns.close();
        lock(&self.idle).clear();
        self.link.close().await;
    }

    async fn attempt(&self, publication: &Publication, queue: &ShortString) -> Result<(), BrokerError> {
        let closed = |_| BrokerError::Closed { url: self.link.url().to_owned() };
        let _turn = self.turns.acquire().await.map_err(closed)?;
        self.declare(&publication.queue).await?;
        let channel = self.channel().await?;
        let message = &publication.message;
        let properties = properties::to_amqp(&message.headers, &message.properties)?;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let explain = |error| self.link.explain(&error);
        let sent = channel.basic_publish("".into(), queue.clone(), options, &message.body, properties).await;
        let confirmation = sent.map_err(explain)?.await.map_err(explain)?;
        lock(&self.idle).push(channel);
        self.judge(&publication.queue, confirmation)
    }

    /// An idle channel, or a new one.
    async fn channel(&self) -> Result<Channel, BrokerError> {
        while let Some(channel) = self.pop_idle() {
            if channel.status().connected() {
                return Ok(channel);
            }
        }
        let channel = self.link.channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(|error| self.link.explain(&error))?;
        Ok(channel)
    }

    fn pop_idle(&self) -> Option<Channel> {
        lock(&self.idle).pop()
    }

    async fn declare(&self, queue: &str) -> Result<(), BrokerError> {
        if lock(&self.declared).contains(queue) {
            return Ok(());
        }
        declare::declare(&self.link, queue).await?;
        let mut declared = lock(&self.declared);
        if declared.len() >= REMEMBERED_QUEUES {
            declared.clear();
        }
        declared.insert(queue.to_owned());
        Ok(())
    }

    fn judge(&self, queue: &str, confirmation: Confirmation) -> Result<(), BrokerError> {
        let reason = match confirmation {
            Confirmation::Ack(None) => return Ok(()),
            Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_)) => {
                // Somebody has deleted the queue; the next attempt declares it again.
                lock(&self.declared).remove(queue);
                "no queue of this name took it"
            }
            Confirmation::Nack(None) => "the broker refused to keep it",
            Confirmation::NotRequested => "the channel does not confirm",
        };
        Err(BrokerError::NotConfirmed { queue: queue.to_owned(), reason: reason.to_owned() })
    }

    fn unanswered(&self, publication: &Publication) -> BrokerError {
        let reason = format!(
            "no answer from {} within {} s; it may have blocked its publishers for want of memory or disk",
            self.link.url(),
            self.within.as_secs()
        );
        BrokerError::NotConfirmed { queue: publication.queue.clone(), reason }
    }
}

/// No code panics while it holds these locks.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
