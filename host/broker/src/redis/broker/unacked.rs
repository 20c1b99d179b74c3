//! What is in somebody's hands: kombu's `unacked` and `unacked_index`, and which of it is ours.
//!
//! A delivery is ours for as long as its score is renewed; whoever finds a score that is older than the visibility
//! timeout, kombu or rtask, puts the message back. Each step here is one script, so that nothing is between two places;
//! as in `claim`, whatever could fail is read before anything is written.
//! The delivery tags are our own: kombu takes the message's, which two queues of one exchange share.

use std::{
    collections::BTreeSet,
    sync::{
        LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{Script, ScriptInvocation};
use uuid::Uuid;

use super::{
    super::link::Link,
    envelope::{self, Again},
    keys::Keys,
};
use crate::{BrokerError, Patience};

/// So many messages are put back, and so many leases renewed, by one command.
const PUT_BACK_AT_ONCE: usize = 64;
const RENEWED_AT_ONCE: usize = 1_000;

/// Take the tags ARGV out of everybody's hands. Answers for each whether it was in somebody's.
static REMOVE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local removed = {}
        for index, tag in ipairs(ARGV) do
            redis.call('ZREM', KEYS[2], tag)
            removed[index] = redis.call('HDEL', KEYS[1], tag)
        end
        return removed",
    )
});

/// Push messages to the end that is served next. ARGV has four for each: its tag, the score above which it stays where
/// it is (empty for none), the message, and how many of KEYS[3..] are its lists. Answers for each whether it was moved.
static PUT_BACK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local moved, list = {}, 3
        for index = 1, #ARGV, 4 do
            local tag, limit, message, lists = unpack(ARGV, index, index + 3)
            local score = redis.call('ZSCORE', KEYS[2], tag)
            local found = 0
            for target = list, list + lists - 1 do
                redis.call('LLEN', KEYS[target])
            end
            if limit == '' or (score and tonumber(score) <= tonumber(limit)) then
                redis.call('ZREM', KEYS[2], tag)
                found = redis.call('HDEL', KEYS[1], tag)
            end
            for target = list, list + lists - 1 do
                if found == 1 then
                    redis.call('RPUSH', KEYS[target], message)
                end
            end
            list = list + lists
            moved[#moved + 1] = found
        end
        return moved",
    )
});

/// Move the delivery ARGV[1] to what is put aside until ARGV[2], as ARGV[3] with the value ARGV[4]. Answers whether it
/// was in somebody's hands.
static POSTPONE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        redis.call('ZCARD', KEYS[3])
        redis.call('HLEN', KEYS[4])
        redis.call('ZREM', KEYS[2], ARGV[1])
        if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then
            return 0
        end
        redis.call('HSET', KEYS[4], ARGV[3], ARGV[4])
        redis.call('ZADD', KEYS[3], ARGV[2], ARGV[3])
        return 1",
    )
});

/// Set the scores of the tags ARGV to now, by the server's clock, unless somebody has put them back.
static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local time = redis.call('TIME')
        local now = time[1] .. '.' .. string.format('%06d', time[2])
        for _, tag in ipairs(ARGV) do
            redis.call('ZADD', KEYS[1], 'XX', now, tag)
        end
        return redis.status_reply('OK')",
    )
});

/// Write ARGV[2] over the entry of the tag ARGV[1], if it is still there.
static AMEND: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then
            redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
        end
        return redis.status_reply('OK')",
    )
});

/// One delivery of ours. They sort as they were claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tag {
    pub claim: u64,
    /// Within the claim, 1 for the first.
    pub number: u32,
}

/// The room of one broker in `unacked`.
pub(super) struct Unacked {
    pub link: Link,
    pub keys: Keys,
    pub visibility_timeout: Duration,
    /// A verdict is carried out for so long.
    pub settled_within: Duration,
    /// Begins this broker's tags.
    holder: String,
    claims: AtomicU64,
    held: Mutex<BTreeSet<Tag>>,
}

/// A message on its way back, and where to.
pub(super) struct Return {
    pub tag: String,
    /// If its score is above, it is left alone.
    pub limit: Option<String>,
    pub element: Vec<u8>,
    pub lists: Vec<String>,
}

impl Unacked {
    pub fn new(link: Link, keys: Keys, visibility_timeout: Duration, patience: Patience) -> Self {
        let settled_within = match patience {
            Patience::FailFast => link.within(),
            // Until then nobody else can have it, so it is worth the trouble.
            Patience::Forever => link.within().max(visibility_timeout),
        };
        let (holder, claims, held) = (Uuid::new_v4().to_string(), AtomicU64::new(0), Mutex::default());
        Self { link, keys, visibility_timeout, settled_within, holder, claims, held }
    }

    pub fn next_claim(&self) -> u64 {
        self.claims.fetch_add(1, Ordering::Relaxed)
    }

    /// How a claim's tags begin; a colon and the number follow.
    pub fn claim_name(&self, claim: u64) -> String {
        format!("{}:{claim}", self.holder)
    }

    fn name(&self, tag: Tag) -> String {
        format!("{}:{}", self.claim_name(tag.claim), tag.number)
    }

    pub fn hold(&self, tag: Tag) {
        self.held().insert(tag);
    }

    pub fn is_held(&self, tag: Tag) -> bool {
        self.held().contains(&tag)
    }

