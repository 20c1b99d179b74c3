//! Which queues an exchange hands its messages to, as kombu 5.7 keeps it (`Channel._queue_bind`, `get_table`;
//! golden/02_redis_transport/10_worker_startup.json).
//!
//! An exchange is a set of bindings and nothing more; its kind is what each side takes it for. The bindings of queues
//! that do not expire are also kept in a second set. Those of queues that do are good until a deadline of their whole
//! exchange, which whoever consumes puts off; after it, anybody may remove them.

use std::{sync::LazyLock, time::Duration};

use redis::Script;
use rtask_protocol::Headers;
use serde_json::Value;

use super::{keys::SEPARATOR, unacked::Unacked};
use crate::{Binding, BrokerError, ExchangeKind, Queue, matching};

/// A queue's bindings are good for so many times what the queue itself lives without consumers
/// (`BINDING_EXPIRES_FACTOR`), and for no less than an hour (`MIN_BINDING_TTL`).
const BINDING_LIVES: u32 = 2;
const SHORTEST_LIFE: Duration = Duration::from_secs(3_600);
/// So many exchanges are swept in one go.
const SWEPT_AT_ONCE: usize = 100;

/// Put the binding ARGV[1] into the table KEYS[1], and the deadline of its exchange ARGV[2] off to ARGV[3] milliseconds
/// from now, unless it is later already.
static KEEP: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        redis.call('SADD', KEYS[1], ARGV[1])
        local time = redis.call('TIME')
        local deadline = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3]
        redis.call('ZADD', KEYS[2], 'GT', deadline, ARGV[2])
        return redis.status_reply('OK')",
    )
});

/// Remove the tables of up to ARGV[3] exchanges whose deadline in KEYS[1] has passed, unless some binding of theirs
/// is for good. ARGV[1] and ARGV[2] are what the names of tables and of the sets of lasting bindings begin with.
static SWEEP: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local time = redis.call('TIME')
        local now = time[1] * 1000 + math.floor(time[2] / 1000)
        for _, exchange in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[3])) do
            if redis.call('EXISTS', ARGV[2] .. exchange) == 0 then
                redis.call('DEL', ARGV[1] .. exchange)
            end
            redis.call('ZREM', KEYS[1], exchange)
        end
        return redis.status_reply('OK')",
    )
});

/// How long `queue` lives without a consumer; none for ever (`Channel._get_queue_expire`).
pub(super) fn expiry(queue: &Queue) -> Option<Duration> {
    queue.arguments.get("x-expires").and_then(Value::as_u64).map(Duration::from_millis)
}

/// Bind `queue` as it says. The default exchange knows it by its name without that.
pub(super) async fn bind(unacked: &Unacked, queue: &Queue) -> Result<(), BrokerError> {
    match expiry(queue) {
        Some(expiry) => keep(unacked, queue, expiry).await,
        None => bind_for_good(unacked, queue).await,
    }
}

