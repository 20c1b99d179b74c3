//! Receiving: a session is one channel with a consumer on each queue, and a lost session is followed by another.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, future, stream, stream::BoxStream};
use jiff::Timestamp;
use lapin::{
    Channel,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions},
    types::{AMQPValue, DeliveryTag, FieldTable, ShortString},
};
use rtask_protocol::Message;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    declare::{self, Declarer, QueueKind},
    delay,
    link::Link,
    properties,
    publish::Publisher,
    settle::Settler,
};
use crate::{
    Attempts, BrokerError, Consumer, Delivery, Patience, Queue, Receipt, Subscription, Verdict, backoff::Backoff,
    connect::patiently,
};

/// The header in which quorum queues count earlier deliveries.
const DELIVERY_COUNT: &str = "x-delivery-count";
/// Deliveries that wait for the worker where there is no prefetch to bound them; further ones wait in lapin.
const UNBOUNDED: usize = 1_024;
/// The longest that cancelling waits for the server; its channel's end returns what is left.
const CANCEL_WITHIN: Duration = Duration::from_secs(5);

/// Open the first session and leave the rest to a task.
pub(super) async fn start(ends: Ends, subscription: Subscription, patience: Patience) -> Result<Consumer, BrokerError> {
    let session = patiently(patience, || Session::open(&ends, &subscription)).await?;
    // The broker sends no more than this before something is settled.
    let capacity = match usize::from(subscription.prefetch) {
        0 => UNBOUNDED,
        prefetch => prefetch * subscription.queues.len().max(1),
    };
    let (sender, deliveries) = mpsc::channel(capacity);
    let cancelled = CancellationToken::new();
    let guard = cancelled.clone().drop_guard();
    let receiving = tokio::spawn(receive(ends, subscription, session, sender, cancelled));
    Ok(Consumer::new(deliveries, guard, receiving))
}

/// Both ends of a message's way: a delivery may have to be published again.
#[derive(Clone)]
pub(super) struct Ends {
    pub receiving: Arc<Link>,
    pub publisher: Arc<Publisher>,
}

async fn receive(
    ends: Ends,
    subscription: Subscription,
    mut session: Session,
    deliveries: mpsc::Sender<Delivery>,
    cancelled: CancellationToken,
) {
    let mut backoff = Backoff::default();
    let mut begun = Instant::now();
    while let End::Lost(reason) = session.feed(&deliveries, &cancelled).await {
        let pause = backoff.pause_after(begun.elapsed());
        tracing::warn!(url = ends.receiving.url(), reason, ?pause, "consuming again");
        session.end().await;
        let reopened = cancelled.run_until_cancelled(async {
            tokio::time::sleep(pause).await;
            patiently(Patience::Forever, || Session::open(&ends, &subscription)).await
        });
        session = match reopened.await {
            None | Some(Err(BrokerError::Closed { .. })) => return,
            Some(Ok(session)) => session,
            Some(Err(error)) => return tracing::error!(%error, "the consumer is given up"),
        };
        begun = Instant::now();
    }
    session.end().await;
}

/// Why a session delivers no more.
enum End {
    Cancelled,
    Lost(String),
}

/// A message and the index of its queue, or why there are no more.
type Arrival = Result<(lapin::message::Delivery, usize), String>;

struct Session {
    link: Arc<Link>,
    channel: Arc<Channel>,
    sources: Vec<Source>,
    tags: Vec<ShortString>,
    arrivals: stream::SelectAll<BoxStream<'static, Arrival>>,
}

impl Session {
    async fn open(ends: &Ends, subscription: &Subscription) -> Result<Self, BrokerError> {
        let Ends { receiving: link, publisher } = ends;
        let mut kinds = Vec::with_capacity(subscription.queues.len());
        let mut declarer = Declarer::open(link).await?;
        for queue in &subscription.queues {
            kinds.push(declarer.queue(queue).await?);
        }
        delay::let_come(link, &subscription.queues, kinds.contains(&QueueKind::Quorum)).await;
        let channel = Arc::new(link.channel().await?);
        if subscription.prefetch > 0 {
            let qos = BasicQosOptions { global: false };
            channel.basic_qos(subscription.prefetch, qos).await.map_err(|error| link.explain(&error))?;
        }
        let settler = Settler::new(channel.clone(), link.clone());
        let source = |(queue, kind): (&Queue, QueueKind)| {
            let (settler, publisher) = (settler.clone(), publisher.clone());
            Source { queue: queue.name.as_str().into(), kind, settler, publisher }
        };
        let sources = subscription.queues.iter().zip(kinds).map(source).collect();
        let (link, tags, arrivals) = (link.clone(), Vec::new(), stream::SelectAll::new());
        let mut session = Self { link, channel, sources, tags, arrivals };
        for index in 0..session.sources.len() {
            session.consume(index, &subscription.tag).await?;
        }
        Ok(session)
    }

