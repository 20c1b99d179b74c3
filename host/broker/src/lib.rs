//! Where messages come from and results go: the ports [`Broker`], [`ResultBackend`] and [`Ledger`], and one room for
//! each server that implements them.
//!
//! Brokers know namespaces (a virtual host, a database, a file), never tenants; they carry messages and never
//! read them. Nothing here decides what becomes of a task.
//!
//! Read [`topology`] and [`delivery`] first, then the traits below and [`ledger`], then [`connect`](mod@connect). The
//! rooms are [`amqp`] (RabbitMQ), [`redis`] and [`sqlite`] (each of the latter all three ports), and [`rpc`], a result
//! backend over any broker. One conformance suite, tests/conformance, holds for all of them.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use rtask_protocol::{Message, Record};

pub mod amqp;
pub mod backoff;
pub mod connect;
pub mod delivery;
pub mod error;
pub mod ledger;
mod limits;
mod matching;
pub mod redis;
pub mod routes;
pub mod rpc;
pub mod sqlite;
mod tls;
pub mod topology;

pub use connect::{Patience, Tls, Transport, connect_backend, connect_backend_over, connect_broker, connect_ledger};
pub use delivery::{Attempts, Consumer, Delivery, Receipt, Routing, Verdict};
pub use error::{BrokerError, Refusal};
pub use ledger::{Ledger, Revocation, SharedLedger};
pub use routes::{Route, Routes};
pub use topology::{Binding, Exchange, ExchangeKind, Queue, Target};

/// A message on its way.
#[derive(Clone, Debug)]
pub struct Publication {
    pub target: Target,
    pub message: Message,
}

impl Publication {
    /// Straight into `queue`.
    pub fn to_queue(queue: impl Into<String>, message: Message) -> Self {
        Self { target: Target::Queue(queue.into()), message }
    }
}

/// What a consumer asks for.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// Declared with their bindings, if they do not exist; used as they are if they do.
    pub queues: Vec<Queue>,
    /// How many deliveries of each queue may be unsettled at once; 0 for any number.
    pub prefetch: u16,
    /// Shown by the broker beside the consumer.
    pub tag: String,
}

/// What is in a queue. None where the broker does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Messages that wait, without those that some consumer holds.
    pub messages: u64,
    /// Messages that some consumer holds.
    pub unacked: Option<u64>,
    /// Messages that are put aside until their time.
    pub postponed: Option<u64>,
    pub consumers: Option<u64>,
}

/// Carries messages. A lost connection is taken up again without the caller's doing; what was unsettled then
/// is delivered again.
#[async_trait]
pub trait Broker: Send + Sync {
    /// Publish and wait until the broker has confirmed that it keeps the message.
    ///
    /// # Errors
    /// The message may or may not have been kept; publishing it again is safe as far as the reader is.
    async fn publish(&self, publication: Publication) -> Result<(), BrokerError>;

    /// Start to receive. Deliveries arrive until [`Consumer::cancel`] or the consumer's drop.
    ///
    /// # Errors
    /// When a queue cannot be declared or consumed.
    async fn consume(&self, subscription: Subscription) -> Result<Consumer, BrokerError>;

    /// Make `queue`, its exchanges and what ties them as its readers would, for a publisher that may come before them.
    /// What exists is used as it is.
    ///
    /// # Errors
    /// When they cannot be declared.
    async fn declare(&self, queue: &Queue) -> Result<(), BrokerError>;

    /// What is in `queue`; none if it does not exist.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    async fn inspect(&self, queue: &str) -> Result<Option<QueueStats>, BrokerError>;

    /// How many messages wait in `queue`; 0 if it does not exist.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    async fn waiting(&self, queue: &str) -> Result<u64, BrokerError> {
        Ok(self.inspect(queue).await?.unwrap_or_default().messages)
    }

    /// Take `queue`'s first waiting message, or none; for looking at dead letters.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    async fn take(&self, queue: &str) -> Result<Option<Delivery>, BrokerError>;

    /// Remove what waits in `queue`, and answer how many messages that were. Neither held nor postponed ones.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    async fn purge(&self, queue: &str) -> Result<u64, BrokerError>;

    /// Receive remote control's broadcasts as `node` (`kombu/pidbox.py`, `Mailbox` named `celery`). They are settled
    /// already; their `queue` is the mailbox.
    ///
    /// # Errors
    /// When the mailbox cannot be made.
    async fn listen(&self, node: &str) -> Result<Consumer, BrokerError>;

    /// Send `message` to every mailbox, without waiting for anyone to read it.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    async fn broadcast(&self, message: Message) -> Result<(), BrokerError>;

    /// Make a queue of this caller's own, and receive what others send to it by [`Target::Reply`] through the default
    /// exchange, with its name as the routing key (golden/03b_result_backend_rpc). The deliveries are settled already;
    /// the queue goes with its consumer.
    ///
    /// # Errors
    /// When it cannot be made.
    async fn reply_queue(&self) -> Result<(String, Consumer), BrokerError>;

    /// Say goodbye; deliveries that are still unsettled go back to their queues.
    async fn close(&self);
}

/// Keeps what became of tasks.
#[async_trait]
pub trait ResultBackend: Send + Sync {
    /// Store a record and announce it to whoever waits. A stored SUCCESS is never overwritten
    /// (`celery/backends/base.py`, `_store_result`). `reply_to` is the request's, for a backend that answers with messages.
    ///
    /// # Errors
    /// When the store cannot be reached; nothing is stored then, and storing again is safe.
    async fn store(&self, record: &Record, reply_to: Option<&str>) -> Result<(), BrokerError>;

    /// The record of a task; none if it is unknown, pending or expired.
    ///
    /// # Errors
    /// When the store cannot be reached.
    async fn get(&self, task_id: &str) -> Result<Option<Record>, BrokerError>;

    /// Wait, for as long as it takes, until the task's record is ready (`State::is_ready`).
    ///
    /// # Errors
    /// When the store refuses; a lost connection is taken up again.
    async fn wait(&self, task_id: &str) -> Result<Record, BrokerError>;

    /// The `reply_to` of tasks that this process is to send, for a backend that answers with messages; it hears of no
    /// others. None for a backend that keeps records.
    ///
    /// # Errors
    /// When the queue cannot be made.
    async fn reply_to(&self) -> Result<Option<String>, BrokerError> {
        Ok(None)
    }
}

/// How a result backend is to keep records.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// `result_expires`; none keeps them for ever.
    pub expires: Option<Duration>,
}

impl Default for Retention {
    /// Celery's: one day.
    fn default() -> Self {
        Self { expires: Some(Duration::from_secs(86_400)) }
    }
}

/// The ports as they are passed about.
pub type SharedBroker = Arc<dyn Broker>;
pub type SharedBackend = Arc<dyn ResultBackend>;
