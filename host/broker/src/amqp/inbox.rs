//! Queues that are one reader's own, and whose messages it takes as they come: remote control's mailbox
//! (golden/06_startup_gossip_mingle, `kombu/pidbox.py`) and a client's replies (golden/03b_result_backend_rpc).

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use lapin::{
    Channel,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions,
        QueueDeclareOptions,
    },
    types::{FieldTable, ShortString},
};
use rtask_protocol::Message;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    GOODBYE_WITHIN,
    declare::{self, Declarer},
    failure,
    link::Link,
    properties,
    publish::{Place, Way},
};
use crate::{BrokerError, Consumer, Delivery, Exchange, ExchangeKind, Patience, backoff::Backoff, connect::patiently};

/// Where broadcasts go.
const MAILBOXES: &str = "celery.pidbox";
/// Messages that nobody has taken yet; further ones wait in the server.
const BUFFERED: u16 = 256;
/// Milliseconds for which a mailbox outlives its reader, and a broadcast its sending (Celery's `control_queue_expires`
/// and `control_queue_ttl`).
const MAILBOX_EXPIRES: i32 = 10_000;
const BROADCAST_LIVES: i32 = 300_000;
/// Milliseconds for which replies outlive a reader that the server has lost (Celery's `result_expires`).
const REPLIES_EXPIRE: i32 = 86_400_000;

/// What is to be made.
pub(super) struct Inbox {
    queue: ShortString,
    options: QueueDeclareOptions,
    arguments: FieldTable,
    /// Whether broadcasts go there.
    is_mailbox: bool,
}

/// What was made.
struct Open {
    channel: Channel,
    consumer: lapin::Consumer,
}

/// To every mailbox.
pub(super) fn broadcast() -> Way {
    Way { exchange: MAILBOXES.into(), routing_key: ShortString::default(), place: Place::Mailboxes }
}

/// Not durable, as for Celery: who listens declares it.
pub(super) async fn declare_mailboxes(declarer: &mut Declarer<'_>) -> Result<(), BrokerError> {
    let exchange = Exchange { name: MAILBOXES.to_owned(), kind: ExchangeKind::Fanout };
    declarer.exchange_as(&exchange, ExchangeDeclareOptions::default()).await
}

