//! Taking messages out of queues and into our hands.

use std::{sync::LazyLock, time::Duration};

use jiff::Timestamp;
use redis::Script;

use super::{
    envelope::{self, Opened},
    unacked::{Tag, Unacked},
};
use crate::{BrokerError, Routing, backoff::Backoff};

/// So many messages are claimed in one go at most, and no further ones once they have so many bytes.
pub(super) const BATCH: usize = 64;
const BATCH_BYTES: usize = 4 << 20;

/// Claim messages of several queues: the highest priority's first, and the queues in turn. What is due of what was put
/// aside is moved to its queue before, as if it had just been published.
///
/// KEYS[3..] has for each queue what is put aside, its messages, and the lists by priority. ARGV is the claim's name,
/// how many messages and bytes it may take, how many lists a queue has, whether it is asked for again; and for each
/// queue what an entry of it ends with, how many messages it may take, and how its lists' names begin.
///
/// Whatever could fail is read before anything is written, and what takes is written before what gives: a script is not
/// undone when it fails, and a server that is out of memory refuses only scripts that begin by giving.
///
/// Asked again, since the answer was lost, it answers what it had claimed. The answer is whether a limit ended it, the
/// time in milliseconds, for each queue when something is due next (-1 for never), and pairs of a queue's number and a
/// message.
static CLAIM: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local unacked, scores = KEYS[1], KEYS[2]
        local claim, limit, bytes, lists = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
        local width, queues = lists + 2, (#KEYS - 2) / (lists + 2)
        local time = redis.call('TIME')
        local now = time[1] .. '.' .. string.format('%06d', time[2])
        local milliseconds = time[1] * 1000 + math.floor(time[2] / 1000)
        local claimed, due, room, ending, base = {}, {}, {}, {}, {}
        redis.call('HLEN', unacked)
        redis.call('ZCARD', scores)
        for queue = 1, queues do
            ending[queue], room[queue], base[queue] = unpack(ARGV, 3 + 3 * queue, 5 + 3 * queue)
            room[queue] = tonumber(room[queue])
        end

        if ARGV[5] == '1' then
            local number = 1
            local entry = redis.call('HGET', unacked, claim .. ':1')
            while entry do
                for queue = 1, queues do
                    if string.sub(entry, -#ending[queue]) == ending[queue] then
                        claimed[number] = {queue, string.sub(entry, 2, -1 - #ending[queue])}
                    end
                end
                number = number + 1
                entry = redis.call('HGET', unacked, claim .. ':' .. number)
            end
        end
        local is_new = #claimed == 0

        for queue = 1, queues do
            local aside, messages = KEYS[3 + (queue - 1) * width], KEYS[4 + (queue - 1) * width]
            for _, name in ipairs(redis.call('ZRANGEBYSCORE', aside, '-inf', milliseconds, 'LIMIT', 0, 100)) do
                local value = redis.call('HGET', messages, name)
                local space = value and string.find(value, ' ', 1, true)
                local list = space and base[queue] .. string.sub(value, 1, space - 1)
                if space then
                    redis.call('LLEN', list)
                end
                redis.call('ZREM', aside, name)
                redis.call('HDEL', messages, name)
                if space then
                    redis.call('LPUSH', list, string.sub(value, space + 1))
                end
            end
            local first = redis.call('ZRANGE', aside, 0, 0, 'WITHSCORES')
            due[queue] = first[2] and tonumber(first[2]) or -1
        end

        local function take(queue, list)
            local message = redis.call('RPOP', KEYS[2 + (queue - 1) * width + 2 + list])
            if not message then
                return false
            end
            local tag = claim .. ':' .. (#claimed + 1)
            redis.call('HSET', unacked, tag, '[' .. message .. ending[queue])
            redis.call('ZADD', scores, now, tag)
            claimed[#claimed + 1] = {queue, message}
            room[queue], bytes = room[queue] - 1, bytes - #message
            return true
        end

        local ended = not is_new
        for list = 1, lists do
            local found = true
            while found and not ended do
                found = false
                for queue = 1, queues do
                    ended = ended or #claimed >= limit or bytes <= 0
                    found = (not ended and room[queue] > 0 and take(queue, list)) or found
                end
            end
        end
        return {ended and 1 or 0, milliseconds, due, claimed}",
    )
});

/// As [`CLAIM`] describes it.
type Answer = (bool, i64, Vec<i64>, Vec<(usize, Vec<u8>)>);

/// What is asked of one queue.
pub(super) struct Share<'a> {
    pub queue: &'a str,
    /// How many messages are welcome; with none, only what is due is moved.
    pub room: usize,
}

/// A claim that is asked for until it is answered.
#[derive(Debug)]
pub(super) struct Claim {
    pub number: u64,
    /// Whether it was asked for before, so that the server may have carried it out.
    pub is_repeated: bool,
}

/// What became of a claim.
pub(super) struct Claimed {
    pub messages: Vec<ClaimedMessage>,
    /// Whether more may wait, since it came to its bounds.
    pub is_bounded: bool,
    /// For each queue, what is due first of what is put aside.
    pub due: Vec<Option<Due>>,
}

/// When something that is put aside is due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    /// Its score, in milliseconds since 1970 by the server's clock.
    pub score: i64,
    pub after: Duration,
}

pub(super) struct ClaimedMessage {
    /// Which of the queues it came from.
    pub queue: usize,
    pub tag: Tag,
    pub opened: Opened,
}

impl Unacked {
    /// Carry out a claim, in a single attempt. What has expired is dropped, and counts for nothing.
    pub async fn claim(&self, claim: &Claim, shares: &[Share<'_>], limit: usize) -> Result<Claimed, BrokerError> {
        let (is_bounded, time, due, elements) = self.ask_for(claim, shares, limit).await?;
        let now = Timestamp::now();
        let (mut messages, mut expired) = (Vec::with_capacity(elements.len()), Vec::new());
        for (number, (queue, element)) in (1..).zip(elements) {
            let tag = Tag { claim: claim.number, number };
            let Some(queue) = queue.checked_sub(1).filter(|&queue| queue < shares.len()) else { continue };
            self.hold(tag);
            let opened = envelope::open(&element);
            match opened.is_expired(now) {
                true => expired.push(tag),
                false => messages.push(ClaimedMessage { queue, tag, opened }),
            }
        }
        self.make_sound(&messages, shares).await;
        let is_bounded = is_bounded || !expired.is_empty();
        self.drop_expired(expired).await;
        let due = due.into_iter().map(|score| {
            let after = Duration::from_millis(u64::try_from(score.saturating_sub(time)).unwrap_or(0));
            (score >= 0).then_some(Due { score, after })
        });
        Ok(Claimed { messages, is_bounded, due: due.collect() })
    }

    async fn ask_for(&self, claim: &Claim, shares: &[Share<'_>], limit: usize) -> Result<Answer, BrokerError> {
        let mut claiming = self.call(&CLAIM);
        claiming.arg(self.claim_name(claim.number)).arg(limit).arg(BATCH_BYTES);
        claiming.arg(self.keys.step_count()).arg(claim.is_repeated);
        for Share { queue, room } in shares {
            claiming.key(self.keys.postponed(queue)).key(self.keys.postponed_messages(queue));
            claiming.key(self.keys.lists(queue));
            claiming.arg(envelope::unacked_end(queue)).arg(*room).arg(self.keys.base(queue));
        }
        self.link.invoke(&claiming).await
    }

    /// What is no envelope must not stay in `unacked`, where it would stop kombu's sweep: it is put into one.
    async fn make_sound(&self, messages: &[ClaimedMessage], shares: &[Share<'_>]) {
        for ClaimedMessage { queue, tag, opened } in messages.iter().filter(|claimed| !claimed.opened.is_sound) {
            let queue = shares[*queue].queue;
            let routing = Routing { exchange: String::new(), routing_key: queue.to_owned() };
            let element = envelope::seal(&opened.message, &routing, None);
            if let Err(error) = self.amend(*tag, queue, &element).await {
                tracing::warn!(%error, queue, "an element that is no message may stop kombu from restoring others");
            }
        }
    }

    async fn drop_expired(&self, tags: Vec<Tag>) {
        if tags.is_empty() {
            return;
        }
        // If this fails they come back when the lease runs out, and have expired then as well.
        if let Err(error) = self.remove(&tags).await {
            tracing::debug!(%error, "expired messages are not dropped yet");
        }
        tags.iter().for_each(|&tag| _ = self.forget(tag));
    }

    /// Claim one message, over fresh connections if need be.
    pub async fn claim_one(&self, queue: &str) -> Result<Option<ClaimedMessage>, BrokerError> {
        let shares = [Share { queue, room: 1 }];
        let deadline = tokio::time::Instant::now() + self.link.within();
        let mut backoff = Backoff::default();
        let mut claim = Claim { number: self.next_claim(), is_repeated: false };
        loop {
            match self.claim(&claim, &shares, 1).await {
                // Only what had expired.
                Ok(claimed) if claimed.messages.is_empty() && claimed.is_bounded => {
                    claim = Claim { number: self.next_claim(), is_repeated: false };
                }
                Ok(claimed) => return Ok(claimed.messages.into_iter().next()),
                Err(error) => {
                    let pause = backoff.pause();
                    if error.is_permanent() || tokio::time::Instant::now() + pause >= deadline {
                        return Err(error);
                    }
                    claim.is_repeated = true;
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
}
