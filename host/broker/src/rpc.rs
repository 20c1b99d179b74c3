//! Results as messages to whoever sent the task: `rpc://`, over any broker (`celery/backends/rpc.py`,
//! golden/03b_result_backend_rpc).
//!
//! Nothing is kept anywhere. A client names its own queue in what it sends, and only it ever hears of the result.

use std::sync::Arc;

use async_trait::async_trait;
use rtask_protocol::{Message, Properties, Record};
use tokio::sync::OnceCell;

use crate::{BrokerError, Publication, ResultBackend, SharedBroker, Target};

mod replies;

use replies::Replies;

/// Transient and persistent, as AMQP numbers them.
const TRANSIENT: u8 = 1;
const PERSISTENT: u8 = 2;

/// A result backend over a broker.
pub struct RpcBackend {
    broker: SharedBroker,
    delivery_mode: u8,
    /// Only those who send tasks need it.
    replies: OnceCell<Arc<Replies>>,
}

impl RpcBackend {
    /// Send results that a restart of the broker may lose, as Celery does by default.
    pub fn over(broker: SharedBroker) -> Self {
        Self { broker, delivery_mode: TRANSIENT, replies: OnceCell::new() }
    }

    /// Send results that outlive a restart of the broker (`result_persistent`).
    #[must_use]
    pub fn persistent(mut self) -> Self {
        self.delivery_mode = PERSISTENT;
        self
    }

    /// # Errors
    /// When this process has sent no task whose result would come here.
    fn replies(&self, task_id: &str) -> Result<&Arc<Replies>, BrokerError> {
        self.replies.get().ok_or_else(|| BrokerError::Elsewhere { task_id: task_id.to_owned() })
    }
}

#[async_trait]
impl ResultBackend for RpcBackend {
    async fn store(&self, record: &Record, reply_to: Option<&str>) -> Result<(), BrokerError> {
        let Some(reply_to) = reply_to.filter(|queue| !queue.is_empty()) else {
            return Ok(());
        };
        let properties = Properties {
            delivery_mode: Some(self.delivery_mode),
            priority: Some(0),
            correlation_id: Some(record.task_id.clone()),
            ..Properties::persistent_json()
        };
        let message = Message { properties, body: record.encode().into(), ..Message::default() };
        let target = Target::Reply { exchange: String::new(), routing_key: reply_to.to_owned() };
        self.broker.publish(Publication { target, message }).await
    }

    async fn get(&self, task_id: &str) -> Result<Option<Record>, BrokerError> {
        Ok(self.replies(task_id)?.latest(task_id))
    }

    async fn wait(&self, task_id: &str) -> Result<Record, BrokerError> {
        self.replies(task_id)?.wait(task_id).await
    }

    async fn reply_to(&self) -> Result<Option<String>, BrokerError> {
        let replies = self.replies.get_or_try_init(|| Replies::begin(&*self.broker)).await?;
        Ok(Some(replies.queue().to_owned()))
    }
}
