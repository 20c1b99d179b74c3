//! The [`Ledger`] in Redis, under keys that begin with `rtask-`.

use std::{sync::LazyLock, time::Duration};

use async_trait::async_trait;
use redis::Script;

use super::link::Link;
use crate::{
    BrokerError, Ledger, Revocation, Transport,
    connect::patiently,
    ledger::{ATTEMPTS_LIFETIME, Allowance, FURTHEST_TURN, MAX_REVOCATIONS, REVOCATIONS_LIFETIME},
};

/// So many revocations are sent in one go.
const SENT_AT_ONCE: usize = 1_000;

/// Set the members ARGV[3..] of a sorted set to the server's microseconds, each a little later than the one before;
/// drop those that are older than ARGV[1] microseconds, and the oldest of more than ARGV[2].
static REVOKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local time = redis.call('TIME')
        local now = time[1] * 1000000 + time[2]
        for index = 3, #ARGV do
            redis.call('ZADD', KEYS[1], string.format('%.0f', now + index - 3), ARGV[index])
        end
        redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - ARGV[1]))
        redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - ARGV[2])
        redis.call('PEXPIRE', KEYS[1], string.format('%.0f', ARGV[1] / 1000))
        return redis.status_reply('OK')",
    )
});

/// Whether ARGV[2] is a member that is no older than ARGV[1] microseconds.
static IS_REVOKED: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local score = redis.call('ZSCORE', KEYS[1], ARGV[2])
        if not score then
            return 0
        end
        local time = redis.call('TIME')
        return tonumber(score) > time[1] * 1000000 + time[2] - ARGV[1] and 1 or 0",
    )
});

/// The latest ARGV[2] members that are no older than ARGV[1] microseconds.
static LATEST: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local time = redis.call('TIME')
        local since = string.format('(%.0f', time[1] * 1000000 + time[2] - ARGV[1])
        return redis.call('ZREVRANGEBYSCORE', KEYS[1], '+inf', since, 'LIMIT', 0, ARGV[2])",
    )
});

/// Move the next turn on by ARGV[1] microseconds, from now on if it has passed already, and to no more than ARGV[2]
/// from now; answer how long it is until then. Once it has passed the key says nothing more.
static RESERVE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local time = redis.call('TIME')
        local now = time[1] * 1000000 + time[2]
        local turn = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
        local next = math.min(turn + ARGV[1], now + ARGV[2])
        redis.call('SET', KEYS[1], string.format('%.0f', next), 'PX', math.floor((next - now) / 1000) + 1)
        return math.max(next - ARGV[1] - now, 0)",
    )
});

/// A ledger at a `redis://` or `rediss://` URL.
pub struct RedisLedger {
    link: Link,
    prefix: String,
    /// [`MAX_REVOCATIONS`], but for tests.
    max_revocations: usize,
}

impl RedisLedger {
    /// # Errors
    /// See [`crate::connect_ledger`].
    pub async fn connect(url: &str, transport: &Transport) -> Result<Self, BrokerError> {
        Self::connect_with(url, transport, MAX_REVOCATIONS).await
    }

    /// With another bound on what is remembered.
    ///
    /// # Errors
    /// See [`crate::connect_ledger`].
    #[doc(hidden)]
    pub async fn connect_with(url: &str, transport: &Transport, max_revocations: usize) -> Result<Self, BrokerError> {
        let link = Link::new(url, transport)?;
        patiently(transport.patience, || link.connect()).await?;
        Ok(Self { link, prefix: transport.key_prefix.clone(), max_revocations })
    }

    fn key(&self, what: &str) -> String {
        format!("{}rtask-{what}", self.prefix)
    }

    async fn revoke_members(&self, key: &str, members: &[String]) -> Result<(), BrokerError> {
        for members in members.chunks(SENT_AT_ONCE) {
            let mut revoking = REVOKE.prepare_invoke();
            revoking.key(key).arg(microseconds(REVOCATIONS_LIFETIME)).arg(self.max_revocations).arg(members);
            self.link.run::<redis::Value>(&revoking).await?;
        }
        Ok(())
    }

    async fn latest(&self, key: &str, limit: usize) -> Result<Vec<String>, BrokerError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut asking = LATEST.prepare_invoke();
        asking.key(key).arg(microseconds(REVOCATIONS_LIFETIME)).arg(limit);
        self.link.run(&asking).await
    }
}

#[async_trait]
impl Ledger for RedisLedger {
    async fn count_attempt(&self, key: &str) -> Result<u32, BrokerError> {
        let key = self.key(&format!("attempts-{key}"));
        let lifetime = ATTEMPTS_LIFETIME.as_secs().cast_signed();
        let mut transaction = redis::pipe();
        transaction.atomic().incr(&key, 1).expire(&key, lifetime).ignore();
        // Asked again after a lost answer it counts twice; rather that than a message that is never given up.
        let (count,): (i64,) = self.link.ask(&transaction).await?;
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }

    async fn revoke(&self, revocations: &[Revocation]) -> Result<(), BrokerError> {
        let (mut tasks, mut stamps) = (Vec::new(), Vec::new());
        for revocation in revocations {
            match revocation {
                Revocation::Task { id } => tasks.push(id.clone()),
                Revocation::Stamp { header, value } => stamps.push(stamp(header, value)),
            }
        }
        self.revoke_members(&self.key("revoked-tasks"), &tasks).await?;
        self.revoke_members(&self.key("revoked-stamps"), &stamps).await
    }

    async fn is_revoked(&self, id: &str) -> Result<bool, BrokerError> {
        let mut asking = IS_REVOKED.prepare_invoke();
        asking.key(self.key("revoked-tasks")).arg(microseconds(REVOCATIONS_LIFETIME)).arg(id);
        self.link.run(&asking).await
    }

    async fn revocations(&self, limit: usize) -> Result<Vec<Revocation>, BrokerError> {
        let tasks = self.latest(&self.key("revoked-tasks"), limit).await?;
        let stamps = self.latest(&self.key("revoked-stamps"), limit).await?;
        let tasks = tasks.into_iter().map(|id| Revocation::Task { id });
        Ok(tasks.chain(stamps.iter().filter_map(|member| read_stamp(member))).collect())
    }

    async fn reserve_turn(&self, key: &str, allowance: Allowance) -> Result<Duration, BrokerError> {
        let every = microseconds(allowance.every.min(FURTHEST_TURN));
        let mut reserving = RESERVE.prepare_invoke();
        reserving.key(self.key(&format!("turn-{key}"))).arg(every).arg(microseconds(FURTHEST_TURN));
        // Asked again after a lost answer it passes a turn; rather that than one turn taken twice.
        self.link.run::<u64>(&reserving).await.map(Duration::from_micros)
    }
}

/// A stamp as a member of a set.
fn stamp(header: &str, value: &str) -> String {
    serde_json::Value::from(vec![header, value]).to_string()
}

/// None for what no rtask has written.
fn read_stamp(member: &str) -> Option<Revocation> {
    let (header, value) = serde_json::from_str(member).ok()?;
    Some(Revocation::Stamp { header, value })
}

fn microseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
