//! A message in a worker's hands, and the one who hands it over.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    #[default]
    Ack,
    /// Drop it, or hand it to the broker's own dead-letter exchange where an operator has set one.
    Reject,
    Requeue,
}

/// How a message came into its queue (`delivery_info` in Celery's requests).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// Empty for the default exchange.
    pub exchange: String,
    pub routing_key: String,
}

/// A broker's side of a delivery.
#[async_trait]
pub trait Receipt: Send + Sync {
    /// Carry out a verdict.
    ///
    /// # Errors
    /// When the broker no longer knows the delivery, since the connection was lost; it is delivered again then.
    async fn settle(&self, verdict: Verdict) -> Result<(), BrokerError>;

    /// Put the message aside until `until`, to be delivered from the same queue as a first attempt then, or up to a
    /// second later. It counts for no prefetch and costs no consumer anything meanwhile.
    ///
    /// # Errors
    /// When the broker cannot be asked; the delivery is still unsettled then.
    async fn postpone(&self, message: &Message, until: Timestamp) -> Result<(), BrokerError>;
}

/// One unsettled message. Dropping it puts the message back into its queue.
pub struct Delivery {
    pub message: Message,
    pub queue: Arc<str>,
    pub attempts: Attempts,
    pub routing: Routing,
    receipt: Option<Box<dyn Receipt>>,
}

impl Delivery {
    pub fn new(message: Message, queue: Arc<str>, attempts: Attempts, receipt: Box<dyn Receipt>) -> Self {
        let routing = Routing { exchange: String::new(), routing_key: queue.to_string() };
        Self { message, queue, attempts, routing, receipt: Some(receipt) }
    }

    /// A message that its broker has forgotten already (a mailbox's, a reply); there is nothing left to settle.
    pub fn settled(message: Message, queue: Arc<str>) -> Self {
        let routing = Routing { exchange: String::new(), routing_key: queue.to_string() };
        Self { message, queue, attempts: Attempts::First, routing, receipt: None }
    }

    /// The same, for a message that did not come straight into its queue.
    #[must_use]
    pub fn routed(mut self, exchange: impl Into<String>, routing_key: impl Into<String>) -> Self {
        self.routing = Routing { exchange: exchange.into(), routing_key: routing_key.into() };
        self
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

    /// Put the message aside until `until`; see [`Receipt::postpone`]. It is settled then.
    ///
    /// # Errors
    /// See there.
    pub async fn postpone(&mut self, until: Timestamp) -> Result<(), BrokerError> {
        let Some(receipt) = &self.receipt else { return Ok(()) };
        receipt.postpone(&self.message, until).await?;
        self.receipt = None;
        Ok(())
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
