//! Messages that are put aside until their time, in the topology of Celery's native delayed delivery
//! (golden/01b_native_delayed_delivery, `kombu/transport/native_delayed_delivery.py`).
//!
//! There is a level for each bit of a delay in seconds. Each has a queue, where a message stays for so long as the
//! bit is worth, and a topic exchange, which by that bit in the routing key sends the message there or straight on
//! to the next level. Below the last level, what is left of the routing key leads back.
//!
//! Celery leads back by the routing key of an exchange. We lead back into one queue, by a last word that is that
//! queue's own and that nobody else binds: names of queues would not do, since dots part them into words, and what
//! Celery has bound for `#.video.#` would have our messages for a queue `my.video`, too. Celery's own bindings are
//! made beside ours for its clients, which put messages aside themselves where they know of quorum queues.

use jiff::Timestamp;
use lapin::{options::QueueDeclareOptions, types::FieldTable};
use rtask_protocol::{Headers, Message};
use serde_json::Value;
use uuid::Uuid;

use super::{
    declare::{self, Declarer},
    link::Link,
    publish::{Place, Way},
    table,
};
use crate::{Binding, BrokerError, Exchange, ExchangeKind, Queue};

/// Levels.
const BITS: u32 = 28;
/// Seconds, eight and a half years; what is due later comes back once in between.
const LONGEST: u32 = (1 << BITS) - 1;
/// Where what comes out of the last level arrives.
const DELIVERY: &str = "celery_delayed_delivery";
/// What the server writes into a message that has waited; it would grow with each time.
const TRACES: [&str; 4] = ["x-death", "x-delivery-count", "x-first-death-", "x-last-death-"];

/// How a message for `queue` is put aside for so many seconds.
pub(super) fn way(queue: &str, seconds: u32) -> Result<Way, BrokerError> {
    let seconds = seconds.min(LONGEST);
    // It would fall through the levels above.
    let first = seconds.checked_ilog2().unwrap_or(0);
    let bits: String = (0..BITS).rev().map(|bit| if seconds >> bit & 1 == 1 { "1." } else { "0." }).collect();
    Ok(Way {
        exchange: declare::name(&level(first))?,
        routing_key: declare::name(&(bits + &last_word(queue)))?,
        place: Place::Delay(queue.to_owned()),
    })
}

/// Whole seconds from now until then, rounded up.
pub(super) fn seconds_until(then: Timestamp, now: Timestamp) -> u32 {
    let milliseconds = then.as_millisecond().saturating_sub(now.as_millisecond()).max(0);
    u32::try_from(milliseconds.unsigned_abs().div_ceil(1_000)).unwrap_or(u32::MAX)
}

/// The message without what it took along from waiting before, and without the time after which the server would
/// drop it while it waits. Its header `expires` still says so to whoever gets it.
pub(super) fn parcel(message: &Message) -> Message {
    let is_trace = |name: &str| TRACES.iter().any(|trace| name.starts_with(trace));
    let headers = message.headers.iter().filter(|(name, _)| !is_trace(name));
    let mut properties = message.properties.clone();
    properties.expiration = None;
    Message {
        headers: headers.map(|(name, value)| (name.clone(), value.clone())).collect(),
        properties,
        body: message.body.clone(),
    }
}

/// The levels and where they lead.
pub(super) async fn declare(declarer: &mut Declarer<'_>) -> Result<(), BrokerError> {
    declarer.exchange(&topic(DELIVERY)).await?;
    for bit in 0..BITS {
        let (name, next) = (level(bit), bit.checked_sub(1).map_or_else(|| DELIVERY.to_owned(), level));
        declarer.exchange(&topic(&name)).await?;
        let queue = declare::queue_name(&name)?;
        if declarer
            .try_queue(&queue, QueueDeclareOptions::durable(), waiting_room(bit, &next, "quorum")?)
            .await?
            .is_err()
        {
            // A server without quorum queues.
            declarer.queue_alone(&queue, waiting_room(bit, &next, "classic")?).await?;
        }
        let any = "*.".repeat((BITS - 1 - bit) as usize);
        declarer.bind(&queue, &by(topic(&name), format!("{any}1.#"))).await?;
        declarer.bind_exchange(&next, &name, &format!("{any}0.#")).await?;
    }
    Ok(())
}

/// Lead back into `queue` what was put aside for it.
pub(super) async fn bind(declarer: &mut Declarer<'_>, queue: &str) -> Result<(), BrokerError> {
    declarer.bind(&declare::queue_name(queue)?, &by(topic(DELIVERY), format!("#.{}", last_word(queue)))).await
}

/// Let come what others have put aside for queues that are consumed now: by us, for a queue that was deleted since
/// and made anew; and by Celery's clients, which do so where a quorum queue is among theirs, and count on a worker
/// to have made the levels. Without it, those messages wait on.
pub(super) async fn let_come(link: &Link, queues: &[Queue], is_any_quorum: bool) {
    let done = async {
        let mut declarer = Declarer::open(link).await?;
        let through_exchanges: Vec<_> = queues.iter().flat_map(celery_bindings).collect();
        if is_any_quorum && !through_exchanges.is_empty() {
            declare(&mut declarer).await?;
            for (queue, binding) in through_exchanges {
                declarer.bind_exchange(&binding.exchange.name, DELIVERY, &binding.routing_key).await?;
                declarer.bind(&declare::queue_name(queue)?, &binding).await?;
            }
        } else if !declarer.has_exchange(DELIVERY).await? {
            return Ok(());
        }
        for queue in queues {
            bind(&mut declarer, &queue.name).await?;
        }
        Ok::<_, BrokerError>(())
    };
    if let Err(error) = done.await {
        tracing::warn!(%error, "tasks that were put aside in the broker may not come back before another one is");
    }
}

