//! Where messages come from and results go: the ports [`Broker`] and [`ResultBackend`], and one room for each
//! server that implements them.
//!
//! Brokers know namespaces (a virtual host, a database, a file), never tenants; they carry messages and never
//! read them. Nothing here decides what becomes of a task.
//!
//! Read [`delivery`] first, then the two traits below, then [`connect`](mod@connect). The rooms are [`amqp`] (RabbitMQ),
//! [`redis`] (results) and [`sqlite`] (both, in one file). One conformance suite, tests/conformance, holds
//! for all of them.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use rtask_protocol::{Message, Record};

pub mod amqp;
pub mod backoff;
pub mod connect;
pub mod delivery;
pub mod error;
mod limits;
pub mod redis;
pub mod sqlite;

pub use connect::{Patience, connect_backend, connect_broker};
pub use delivery::{Attempts, Consumer, Delivery, Receipt, Verdict};
pub use error::{BrokerError, Refusal};

/// A message on its way to a queue.
#[derive(Clone, Debug)]
pub struct Publication {
    pub queue: String,
    pub message: Message,
}

/// What a consumer asks for.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// Declared, as Celery declares them, if they do not exist.
    pub queues: Vec<String>,
    /// How many deliveries of each queue may be unsettled at once; at least 1.
    pub prefetch: u16,
    /// Shown by the broker beside the consumer.
    pub tag: String,
}

/// Carries messages. A lost connection is taken up again without the caller's doing; what was unsettled then
/// is delivered again.
#[async_trait]
pub trait Broker: Send + Sync {
    /// Publish and wait until the broker has confirmed that it keeps the message. The queue is declared, durable
    /// and without arguments as Celery's publishers declare it, at the first publication to it.
    ///
    /// # Errors
    /// The message may or may not have been kept; publishing it again is safe as far as the reader is.
    async fn publish(&self, publication: Publication) -> Result<(), BrokerError>;

    /// Start to receive. Deliveries arrive until [`Consumer::cancel`] or the consumer's drop.
    ///
    /// # Errors
    /// When a queue cannot be declared or consumed.
    async fn consume(&self, subscription: Subscription) -> Result<Consumer, BrokerError>;

    /// How many messages wait in `queue`, without those that some consumer holds. 0 for a queue that does not exist.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    async fn waiting(&self, queue: &str) -> Result<u64, BrokerError>;

    /// Take `queue`'s first waiting message, or none; for looking at dead letters.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    async fn take(&self, queue: &str) -> Result<Option<Delivery>, BrokerError>;

    /// Say goodbye; deliveries that are still unsettled go back to their queues.
    async fn close(&self);
}

/// Keeps what became of tasks.
#[async_trait]
pub trait ResultBackend: Send + Sync {
    /// Store a record and announce it to whoever waits. A stored SUCCESS is never overwritten
    /// (`celery/backends/base.py`, `_store_result`).
    ///
    /// # Errors
    /// When the store cannot be reached; nothing is stored then, and storing again is safe.
    async fn store(&self, record: &Record) -> Result<(), BrokerError>;

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

    /// Count another attempt at the message that `key` names, and answer the count, 1 for the first. Forgotten
    /// after a day. For brokers that only tell that a message was delivered before.
    ///
    /// # Errors
    /// When the store cannot be reached.
    async fn count_attempt(&self, key: &str) -> Result<u32, BrokerError>;
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
