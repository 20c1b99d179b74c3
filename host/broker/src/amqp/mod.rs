//! RabbitMQ, and whatever else speaks AMQP 0-9-1 as it does.
//!
//! Two connections a broker: a server that is short of memory or disk stops reading from connections that
//! publish, and acks must get through all the same, since only they can relieve it. Each is a `link::Link`,
//! which is repaired by whoever needs it next.
//!
//! Read `address` and `link`, then `publish`, `consume` and `settle`. `declare` is what Celery declares, `delay` is
//! where messages wait for their time, `inbox` is for remote control and replies. `table` and `properties` are the
//! codecs, `failure` translates what the server says, and `transport` puts TLS and the `sieve` between lapin and the
//! server.
//!
//! Nothing here is deprecated in RabbitMQ 4: prefetch is each consumer's own, and what is not durable is exclusive.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::future::join;
use lapin::{
    Channel,
    options::{BasicGetOptions, QueueDeclareOptions, QueuePurgeOptions},
    types::FieldTable,
};
use rtask_protocol::Message;
use tokio::sync::Mutex;

use crate::{
    Broker, BrokerError, Consumer, Delivery, Patience, Publication, Queue, QueueStats, Subscription, Transport,
    connect::patiently,
};

mod address;
mod consume;
mod declare;
mod delay;
mod failure;
mod inbox;
mod link;
mod properties;
mod publish;
mod settle;
mod sieve;
mod table;
mod transport;

use address::Servers;
use consume::{Ends, Source};
use declare::{Declarer, QueueKind};
use inbox::Inbox;
use link::Link;
use publish::{Publisher, Way};
use settle::Settler;

/// How long whoever leaves waits for the server's goodbye.
const GOODBYE_WITHIN: Duration = Duration::from_secs(2);

/// A broker at an `amqp://` or `amqps://` URL, or at the first of several that can be reached.
pub struct AmqpBroker {
    ends: Ends,
    patience: Patience,
    /// Held while taking, since a channel answers one question at a time.
    taking: Mutex<Option<Taking>>,
}

/// Where the queue that was taken from last is taken from. A server has some 2,000 channels for a connection, and far
/// more dead letters may be looked at at the same time; the channel lives until the last of them is settled.
struct Taking {
    channel: Arc<Channel>,
    source: Source,
}

impl AmqpBroker {
    /// Connect to `urls`, which `;` parts. A query may set `heartbeat`, `frame_max`, `login_method`, `ssl_ca_certs`,
    /// `ssl_certfile` and `ssl_keyfile`.
    ///
    /// # Errors
    /// See [`crate::connect_broker`].
    pub async fn connect(urls: &str, transport: &Transport) -> Result<Self, BrokerError> {
        let patience = transport.patience;
        let servers = Arc::new(Servers::parse(urls, &transport.tls)?);
        let receiving = Arc::new(Link::new(servers.clone(), "rtask: receiving"));
        let publishing = Arc::new(Link::new(servers, "rtask: publishing"));
        // The other one, which most clients never need, is opened when it is first used.
        patiently(patience, || publishing.connection()).await?;
        let publisher = Arc::new(Publisher::new(publishing, patience));
        Ok(Self { ends: Ends { receiving, publisher }, patience, taking: Mutex::default() })
    }

    /// A channel for each queue, as one that does not exist closes it.
    async fn taking(&self, queue: &str, before: Option<Taking>) -> Result<Taking, BrokerError> {
        let fits = |taking: &Taking| &*taking.source.queue == queue && taking.channel.status().connected();
        if let Some(taking) = before.filter(fits) {
            return Ok(taking);
        }
        let Ends { receiving: link, publisher } = &self.ends;
        let channel = Arc::new(link.channel().await?);
        let (settler, publisher) = (Settler::new(channel.clone(), link.clone()), publisher.clone());
        Ok(Taking { channel, source: Source { queue: queue.into(), kind: QueueKind::Other, settler, publisher } })
    }
}

#[async_trait]
impl Broker for AmqpBroker {
    async fn publish(&self, publication: Publication) -> Result<(), BrokerError> {
        self.ends.publisher.publish(&Way::to(&publication.target)?, &publication.message).await
    }

    async fn consume(&self, subscription: Subscription) -> Result<Consumer, BrokerError> {
        consume::start(self.ends.clone(), subscription, self.patience).await
    }

    async fn declare(&self, queue: &Queue) -> Result<(), BrokerError> {
        Declarer::open(&self.ends.receiving).await?.queue(queue).await.map(drop)
    }

    async fn inspect(&self, queue: &str) -> Result<Option<QueueStats>, BrokerError> {
        let name = declare::queue_name(queue)?;
        let link = &self.ends.receiving;
        let passive = QueueDeclareOptions::default().passive();
        match link.channel().await?.queue_declare(name, passive, FieldTable::default()).await {
            Ok(found) => Ok(Some(QueueStats {
                messages: found.message_count().into(),
                consumers: Some(found.consumer_count().into()),
                ..QueueStats::default()
            })),
            Err(error) if failure::is_not_found(&error) => Ok(None),
            Err(error) => Err(link.explain(&error)),
        }
    }

    async fn take(&self, queue: &str) -> Result<Option<Delivery>, BrokerError> {
        let name = declare::queue_name(queue)?;
        let mut last = self.taking.lock().await;
        let taking = self.taking(queue, last.take()).await?;
        match taking.channel.basic_get(name, BasicGetOptions::default()).await {
            Ok(found) => {
                let Taking { source, .. } = last.insert(taking);
                Ok(found.map(|found| source.delivery(found.delivery)))
            }
            Err(error) if failure::is_not_found(&error) => Ok(None),
            Err(error) => Err(self.ends.receiving.explain(&error)),
        }
    }

    async fn purge(&self, queue: &str) -> Result<u64, BrokerError> {
        let name = declare::queue_name(queue)?;
        let link = &self.ends.receiving;
        match link.channel().await?.queue_purge(name, QueuePurgeOptions::default()).await {
            Ok(count) => Ok(count.into()),
            Err(error) if failure::is_not_found(&error) => Ok(0),
            Err(error) => Err(link.explain(&error)),
        }
    }

    async fn listen(&self, node: &str) -> Result<Consumer, BrokerError> {
        Inbox::mailbox(node)?.open(self.ends.receiving.clone(), self.patience).await
    }

    async fn broadcast(&self, message: Message) -> Result<(), BrokerError> {
        self.ends.publisher.publish(&inbox::broadcast(), &message).await
    }

    async fn reply_queue(&self) -> Result<(String, Consumer), BrokerError> {
        let inbox = Inbox::replies();
        let name = inbox.name().to_owned();
        Ok((name, inbox.open(self.ends.receiving.clone(), self.patience).await?))
    }

    async fn close(&self) {
        let goodbyes = join(self.ends.publisher.close(), self.ends.receiving.close());
        // A server that does not answer notices the end of the process anyway.
        let _ = tokio::time::timeout(GOODBYE_WITHIN, goodbyes).await;
    }
}