/// A queue's bindings as Celery has them for what comes back. It leaves out direct exchanges, which do not look at
/// parts of a routing key, and cannot put anything aside without a routing key.
fn celery_bindings(queue: &Queue) -> impl Iterator<Item = (&str, Binding)> {
    let bindings = queue.bindings.iter();
    let usable = bindings.filter(|binding| {
        binding.exchange.kind != ExchangeKind::Direct
            && !binding.exchange.name.is_empty()
            && !binding.routing_key.is_empty()
    });
    usable.map(|binding| {
        let key = &binding.routing_key;
        let key = if key.starts_with('#') { key.clone() } else { format!("#.{key}") };
        (queue.name.as_str(), by(binding.exchange.clone(), key))
    })
}

fn level(bit: u32) -> String {
    format!("celery_delayed_{bit}")
}

fn topic(name: &str) -> Exchange {
    Exchange { name: name.to_owned(), kind: ExchangeKind::Topic }
}

fn by(exchange: Exchange, routing_key: String) -> Binding {
    Binding { exchange, routing_key, arguments: Headers::new() }
}

/// Short, without dots, and no other queue's.
fn last_word(queue: &str) -> String {
    format!("rtask-{}", Uuid::new_v5(&Uuid::NAMESPACE_OID, queue.as_bytes()))
}

/// What a level's queue is declared with.
fn waiting_room(bit: u32, next: &str, kind: &str) -> Result<FieldTable, BrokerError> {
    let mut arguments = Headers::new();
    let mut say = |name: &str, value: Value| arguments.insert(name.to_owned(), value);
    say("x-queue-type", kind.into());
    say("x-overflow", "reject-publish".into());
    say("x-message-ttl", (1_000_u64 << bit).into());
    say("x-dead-letter-exchange", next.into());
    if kind == "quorum" {
        say("x-dead-letter-strategy", "at-least-once".into());
    }
    table::to_amqp(&arguments)
}

#[cfg(test)]
mod tests {
    use rtask_protocol::Properties;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_routing_key_tells_the_delay_bit_by_bit() {
        let word = last_word("q");
        let rows = [
            (0, "celery_delayed_0", 0),
            (1, "celery_delayed_0", 1),
            (3, "celery_delayed_1", 3),
            (3_600, "celery_delayed_11", 3_600),
            (LONGEST, "celery_delayed_27", LONGEST),
            (u32::MAX, "celery_delayed_27", LONGEST),
        ];
        for (seconds, exchange, told) in rows {
            let way = way("q", seconds).unwrap();
            let expected: Vec<_> = format!("{told:028b}").chars().map(String::from).collect();
            assert_eq!(way.exchange.as_str(), exchange);
            assert_eq!(way.routing_key.as_str(), format!("{}.{word}", expected.join(".")));
        }
        assert!(way(&"q".repeat(255), 1).is_ok());
    }

    #[test]
    fn a_queue_has_a_word_of_its_own() {
        let names = ["q", "Q", "a.b", "a", "b", "#", "*"];
        let words: std::collections::HashSet<_> = names.iter().map(|name| last_word(name)).collect();
        assert_eq!(words.len(), names.len());
        assert!(words.iter().all(|word| !word.contains(['.', '#', '*'])));
    }

    #[test]
    fn delays_are_rounded_up_to_whole_seconds() {
        let now = Timestamp::from_millisecond(1_795_510_242_500).unwrap();
        let rows =
            [(-5_000, 0), (0, 0), (1, 1), (999, 1), (1_000, 1), (1_001, 2), (i64::from(u32::MAX) * 2_000, u32::MAX)];
        for (milliseconds, expected) in rows {
            let then = Timestamp::from_millisecond(now.as_millisecond() + milliseconds).unwrap();
            assert_eq!(seconds_until(then, now), expected, "{milliseconds}");
        }
    }

    #[test]
    fn what_waiting_wrote_into_a_message_does_not_grow() {
        let headers = json!({
            "id": "t", "expires": "2026-11-24T08:58:59+00:00", "x-mine": 1, "x-death": [{"count": 1}],
            "x-first-death-queue": "celery_delayed_1", "x-last-death-reason": "expired", "x-delivery-count": 2,
        });
        let properties = Properties { expiration: Some("100".to_owned()), priority: Some(3), ..Properties::default() };
        let message = Message { headers: headers.as_object().unwrap().clone(), properties, body: "x".into() };
        let parcel = parcel(&message);
        let kept = json!({"id": "t", "expires": "2026-11-24T08:58:59+00:00", "x-mine": 1});
        assert_eq!(serde_json::Value::from(parcel.headers), kept);
        assert_eq!((parcel.properties.expiration, parcel.properties.priority), (None, Some(3)));
        assert_eq!(parcel.body, message.body);
    }

    #[test]
    fn exchanges_lead_back_as_celery_leads() {
        let binding = |kind, key: &str| by(Exchange { name: "e".into(), kind }, key.to_owned());
        let bindings = vec![
            binding(ExchangeKind::Direct, "a"),
            binding(ExchangeKind::Topic, "a.b"),
            binding(ExchangeKind::Topic, "#.c"),
            binding(ExchangeKind::Fanout, ""),
            binding(ExchangeKind::Fanout, "d"),
        ];
        let queue = Queue { bindings, ..Queue::named("q") };
        let keys: Vec<_> = celery_bindings(&queue).map(|(_, binding)| binding.routing_key).collect();
        assert_eq!(keys, ["#.a.b", "#.c", "#.d"]);
    }
}
