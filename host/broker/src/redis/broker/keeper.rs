//! Keeping what is ours, and giving back what is nobody's any more.

use std::{
    sync::{LazyLock, Weak},
    time::Duration,
};

use redis::Script;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    bindings,
    envelope::{self, Again},
    unacked::{Return, Unacked},
};
use crate::{BrokerError, Routing};

/// How many times a lease is renewed before it would run out.
const RENEWALS: u32 = 6;
/// A lease is renewed no more rarely, since other workers may count with a shorter visibility timeout, and no more
/// often.
const LONGEST_PERIOD: Duration = Duration::from_secs(10);
const SHORTEST_PERIOD: Duration = Duration::from_millis(50);
/// So many messages are put back in one go at most, and no further ones once they have so many bytes.
const SWEPT_AT_ONCE: usize = 50;
const SWEPT_BYTES: usize = 4 << 20;

/// The entries of KEYS[1] whose score in KEYS[2] is older than ARGV[1] seconds, the oldest ARGV[2] of them or fewer that
/// have ARGV[3] bytes. Answers the score that is just too old, and pairs of a tag and its entry.
static OVERDUE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local time = redis.call('TIME')
        local limit = string.format('%.6f', time[1] + time[2] / 1000000 - ARGV[1])
        local found, bytes = {}, tonumber(ARGV[3])
        for index, tag in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', limit, 'LIMIT', 0, ARGV[2])) do
            local entry = redis.call('HGET', KEYS[1], tag)
            found[index] = {tag, entry}
            bytes = bytes - (entry and #entry or 0)
            if bytes <= 0 then
                break
            end
        end
        return {limit, found}",
    )
});

/// A tag and its entry.
type Overdue = (String, Option<Vec<u8>>);

/// Renew our leases and sweep others', for as long as anybody holds a delivery or the broker.
pub(super) async fn keep(unacked: Weak<Unacked>, closed: CancellationToken) {
    let Some(period) = unacked.upgrade().map(|unacked| period(unacked.visibility_timeout)) else { return };
    let mut ticks = tokio::time::interval(period);
    // A late renewal is not made up for by several.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while closed.run_until_cancelled(ticks.tick()).await.is_some() {
        let Some(unacked) = unacked.upgrade() else { return };
        if let Err(error) = unacked.renew().await {
            tracing::warn!(%error, "leases are not renewed");
        } else if let Err(error) = sweep(&unacked, Instant::now() + period / 2).await {
            tracing::warn!(%error, "what dead workers held is not put back yet");
        }
    }
}

fn period(visibility_timeout: Duration) -> Duration {
    (visibility_timeout / RENEWALS).clamp(SHORTEST_PERIOD, LONGEST_PERIOD)
}

/// Put back what nobody has renewed (`QoS.restore_visible`). kombu takes turns by `unacked_mutex`, and waits for five
/// minutes if a worker dies in its turn; we need none, since a message is only moved while its score is too old. What a
/// worker with very many held is not all put back before `until`: our own leases are to be renewed.
async fn sweep(unacked: &Unacked, until: Instant) -> Result<(), BrokerError> {
    loop {
        let mut asking = unacked.call(&OVERDUE);
        asking.arg(unacked.visibility_timeout.as_secs_f64()).arg(SWEPT_AT_ONCE).arg(SWEPT_BYTES);
        let (limit, overdue): (String, Vec<Overdue>) = unacked.link.run(&asking).await?;
        let mut returns = Vec::with_capacity(overdue.len());
        for (tag, entry) in overdue {
            // Ours, and late: its task may be running.
            if !unacked.is_ours(&tag) {
                returns.push(returned(unacked, tag, &limit, entry.as_deref()).await?);
            }
        }
        let moved = unacked.put_back(&returns).await?;
        let moved = moved.into_iter().filter(|&moved| moved).count();
        if moved > 0 {
            tracing::warn!(messages = moved, "a worker is gone; what it held goes back to its queues");
        }
        if moved == 0 || Instant::now() >= until {
            return Ok(());
        }
    }
}

/// Where an entry belongs. What neither kombu nor rtask has written goes nowhere: nobody could run it.
async fn returned(unacked: &Unacked, tag: String, limit: &str, entry: Option<&[u8]>) -> Result<Return, BrokerError> {
    let limit = Some(limit.to_owned());
    let Some(entry) = entry.and_then(envelope::read_unacked) else {
        tracing::error!(tag, "what is held under this tag is no message, and is dropped");
        return Ok(Return { tag, limit, element: Vec::new(), lists: Vec::new() });
    };
    let queues = queues_of(unacked, &entry.routing).await?;
    let Again { element, priority } = envelope::mark_redelivered(entry.element);
    let lists = queues.iter().map(|queue| unacked.keys.list(queue, priority)).collect();
    Ok(Return { tag, limit, element, lists })
}

/// kombu drops a message whose exchange has no binding for it any more; we keep it, in the queue that it is most likely
/// from.
async fn queues_of(unacked: &Unacked, routing: &Routing) -> Result<Vec<String>, BrokerError> {
    let Routing { exchange, routing_key } = routing;
    let mut queues = match exchange.as_str() {
        "" => Vec::new(),
        exchange => bindings::queues_by_key(unacked, exchange, routing_key).await?,
    };
    if queues.is_empty() {
        let queue = [routing_key, exchange].into_iter().find(|name| !name.is_empty());
        queues.extend(queue.cloned());
    }
    Ok(queues)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_renewed_well_before_they_run_out() {
        let rows = [(1, 167), (10, 1_667), (3_600, 10_000)];
        for (timeout, milliseconds) in rows {
            let period = period(Duration::from_secs(timeout));
            assert_eq!(period.as_secs_f64().mul_add(1_000.0, 0.5).floor() as u64, milliseconds, "{timeout}");
        }
    }
}