    /// Its lease is renewed no more. Answers whether it was.
    pub fn forget(&self, tag: Tag) -> bool {
        self.held().remove(&tag)
    }

    /// Whether a name in `unacked_index` is of a delivery of ours that is renewed.
    pub fn is_ours(&self, name: &str) -> bool {
        let numbers = name.strip_prefix(&self.holder).and_then(|rest| rest.strip_prefix(':')?.split_once(':'));
        let tag =
            numbers.and_then(|(claim, number)| Some(Tag { claim: claim.parse().ok()?, number: number.parse().ok()? }));
        tag.is_some_and(|tag| self.is_held(tag))
    }

    fn held(&self) -> MutexGuard<'_, BTreeSet<Tag>> {
        // No code panics while it holds the lock.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call of `script` on the two keys.
    pub fn call<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let mut call = script.prepare_invoke();
        call.key(self.keys.unacked()).key(self.keys.unacked_index());
        call
    }

    /// Renew the lease of everything that is ours.
    pub async fn renew(&self) -> Result<(), BrokerError> {
        let held: Vec<Tag> = self.held().iter().copied().collect();
        for tags in held.chunks(RENEWED_AT_ONCE) {
            let mut renewing = RENEW.prepare_invoke();
            renewing.key(self.keys.unacked_index());
            tags.iter().for_each(|&tag| _ = renewing.arg(self.name(tag)));
            self.link.run::<redis::Value>(&renewing).await?;
        }
        Ok(())
    }

    /// Let go of deliveries, in a single attempt: for each whether it was still in `unacked`.
    pub async fn remove(&self, tags: &[Tag]) -> Result<Vec<bool>, BrokerError> {
        let mut removing = self.call(&REMOVE);
        tags.iter().for_each(|&tag| _ = removing.arg(self.name(tag)));
        self.link.invoke(&removing).await
    }

    /// Put deliveries back into their queues, in a single attempt: for each whether it was still in `unacked`. The one
    /// that was claimed first is served first again.
    pub async fn requeue(&self, tags: &[Tag]) -> Result<Vec<bool>, BrokerError> {
        let mut order: Vec<usize> = (0..tags.len()).collect();
        order.sort_by_key(|&index| std::cmp::Reverse(tags[index]));
        let mut requeued = vec![false; tags.len()];
        for chunk in order.chunks(PUT_BACK_AT_ONCE) {
            let names: Vec<String> = chunk.iter().map(|&index| self.name(tags[index])).collect();
            let mut reading = redis::pipe();
            reading.cmd("HMGET").arg(self.keys.unacked()).arg(&names);
            let (entries,): (Vec<Option<Vec<u8>>>,) = self.link.ask(&reading).await?;
            let returns =
                names.into_iter().zip(&entries).filter_map(|(name, entry)| self.returned(name, entry.as_deref()?));
            let moved = self.put_back(&returns.collect::<Vec<_>>()).await?;
            let found = chunk.iter().zip(&entries).filter(|(_, entry)| entry.is_some());
            found.zip(moved).for_each(|((&index, _), moved)| requeued[index] = moved);
        }
        Ok(requeued)
    }

    /// An entry that we wrote names its queue as the default exchange's routing key.
    fn returned(&self, tag: String, entry: &[u8]) -> Option<Return> {
        let entry = envelope::read_unacked(entry)?;
        let Again { element, priority } = envelope::mark_redelivered(entry.element);
        let lists = vec![self.keys.list(&entry.routing.routing_key, priority)];
        Some(Return { tag, limit: None, element, lists })
    }

    /// In a single attempt: for each whether it was moved.
    pub async fn put_back(&self, returns: &[Return]) -> Result<Vec<bool>, BrokerError> {
        if returns.is_empty() {
            return Ok(Vec::new());
        }
        let mut putting_back = self.call(&PUT_BACK);
        for Return { tag, limit, element, lists } in returns {
            lists.iter().for_each(|list| _ = putting_back.key(list));
            putting_back.arg(tag).arg(limit.as_deref().unwrap_or_default()).arg(&element[..]).arg(lists.len());
        }
        self.link.invoke(&putting_back).await
    }

    /// Put everything back that is ours.
    pub async fn requeue_all(&self) -> Result<(), BrokerError> {
        let held = std::mem::take(&mut *self.held());
        let held: Vec<Tag> = held.into_iter().collect();
        self.requeue(&held).await.map(drop)
    }

    /// In a single attempt: whether it was still in `unacked`.
    pub async fn postpone(&self, tag: Tag, queue: &str, aside: &Aside) -> Result<bool, BrokerError> {
        let mut postponing = self.call(&POSTPONE);
        postponing.key(self.keys.postponed(queue)).key(self.keys.postponed_messages(queue));
        postponing.arg(self.name(tag)).arg(aside.until).arg(&aside.name).arg(&aside.value);
        self.link.invoke(&postponing).await
    }

    /// Write `element` over what is held as `tag`.
    pub async fn amend(&self, tag: Tag, queue: &str, element: &str) -> Result<(), BrokerError> {
        let mut amending = self.call(&AMEND);
        amending.arg(self.name(tag)).arg(format!("[{element}{}", envelope::unacked_end(queue)));
        self.link.run::<redis::Value>(&amending).await.map(drop)
    }
}

/// A message that is put aside.
pub(super) struct Aside {
    pub name: String,
    /// Milliseconds since 1970.
    pub until: i64,
    pub value: String,
}