/// Only what is not there yet is written: a server that is out of memory takes nothing, and whoever consumes frees some.
async fn bind_for_good(unacked: &Unacked, queue: &Queue) -> Result<(), BrokerError> {
    let mut rows = Vec::new();
    for bound in named(&queue.bindings) {
        let (exchange, member) = (&bound.exchange.name, member(bound, &queue.name));
        rows.push((unacked.keys.permanent_bindings(exchange), member.clone()));
        rows.push((unacked.keys.bindings(exchange), member));
        if bound.exchange.kind == ExchangeKind::Fanout {
            rows.push((unacked.keys.fanout_queues(exchange), queue.name.clone()));
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    let (mut asking, mut binding) = (redis::pipe(), redis::pipe());
    rows.iter().for_each(|(table, member)| _ = asking.sismember(table, member));
    let known: Vec<bool> = unacked.link.ask(&asking).await?;
    binding.atomic();
    for ((table, member), _) in rows.iter().zip(known).filter(|(_, is_known)| !is_known) {
        binding.sadd(table, member).ignore();
    }
    match binding.is_empty() {
        true => Ok(()),
        false => unacked.link.ask::<()>(&binding).await,
    }
}

/// Bind a queue that expires, or put the end of its bindings off.
pub(super) async fn keep(unacked: &Unacked, queue: &Queue, expiry: Duration) -> Result<(), BrokerError> {
    let life = (expiry * BINDING_LIVES).max(SHORTEST_LIFE);
    for bound in named(&queue.bindings) {
        let exchange = &bound.exchange.name;
        let mut keeping = KEEP.prepare_invoke();
        keeping.key(unacked.keys.bindings(exchange)).key(unacked.keys.deadlines());
        keeping.arg(member(bound, &queue.name)).arg(exchange).arg(life.as_millis().to_string());
        unacked.link.run::<redis::Value>(&keeping).await?;
    }
    Ok(())
}

pub(super) async fn unbind(unacked: &Unacked, queue: &Queue) -> Result<(), BrokerError> {
    let mut unbinding = redis::pipe();
    for bound in named(&queue.bindings) {
        let (exchange, member) = (&bound.exchange.name, member(bound, &queue.name));
        unbinding.srem(unacked.keys.bindings(exchange), &member).ignore();
        unbinding.srem(unacked.keys.permanent_bindings(exchange), &member).ignore();
    }
    unacked.link.ask::<()>(&unbinding).await
}

/// Remove the tables that nobody has kept.
pub(super) async fn sweep(unacked: &Unacked) -> Result<(), BrokerError> {
    let mut sweeping = SWEEP.prepare_invoke();
    sweeping.key(unacked.keys.deadlines());
    sweeping.arg(unacked.keys.bindings_prefix()).arg(unacked.keys.permanent_prefix()).arg(SWEPT_AT_ONCE);
    unacked.link.run::<redis::Value>(&sweeping).await.map(drop)
}

fn named(bindings: &[Binding]) -> impl Iterator<Item = &Binding> {
    bindings.iter().filter(|binding| !binding.exchange.name.is_empty())
}

fn member(binding: &Binding, queue: &str) -> String {
    let pattern = match binding.exchange.kind {
        ExchangeKind::Direct | ExchangeKind::Fanout => String::new(),
        ExchangeKind::Topic => pattern(&binding.routing_key),
        // Ours alone: kombu has no such exchanges on Redis.
        ExchangeKind::Headers => Value::from(binding.arguments.clone()).to_string(),
    };
    [binding.routing_key.as_str(), &pattern, queue].join(SEPARATOR)
}

/// A topic as the regular expression that kombu matches routing keys with (`TopicExchange.key_to_pattern`).
fn pattern(routing_key: &str) -> String {
    let words = routing_key.split('.').map(|word| match word {
        "*" => r"[^\.]+".to_owned(),
        "#" => ".*?".to_owned(),
        word => word.chars().map(escaped).collect(),
    });
    format!("^{}$", words.collect::<Vec<_>>().join(r"\."))
}

/// `kombu/utils/text.py`, `escape_regex`, to which wildcards within words are none.
fn escaped(character: char) -> String {
    match character {
        '\0' => r"\000".to_owned(),
        plain if plain.is_alphanumeric() || matches!(plain, '*' | '#') => plain.to_string(),
        other => format!("\\{other}"),
    }
}

/// The queues to which an exchange of some kind hands a message.
pub(super) async fn queues(
    unacked: &Unacked,
    exchange: &str,
    kind: ExchangeKind,
    routing_key: &str,
    headers: &Headers,
) -> Result<Vec<String>, BrokerError> {
    let takes = |row: &Row<'_>| match kind {
        ExchangeKind::Direct => row.routing_key == routing_key,
        ExchangeKind::Topic => topic_matches(row.routing_key, routing_key),
        ExchangeKind::Fanout => true,
        ExchangeKind::Headers => {
            serde_json::from_str(row.pattern).is_ok_and(|arguments| matching::headers_match(&arguments, headers))
        }
    };
    queues_where(unacked, exchange, takes).await
}

/// The same where nobody tells the exchange's kind: a binding with a pattern is a topic's.
pub(super) async fn queues_by_key(
    unacked: &Unacked,
    exchange: &str,
    routing_key: &str,
) -> Result<Vec<String>, BrokerError> {
    let takes = |row: &Row<'_>| match row.pattern {
        "" => row.routing_key == routing_key,
        _ => topic_matches(row.routing_key, routing_key),
    };
    queues_where(unacked, exchange, takes).await
}

/// One binding.
struct Row<'a> {
    routing_key: &'a str,
    pattern: &'a str,
}

