//! The [`Broker`] port on Redis, compatible with kombu 5.7's transport in both directions (`kombu/transport/redis.py`;
//! golden/02_redis_transport). It needs Redis 6.2, as kombu does, or Valkey.
//!
//! Read `keys` and `envelope` first, what kombu has agreed on; then `unacked` (what is in our hands), `claim` (how it
//! comes there), `feed` with `watch` (how a consumer waits), `settle` (how it leaves) and `keeper` (leases, and what dead
//! workers held). `publish`, `bindings`, `fanout` (with `listener`)
//! and `mailbox` are the other direction.

use std::{
    sync::{Arc, LazyLock, Once},
    time::Duration,
};

use async_trait::async_trait;
use redis::Script;
use rtask_protocol::Message;
use tokio::{sync::mpsc, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use super::link::Link;
use crate::{
    Broker, BrokerError, Consumer, Delivery, Publication, Queue, QueueStats, Subscription, Transport,
    connect::patiently,
    limits::{check_length, check_queue_name},
};

mod bindings;
mod claim;
mod envelope;
mod fanout;
mod feed;
mod keeper;
mod keys;
mod listener;
mod mailbox;
mod publish;
mod settle;
mod unacked;
mod watch;

use feed::{Feed, Manner};
use keys::Keys;
use publish::Publisher;
use settle::Settler;
use unacked::Unacked;

/// How long [`Broker::close`] waits for consumers to end, and then for what they held to go back.
const GOODBYE_WITHIN: Duration = Duration::from_secs(2);
/// So many deliveries wait for a consumer without a prefetch limit.
const UNLIMITED: usize = 1_024;
/// What is in somebody's hands is counted by queue up to so many messages and bytes; beyond, nobody knows: nobody else
/// is served meanwhile.
const COUNTED: usize = 10_000;
const COUNTED_BYTES: usize = 16 << 20;

/// How many entries of KEYS[1] end with one of ARGV[3..]; nil if there are more than ARGV[1] in all, or if they have more
/// than ARGV[2] bytes.
static COUNT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        if redis.call('HLEN', KEYS[1]) > tonumber(ARGV[1]) then
            return false
        end
        local tags, bytes, count = redis.call('HKEYS', KEYS[1]), tonumber(ARGV[2]), 0
        for _, tag in ipairs(tags) do
            bytes = bytes - redis.call('HSTRLEN', KEYS[1], tag)
        end
        if bytes < 0 then
            return false
        end
        for _, tag in ipairs(tags) do
            local entry = redis.call('HGET', KEYS[1], tag)
            for ending = 3, #ARGV do
                if string.sub(entry, -#ARGV[ending]) == ARGV[ending] then
                    count = count + 1
                end
            end
        end
        return count",
    )
});

/// A broker in Redis, shared with kombu.
pub struct RedisBroker {
    unacked: Arc<Unacked>,
    settler: Settler,
    publisher: Publisher,
    keeping: Once,
    /// What receives.
    feeds: TaskTracker,
    closed: CancellationToken,
}

impl RedisBroker {
    /// Connect to `url`; see [`super::SCHEMES`].
    ///
    /// # Errors
    /// See [`crate::connect_broker`].
    pub async fn connect(url: &str, transport: &Transport) -> Result<Self, BrokerError> {
        let link = Link::new(url, transport)?;
        patiently(transport.patience, || link.connect()).await?;
        let database = link.address().database();
        let keys = Keys::new(transport.key_prefix.clone(), database, transport.priority_steps.clone());
        let unacked = Arc::new(Unacked::new(link, keys, transport.visibility_timeout, transport.patience));
        Ok(Self {
            settler: Settler::new(unacked.clone()),
            publisher: Publisher::new(unacked.clone()),
            unacked,
            keeping: Once::new(),
            feeds: TaskTracker::new(),
            closed: CancellationToken::new(),
        })
    }

    /// Only those who receive have leases to keep.
    fn keep(&self) {
        self.keeping.call_once(|| {
            tokio::spawn(keeper::keep(Arc::downgrade(&self.unacked), self.closed.clone()));
        });
    }

    fn check_open(&self) -> Result<(), BrokerError> {
        match self.closed.is_cancelled() {
            true => Err(BrokerError::Closed { url: self.unacked.link.url().to_owned() }),
            false => Ok(()),
        }
    }

    /// Declare what a consumer needs, and keep it for as long as it consumes.
    async fn prepare(&self, queue: &Queue, over: &CancellationToken) -> Result<(), BrokerError> {
        bindings::bind(&self.unacked, queue).await?;
        if let Some(expiry) = bindings::expiry(queue) {
            tokio::spawn(keep_queue(self.unacked.clone(), queue.clone(), expiry, over.clone()));
        }
        fanout::relay(&self.unacked, queue, over).await
    }

    fn feed(&self, manner: Manner, queues: &[String], prefetch: u16, over: CancellationToken) -> Consumer {
        self.keep();
        let capacity = match prefetch {
            0 => UNLIMITED,
            prefetch => usize::from(prefetch) * queues.len().max(1),
        };
        let (sender, deliveries) = mpsc::channel(capacity);
        let feed = Feed::new(&self.settler, manner, queues, prefetch, sender, over.clone());
        let receiving = self.feeds.spawn(feed.run());
        Consumer::new(deliveries, over.drop_guard(), receiving)
    }
}