impl Inbox {
    /// Exclusive, as Celery declares it and as RabbitMQ 4 wants queues that are not durable.
    ///
    /// # Errors
    /// For a name that is too long.
    pub fn mailbox(node: &str) -> Result<Self, BrokerError> {
        let mut arguments = FieldTable::default();
        arguments.insert("x-expires".into(), MAILBOX_EXPIRES.into());
        arguments.insert("x-message-ttl".into(), BROADCAST_LIVES.into());
        Ok(Self {
            queue: declare::queue_name(&format!("{node}.{MAILBOXES}"))?,
            options: QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() },
            arguments,
            is_mailbox: true,
        })
    }

    /// Under a name that nobody else has.
    pub fn replies() -> Self {
        let mut arguments = FieldTable::default();
        arguments.insert("x-expires".into(), REPLIES_EXPIRE.into());
        Self {
            queue: Uuid::new_v4().to_string().into(),
            options: QueueDeclareOptions { durable: true, auto_delete: true, ..Default::default() },
            arguments,
            is_mailbox: false,
        }
    }

    pub fn name(&self) -> &str {
        self.queue.as_str()
    }

    /// Make the queue and leave the rest to a task, which makes it anew after a lost connection.
    pub async fn open(self, link: Arc<Link>, patience: Patience) -> Result<Consumer, BrokerError> {
        let open = patiently(patience, || self.try_open(&link)).await?;
        if open.is_none() {
            tracing::warn!(
                queue = self.name(),
                "another process reads this mailbox; give each worker on a host a node name of its own"
            );
        }
        let (sender, deliveries) = mpsc::channel(usize::from(BUFFERED));
        let cancelled = CancellationToken::new();
        let guard = cancelled.clone().drop_guard();
        let receiving = tokio::spawn(async move { self.receive(&link, open, &sender, &cancelled).await });
        Ok(Consumer::new(deliveries, guard, receiving))
    }

    /// None if somebody else has it for themselves.
    async fn try_open(&self, link: &Link) -> Result<Option<Open>, BrokerError> {
        match self.open_on(self.prepared(link).await?).await {
            Ok(open) => Ok(Some(open)),
            Err(error) if failure::is_locked(&error) => Ok(None),
            Err(error) => Err(link.explain(&error)),
        }
    }

    async fn prepared(&self, link: &Link) -> Result<Channel, BrokerError> {
        if !self.is_mailbox {
            return link.channel().await;
        }
        let mut declarer = Declarer::open(link).await?;
        declare_mailboxes(&mut declarer).await?;
        Ok(declarer.into_channel())
    }

    async fn open_on(&self, channel: Channel) -> lapin::Result<Open> {
        let (queue, none) = (self.queue.clone(), FieldTable::default);
        channel.queue_declare(queue.clone(), self.options, self.arguments.clone()).await?;
        if self.is_mailbox {
            let (exchange, key) = (MAILBOXES.into(), ShortString::default());
            channel.queue_bind(queue.clone(), exchange, key, QueueBindOptions::default(), none()).await?;
        }
        channel.basic_qos(BUFFERED, BasicQosOptions { global: false }).await?;
        let tag = ShortString::default();
        let consumer = channel.basic_consume(queue, tag, BasicConsumeOptions::default(), none()).await?;
        Ok(Open { channel, consumer })
    }

    /// Until nobody takes them any more, or the link is closed.
    async fn receive(
        &self,
        link: &Link,
        mut open: Option<Open>,
        deliveries: &mpsc::Sender<Delivery>,
        cancelled: &CancellationToken,
    ) {
        let queue: Arc<str> = self.name().into();
        let mut backoff = Backoff::default();
        loop {
            let begun = Instant::now();
            if let Some(mut session) = open {
                let ended = cancelled.run_until_cancelled(hand_over(&mut session, &queue, deliveries)).await;
                if !matches!(ended, Some(Ok(()))) {
                    return session.end().await;
                }
                tracing::warn!(url = link.url(), queue = &*queue, "reading again; what was on its way may be lost");
            }
            let reopened = cancelled.run_until_cancelled(async {
                tokio::time::sleep(backoff.pause_after(begun.elapsed())).await;
                patiently(Patience::Forever, || self.try_open(link)).await
            });
            open = match reopened.await {
                None | Some(Err(BrokerError::Closed { .. })) => return,
                Some(Ok(open)) => open,
                Some(Err(error)) => return tracing::error!(%error, queue = &*queue, "the mailbox is given up"),
            };
        }
    }
}

impl Open {
    /// With its last consumer goes the queue, before whoever cancelled this makes another of the same name.
    async fn end(self) {
        // A server that does not answer has lost the connection, or ends the channel when this one is dropped.
        let _ = timeout(GOODBYE_WITHIN, self.channel.close(200, "OK".into())).await;
    }
}

/// There is nobody to hand anything over to.
struct Gone;

/// Until the session ends. The acks only bound what is on its way to us, which nothing would else.
async fn hand_over(open: &mut Open, queue: &Arc<str>, deliveries: &mpsc::Sender<Delivery>) -> Result<(), Gone> {
    let Open { channel, consumer } = open;
    while let Some(Ok(arrival)) = consumer.next().await {
        let (headers, properties) = properties::from_amqp(&arrival.properties);
        let message = Message { headers, properties, body: Bytes::from(arrival.data) };
        let (exchange, key) = (arrival.exchange.as_str(), arrival.routing_key.as_str());
        let delivery = Delivery::settled(message, queue.clone()).routed(exchange, key);
        deliveries.send(delivery).await.map_err(|_| Gone)?;
        if channel.basic_ack(arrival.delivery_tag, BasicAckOptions::default()).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