async fn queues_where(
    unacked: &Unacked,
    exchange: &str,
    takes: impl Fn(&Row<'_>) -> bool,
) -> Result<Vec<String>, BrokerError> {
    let mut reading = redis::pipe();
    reading.smembers(unacked.keys.bindings(exchange));
    let (members,): (Vec<Vec<u8>>,) = unacked.link.ask(&reading).await?;
    let queue = |member: &[u8]| {
        let mut fields = std::str::from_utf8(member).ok()?.split(SEPARATOR);
        let (routing_key, pattern, queue) = (fields.next()?, fields.next()?, fields.next()?);
        takes(&Row { routing_key, pattern }).then(|| queue.to_owned())
    };
    let mut queues: Vec<String> = members.iter().filter_map(|member| queue(member)).collect();
    // A queue may be bound by several keys, and gets one copy.
    queues.sort_unstable();
    queues.dedup();
    Ok(queues)
}

/// As kombu's pattern matches, so that both hand out alike: unlike AMQP's, its `#` stands for any text within its two
/// dots, which are there in any case.
fn topic_matches(topic: &str, routing_key: &str) -> bool {
    let parts: Vec<&str> = topic.split('.').collect();
    // Whether the topic so far matches the key's first n bytes.
    let mut matched = vec![false; routing_key.len() + 1];
    matched[0] = true;
    for (index, part) in parts.iter().enumerate() {
        let from = if index == 0 { matched } else { after(&matched, routing_key, ".") };
        matched = match *part {
            "#" => onwards(from),
            "*" => after_word(&from, routing_key),
            word => after(&from, routing_key, word),
        };
    }
    matched[routing_key.len()]
}

fn after(from: &[bool], key: &str, word: &str) -> Vec<bool> {
    let mut matched = vec![false; from.len()];
    for start in (0..from.len()).filter(|&start| from[start]) {
        if key.as_bytes()[start..].starts_with(word.as_bytes()) {
            matched[start + word.len()] = true;
        }
    }
    matched
}

fn after_word(from: &[bool], key: &str) -> Vec<bool> {
    let (mut matched, mut is_within) = (vec![false; from.len()], false);
    for (index, byte) in key.bytes().enumerate() {
        is_within = (is_within || from[index]) && byte != b'.';
        matched[index + 1] = is_within;
    }
    matched
}

fn onwards(mut from: Vec<bool>) -> Vec<bool> {
    let first = from.iter().position(|&matched| matched).unwrap_or(from.len());
    from[first..].fill(true);
    from
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Exchange;

    fn binding(kind: ExchangeKind, routing_key: &str) -> Binding {
        let exchange = Exchange { name: "e".to_owned(), kind };
        Binding { exchange, routing_key: routing_key.to_owned(), arguments: Headers::new() }
    }

    #[test]
    fn bindings_are_written_as_in_01_publish_no_worker() {
        assert_eq!(member(&binding(ExchangeKind::Direct, "celery"), "celery"), "celery\x06\x16\x06\x16celery");
        assert_eq!(member(&binding(ExchangeKind::Fanout, ""), "w1"), "\x06\x16\x06\x16w1");
        // As Python's kombu 5.7 writes them.
        let rows = [
            ("a.b", r"^a\.b$"),
            ("a.*.c", r"^a\.[^\.]+\.c$"),
            ("#", "^.*?$"),
            ("worker.#", r"^worker\..*?$"),
            ("a-b_c.d*", r"^a\-b\_c\.d*$"),
        ];
        for (topic, expected) in rows {
            assert_eq!(pattern(topic), expected);
        }
    }

    #[test]
    fn topics_match_as_kombus_patterns_do() {
        let rows = [
            ("a.b", "a.b", true),
            ("a.b", "a.c", false),
            ("*.b", "a.b", true),
            ("*.b", ".b", false),
            ("*.b", "a.a.b", false),
            ("a.#", "a.b.c", true),
            ("a.#", "a.", true),
            // AMQP would have it.
            ("a.#", "a", false),
            ("#", "", true),
            ("#", "a.b", true),
            ("#.c", "a.b.c", true),
            ("a.#.c", "a.b.b.c", true),
            ("a.#.c", "a.c", false),
            ("*", "a.b", false),
            ("é.*", "é.à", true),
        ];
        for (topic, key, expected) in rows {
            assert_eq!(topic_matches(topic, key), expected, "`{topic}` on `{key}`");
        }
    }
}
