//! Fanout exchanges: what is published to one is told on a channel and kept for nobody (`Channel._put_fanout`), so
//! whoever consumes a queue that is bound to one has to listen.
//!
//! AMQP has a queue get each message once, whoever consumes it and whether anybody does. Here, rtask's publishers push
//! to the queues that are bound for good, and tell kombu's consumers. What kombu publishes is pushed by the consumers
//! that hear it, each queue's by the first of them.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use redis::Script;
use tokio_util::sync::CancellationToken;

use super::{
    envelope::{self, Opened},
    listener,
    unacked::Unacked,
};
use crate::{BrokerError, ExchangeKind, Queue, Routing};

/// Consumers of one queue hear of a message within so long of each other.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Push ARGV[1] to those of the lists KEYS[2], KEYS[4].. whose KEYS[1], KEYS[3].. do not say that they have it, which
/// they do for ARGV[2] milliseconds then.
static PUSH_ONCE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        for index = 1, #KEYS, 2 do
            if redis.call('SET', KEYS[index], 1, 'NX', 'PX', ARGV[2]) then
                redis.call('LPUSH', KEYS[index + 1], ARGV[1])
            end
        end
        return redis.status_reply('OK')",
    )
});

/// Publish to a fanout exchange. Answers whether anybody got it.
pub(super) async fn publish(unacked: &Unacked, routing: &Routing, element: &str) -> Result<bool, BrokerError> {
    let mut reading = redis::pipe();
    reading.smembers(unacked.keys.fanout_queues(&routing.exchange));
    let (queues,): (Vec<String>,) = unacked.link.ask(&reading).await?;
    push(unacked, &queues, element.as_bytes()).await?;
    let heard = tell(unacked, routing, element).await?;
    Ok(heard > 0 || !queues.is_empty())
}

/// Tell those who listen, and answer how many do.
pub(super) async fn tell(unacked: &Unacked, routing: &Routing, element: &str) -> Result<u64, BrokerError> {
    let mut publishing = redis::pipe();
    publishing.publish(unacked.keys.topic(&routing.exchange, &routing.routing_key), element);
    let (heard,): (u64,) = unacked.link.ask(&publishing).await?;
    Ok(heard)
}

async fn push(unacked: &Unacked, queues: &[String], element: &[u8]) -> Result<(), BrokerError> {
    let Opened { message, .. } = envelope::open(element);
    let Some(tag) = envelope::delivery_tag(element).filter(|_| !queues.is_empty()) else {
        return Ok(());
    };
    let mut pushing = PUSH_ONCE.prepare_invoke();
    for queue in queues {
        let list = unacked.keys.list(queue, message.properties.priority);
        pushing.key(unacked.keys.fanned_out(queue, &tag)).key(list);
    }
    pushing.arg(element).arg(REMEMBERED.as_millis().to_string());
    unacked.link.run::<redis::Value>(&pushing).await.map(drop)
}

/// Hear what is published to the fanout exchanges that `queue` is bound to, from the answer on until `over`.
pub(super) async fn relay(unacked: &Arc<Unacked>, queue: &Queue, over: &CancellationToken) -> Result<(), BrokerError> {
    let fanout = queue.bindings.iter().filter(|binding| binding.exchange.kind == ExchangeKind::Fanout);
    let mut patterns: Vec<String> =
        fanout.flat_map(|binding| unacked.keys.topic_patterns(&binding.exchange.name)).collect();
    patterns.sort_unstable();
    patterns.dedup();
    if patterns.is_empty() {
        return Ok(());
    }
    let mut heard = listener::listen(unacked.link.address().clone(), patterns, over.clone()).await?;
    let (unacked, queue) = (unacked.clone(), [queue.name.clone()]);
    tokio::spawn(async move {
        while let Some(element) = heard.recv().await {
            if let Err(error) = push(&unacked, &queue, &element).await {
                tracing::warn!(%error, queue = queue[0], "a message of a fanout exchange is lost to its queue");
            }
        }
    });
    Ok(())
}