    async fn consume(&mut self, index: usize, tag: &str) -> Result<(), BrokerError> {
        let queue = declare::queue_name(&self.sources[index].queue)?;
        // Tags are unique on a channel.
        let tag = if self.sources.len() == 1 { tag.to_owned() } else { format!("{tag}/{queue}") };
        let tag = ShortString::try_new(tag).map_err(|error| BrokerError::unsendable(format!("tag: {error}")))?;
        let consumer = self
            .channel
            .basic_consume(queue, tag, BasicConsumeOptions::default(), FieldTable::default())
            .await
            .map_err(|error| self.link.explain(&error))?;
        self.tags.push(consumer.tag());
        let queue = self.sources[index].queue.clone();
        let ended = move || Err(format!("the broker cancelled the consumer of queue `{queue}`"));
        let arrivals = consumer.map(move |arrival| match arrival {
            Ok(message) => Ok((message, index)),
            Err(error) => Err(error.to_string()),
        });
        self.arrivals.push(arrivals.chain(stream::once(future::lazy(move |_| ended()))).boxed());
        Ok(())
    }

    async fn feed(&mut self, deliveries: &mpsc::Sender<Delivery>, cancelled: &CancellationToken) -> End {
        loop {
            let arrival = tokio::select! {
                biased;
                () = cancelled.cancelled() => return End::Cancelled,
                arrival = self.arrivals.next() => arrival,
            };
            match arrival {
                Some(Ok((message, index))) => {
                    if deliveries.send(self.sources[index].delivery(message)).await.is_err() {
                        return End::Cancelled;
                    }
                }
                Some(Err(reason)) => return End::Lost(reason),
                None => return End::Lost("there is no queue to consume".to_owned()),
            }
        }
    }

    /// Stop the server from sending, and give back what it has sent meanwhile. The channel stays open for what
    /// was delivered before, until that is settled.
    async fn end(&mut self) {
        let _ = timeout(CANCEL_WITHIN, async {
            for tag in self.tags.drain(..) {
                // If the channel is gone, so are its consumers.
                let _ = self.channel.basic_cancel(tag, BasicCancelOptions::default()).await;
            }
            while let Some(arrival) = self.arrivals.next().await {
                if let Ok((message, _)) = arrival {
                    let requeue = BasicRejectOptions { requeue: true };
                    let _ = self.channel.basic_reject(message.delivery_tag, requeue).await;
                }
            }
        })
        .await;
    }
}

/// Where deliveries come from, and how they are settled there.
pub(super) struct Source {
    pub queue: Arc<str>,
    pub kind: QueueKind,
    pub settler: Arc<Settler>,
    pub publisher: Arc<Publisher>,
}

impl Source {
    /// Our delivery from lapin's.
    pub fn delivery(&self, delivered: lapin::message::Delivery) -> Delivery {
        let attempts = attempts(&delivered, self.kind);
        let (headers, properties) = properties::from_amqp(&delivered.properties);
        let message = Message { headers, properties, body: Bytes::from(delivered.data) };
        let queue = self.queue.clone();
        let receipt = AmqpReceipt {
            settler: self.settler.clone(),
            publisher: self.publisher.clone(),
            tag: delivered.delivery_tag,
            queue: queue.clone(),
        };
        Delivery::new(message, queue, attempts, Box::new(receipt))
            .routed(delivered.exchange.as_str(), delivered.routing_key.as_str())
    }
}

/// Only a quorum queue's count is believed: on any other the header is whatever the publisher wrote, and a
/// message could claim for ever that it was never tried.
fn attempts(delivered: &lapin::message::Delivery, kind: QueueKind) -> Attempts {
    match (kind, delivered.redelivered) {
        (QueueKind::Other, false) => Attempts::First,
        (QueueKind::Other, true) => Attempts::Again,
        (QueueKind::Quorum, false) => Attempts::Number(1),
        (QueueKind::Quorum, true) => Attempts::Number(earlier_deliveries(delivered).saturating_add(1)),
    }
}

fn earlier_deliveries(delivered: &lapin::message::Delivery) -> u32 {
    let headers = delivered.properties.headers().as_ref();
    let count = match headers.and_then(|headers| headers.inner().get(DELIVERY_COUNT)) {
        Some(AMQPValue::LongLongInt(count)) => *count,
        Some(AMQPValue::LongInt(count)) => i64::from(*count),
        Some(AMQPValue::ShortInt(count)) => i64::from(*count),
        Some(AMQPValue::ShortShortInt(count)) => i64::from(*count),
        Some(AMQPValue::ShortShortUInt(count)) => i64::from(*count),
        _ => 1,
    };
    // It was redelivered, so at least once.
    u32::try_from(count.max(1)).unwrap_or(u32::MAX)
}

struct AmqpReceipt {
    settler: Arc<Settler>,
    publisher: Arc<Publisher>,
    tag: DeliveryTag,
    queue: Arc<str>,
}

#[async_trait]
impl Receipt for AmqpReceipt {
    async fn settle(&self, verdict: Verdict) -> Result<(), BrokerError> {
        self.settler.settle(&self.queue, self.tag, verdict).await
    }

    async fn postpone(&self, message: &Message, until: Timestamp) -> Result<(), BrokerError> {
        let way = delay::way(&self.queue, delay::seconds_until(until, Timestamp::now()))?;
        self.publisher.publish(&way, &delay::parcel(message)).await?;
        self.settle(Verdict::Ack).await
    }
}