/// A queue that expires lives for as long as it is consumed, and for its time after that.
async fn keep_queue(unacked: Arc<Unacked>, queue: Queue, expiry: Duration, over: CancellationToken) {
    let mut ticks = tokio::time::interval((expiry / 3).max(Duration::from_millis(1)));
    let lists = unacked.keys.lists(&queue.name);
    let milliseconds = i64::try_from(expiry.as_millis()).unwrap_or(i64::MAX);
    while over.run_until_cancelled(ticks.tick()).await.is_some() {
        let mut keeping = redis::pipe();
        lists.iter().for_each(|list| _ = keeping.pexpire(list, milliseconds).ignore());
        let kept = unacked.link.ask::<()>(&keeping).await;
        if let Err(error) = kept.and(bindings::keep(&unacked, &queue, expiry).await) {
            tracing::warn!(%error, queue = queue.name, "the queue is not kept from expiring yet");
        }
    }
}

#[async_trait]
impl Broker for RedisBroker {
    async fn publish(&self, publication: Publication) -> Result<(), BrokerError> {
        self.check_open()?;
        self.publisher.publish(&publication).await
    }

    async fn consume(&self, subscription: Subscription) -> Result<Consumer, BrokerError> {
        self.check_open()?;
        let Subscription { queues, prefetch, tag: _ } = subscription;
        queues.iter().try_for_each(|queue| check_queue_name(&queue.name))?;
        let over = self.closed.child_token();
        // Whatever was begun ends if something fails.
        let guard = over.clone().drop_guard();
        for queue in &queues {
            self.prepare(queue, &over).await?;
        }
        let queues: Vec<String> = queues.into_iter().map(|queue| queue.name).collect();
        Ok(self.feed(Manner::Held, &queues, prefetch, guard.disarm()))
    }

    async fn declare(&self, queue: &Queue) -> Result<(), BrokerError> {
        self.check_open()?;
        check_queue_name(&queue.name)?;
        bindings::bind(&self.unacked, queue).await
    }

    async fn inspect(&self, queue: &str) -> Result<Option<QueueStats>, BrokerError> {
        self.check_open()?;
        let Unacked { link, keys, .. } = &*self.unacked;
        let mut asking = redis::pipe();
        asking.exists(keys.bindings(queue)).zcard(keys.postponed(queue));
        keys.lists(queue).iter().for_each(|list| _ = asking.llen(list));
        let numbers: Vec<u64> = link.ask(&asking).await?;
        let [is_bound, postponed, waiting @ ..] = &numbers[..] else { return Ok(None) };
        let messages = waiting.iter().sum();
        let mut counting = COUNT.prepare_invoke();
        counting.key(keys.unacked()).arg(COUNTED).arg(COUNTED_BYTES).arg(envelope::unacked_end(queue));
        // As kombu writes what came through the exchange of the queue's own name.
        counting.arg(envelope::routed_end(queue, queue));
        let unacked: Option<u64> = link.run(&counting).await?;
        let exists = *is_bound > 0 || *postponed > 0 || messages > 0 || unacked.is_some_and(|unacked| unacked > 0);
        Ok(exists.then_some(QueueStats { messages, unacked, postponed: Some(*postponed), consumers: None }))
    }

    async fn take(&self, queue: &str) -> Result<Option<Delivery>, BrokerError> {
        self.check_open()?;
        check_queue_name(queue)?;
        self.keep();
        let (settler, queue) = (self.settler.clone(), Arc::<str>::from(queue));
        // To its end, even if nobody waits for it any more: what was claimed unheard would be held until its lease ends.
        let claiming = self.feeds.spawn(async move {
            let claimed = settler.unacked.claim_one(&queue).await?;
            Ok(claimed.map(|claimed| feed::delivery(claimed, queue, &settler, None)))
        });
        let broken_off = |reason: String| BrokerError::Failed { url: self.unacked.link.url().to_owned(), reason };
        claiming.await.unwrap_or_else(|error| Err(broken_off(error.to_string())))
    }

    async fn purge(&self, queue: &str) -> Result<u64, BrokerError> {
        self.check_open()?;
        let mut purging = redis::pipe();
        purging.atomic();
        for list in self.unacked.keys.lists(queue) {
            // A long list is freed aside.
            purging.llen(&list).unlink(&list).ignore();
        }
        let waiting: Vec<u64> = self.unacked.link.ask(&purging).await?;
        Ok(waiting.iter().sum())
    }

    async fn listen(&self, node: &str) -> Result<Consumer, BrokerError> {
        self.check_open()?;
        check_length("a node's name", node)?;
        mailbox::listen(&self.unacked, node, self.closed.child_token()).await
    }

    async fn broadcast(&self, message: Message) -> Result<(), BrokerError> {
        self.check_open()?;
        mailbox::broadcast(&self.unacked, &message).await
    }

    async fn reply_queue(&self) -> Result<(String, Consumer), BrokerError> {
        self.check_open()?;
        let (name, over) = (Uuid::new_v4().to_string(), self.closed.child_token());
        let consumer = self.feed(Manner::Settled, std::slice::from_ref(&name), 0, over.clone());
        let (unacked, lists) = (self.unacked.clone(), self.unacked.keys.lists(&name));
        self.feeds.spawn(async move {
            over.cancelled().await;
            let mut deleting = redis::pipe();
            deleting.del(lists).ignore();
            // Otherwise what was sent goes when its time is over.
            let _ = timeout(GOODBYE_WITHIN, unacked.link.ask::<()>(&deleting)).await;
        });
        Ok((name, consumer))
    }

    async fn close(&self) {
        self.closed.cancel();
        self.feeds.close();
        let _ = timeout(GOODBYE_WITHIN, self.feeds.wait()).await;
        match timeout(GOODBYE_WITHIN, self.unacked.requeue_all()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "what was held goes back only when its lease runs out"),
            Err(_) => {
                tracing::warn!("what was held goes back only when its lease runs out: the server does not answer")
            }
        }
        self.unacked.link.close().await;
    }
}
