//! RabbitMQ, and whatever else speaks AMQP 0-9-1 as it does.
//!
//! Two connections a broker: a server that is short of memory or disk stops reading from connections that
//! publish, and acks must get through all the same, since only they can relieve it. Each is a `link::Link`,
//! which is repaired by whoever needs it next.
//!
//! Read `link`, then `publish`, `consume` and `settle`. `declare` is what Celery declares, `table` and
//! `properties` are the codecs, `failure` translates what the server says, and `transport` puts the
//! `sieve` between lapin and the server.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::future::join;
use lapin::{
    options::{BasicGetOptions, QueueDeclareOptions},
    types::FieldTable,
};

use crate::{Broker, BrokerError, Consumer, Delivery, Patience, Publication, Subscription, connect::patiently};

mod consume;
mod declare;
mod failure;
mod link;
mod properties;
mod publish;
mod settle;
mod sieve;
mod table;
mod transport;

use declare::QueueKind;
use link::Link;
use publish::Publisher;
use settle::Settler;

/// How long [`Broker::close`] waits for the server's goodbye.
const GOODBYE_WITHIN: Duration = Duration::from_secs(2);

/// A broker at an `amqp://` or `amqps://` URL.
pub struct AmqpBroker {
    receiving: Arc<Link>,
    publisher: Publisher,
    patience: Patience,
}

impl AmqpBroker {
    /// Connect to `url`; the query may set `heartbeat` and `frame_max`.
    ///
    /// # Errors
    /// See [`crate::connect_broker`].
    pub async fn connect(url: &str, patience: Patience) -> Result<Self, BrokerError> {
        let receiving = Arc::new(Link::new(url, "rtask: receiving")?);
        let publishing = Arc::new(Link::new(url, "rtask: publishing")?);
        // The other one, which most clients never need, is opened when it is first used.
        patiently(patience, || publishing.connection()).await?;
        Ok(Self { receiving, publisher: Publisher::new(publishing, patience.within()), patience })
    }
}

#[async_trait]
impl Broker for AmqpBroker {
    async fn publish(&self, publication: Publication) -> Result<(), BrokerError> {
        self.publisher.publish(&publication).await
    }

    async fn consume(&self, subscription: Subscription) -> Result<Consumer, BrokerError> {
        consume::start(self.receiving.clone(), subscription, self.patience).await
    }

    async fn waiting(&self, queue: &str) -> Result<u64, BrokerError> {
        let name = declare::queue_name(queue)?;
        let channel = self.receiving.channel().await?;
        let declared =
            channel.queue_declare(name, QueueDeclareOptions::default().passive(), FieldTable::default()).await;
        match declared {
            Ok(found) => Ok(u64::from(found.message_count())),
            Err(error) if failure::is_not_found(&error) => Ok(0),
            Err(error) => Err(self.receiving.explain(&error)),
        }
    }

    async fn take(&self, queue: &str) -> Result<Option<Delivery>, BrokerError> {
        let name = declare::queue_name(queue)?;
        // A channel of its own, which lives until the delivery is settled: a queue that does not exist closes it.
        let channel = Arc::new(self.receiving.channel().await?);
        match channel.basic_get(name, BasicGetOptions::default()).await {
            Ok(None) => Ok(None),
            Ok(Some(found)) => {
                let settler = Settler::new(channel, self.receiving.clone());
                Ok(Some(consume::delivery(found.delivery, queue.into(), QueueKind::Other, &settler)))
            }
            Err(error) if failure::is_not_found(&error) => Ok(None),
            Err(error) => Err(self.receiving.explain(&error)),
        }
    }

    async fn close(&self) {
        let goodbyes = join(self.publisher.close(), self.receiving.close());
        // A server that does not answer notices the end of the process anyway.
        let _ = tokio::time::timeout(GOODBYE_WITHIN, goodbyes).await;
    }
}
