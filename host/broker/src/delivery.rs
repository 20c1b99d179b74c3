//! A message in a worker's hands, and the one who hands it over.

use std::sync::Arc;

use async_trait::async_trait;
use rtask_protocol::Message;
use tokio::sync::mpsc;
use tokio_util::sync::DropGuard;

use crate::BrokerError;

/// How often a message was handed out before, as far as its broker can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempts {
    /// This is the first time.
    First,
    /// It was handed out before; how often, the store must tell (classic queues).
    Again,
    /// This is attempt number n, 1 for the first (quorum queues, SQLite).
    Number(u32),
}

/// What the broker is to do with a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Ack,
    /// Drop it, or hand it to the broker's own dead-letter exchange where an operator has set one.
    Reject,
    Requeue,
}

/// A broker's side of a delivery.
#[async_trait]
pub trait Receipt: Send + Sync {
    /// Carry out a verdict.
    ///
    /// # Errors
    /// When the broker no longer knows the delivery, since the connection was lost; it is delivered again then.
    async fn settle(&self, verdict: Verdict) -> Result<(), BrokerError>;
}

/// One unsettled message. Dropping it puts the message back into its queue.
pub struct Delivery {
    pub message: Message,
    pub queue: Arc<str>,
    pub attempts: Attempts,
    receipt: Option<Box<dyn Receipt>>,
}

impl Delivery {
    pub fn new(message: Message, queue: Arc<str>, attempts: Attempts, receipt: Box<dyn Receipt>) -> Self {
        Self { message, queue, attempts, receipt: Some(receipt) }
    }

    /// # Errors
    /// See [`Receipt::settle`]; so for all three.
    pub async fn ack(self) -> Result<(), BrokerError> {
        self.settle(Verdict::Ack).await
    }

    pub async fn reject(self) -> Result<(), BrokerError> {
        self.settle(Verdict::Reject).await
    }

    pub async fn requeue(self) -> Result<(), BrokerError> {
        self.settle(Verdict::Requeue).await
    }

    async fn settle(mut self, verdict: Verdict) -> Result<(), BrokerError> {
        match self.receipt.take() {
            Some(receipt) => receipt.settle(verdict).await,
            None => Ok(()),
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        let Some(receipt) = self.receipt.take() else {
            return;
        };
        // Without a runtime the process is ending, and the broker requeues what its connection held.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { receipt.settle(Verdict::Requeue).await });
        }
    }
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery").field("queue", &self.queue).field("attempts", &self.attempts).finish_non_exhaustive()
    }
}

/// A stream of deliveries. Dropping it cancels it.
pub struct Consumer {
    deliveries: mpsc::Receiver<Delivery>,
    /// Cancelled on drop; the broker's receiving task watches it.
    guard: Option<DropGuard>,
    /// Told when the broker's receiving task has stopped.
    stopped: tokio::task::JoinHandle<()>,
}

impl Consumer {
    /// `receiving` feeds `deliveries` until `guard`'s token is cancelled, and then tells the broker to send no more.
    pub fn new(deliveries: mpsc::Receiver<Delivery>, guard: DropGuard, receiving: tokio::task::JoinHandle<()>) -> Self {
        Self { deliveries, guard: Some(guard), stopped: receiving }
    }

    /// The next delivery; none after the consumer was given up for good.
    pub async fn next(&mut self) -> Option<Delivery> {
        self.deliveries.recv().await
    }

    /// Receive no more. What was received and not yet taken goes back to its queue.
    pub async fn cancel(mut self) {
        drop(self.guard.take());
        self.deliveries.close();
        while let Some(delivery) = self.deliveries.recv().await {
            // A lost connection has put it back already.
            let _ = delivery.requeue().await;
        }
        let _ = (&mut self.stopped).await;
    }
}
