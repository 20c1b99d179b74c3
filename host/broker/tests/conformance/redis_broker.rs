//! What is particular to the Redis broker: what it shares with kombu.
//!
//! Each test has a key prefix of its own, since whoever sweeps with a short visibility timeout takes what others hold.

use std::{collections::HashSet, time::Duration};

use redis::{AsyncTypedCommands, Client, aio::MultiplexedConnection};
use rtask_broker::{
    Attempts, Binding, Exchange, ExchangeKind, Patience, Publication, Queue, SharedBroker, Subscription, Target,
    Transport, connect_broker,
};
use rtask_protocol::Headers;
use serde_json::{Value, json};

use crate::{
    brokers::{body, next, subscription},
    servers::{publication, redis_url, soon, unique, until, with_argument},
};

/// golden/02_redis_transport/05_publish_countdown_expires.json, and as its restore writes it.
const KOMBU: &str = include_str!("../vectors/redis_envelope.json");
const SEPARATOR: &str = "\x06\x16";

pub struct Lab {
    pub broker: SharedBroker,
    /// What another program does with the server.
    pub raw: MultiplexedConnection,
    pub prefix: String,
    pub queue: String,
}

impl Lab {
    pub async fn new() -> Self {
        Self::with(Duration::from_secs(3_600)).await
    }

    pub async fn with(visibility_timeout: Duration) -> Self {
        let (prefix, queue) = (format!("{}-", unique("prefix")), unique("queue"));
        let raw = Client::open(redis_url()).unwrap().get_multiplexed_async_connection().await.unwrap();
        let broker = broker(&redis_url(), &prefix, visibility_timeout).await;
        Self { broker, raw, prefix, queue }
    }

    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub async fn consumer(&self, prefetch: u16) -> rtask_broker::Consumer {
        self.broker.consume(subscription(&[&self.queue], prefetch)).await.unwrap()
    }

    pub async fn push(&self, element: impl redis::ToSingleRedisArg + Send + Sync) {
        self.raw.clone().lpush(self.key(&self.queue), element).await.unwrap();
    }

    async fn members(&self, name: &str) -> HashSet<String> {
        self.raw.clone().smembers(self.key(name)).await.unwrap()
    }

    /// The score of what is held last, in seconds.
    pub async fn held_at(&self) -> f64 {
        let held = self.raw.clone().zrange_withscores(self.key("unacked_index"), -1, -1).await.unwrap();
        held[0].1
    }

    pub async fn unacked(&self) -> usize {
        self.raw.clone().hlen(self.key("unacked")).await.unwrap()
    }
}

pub async fn broker(url: &str, prefix: &str, visibility_timeout: Duration) -> SharedBroker {
    let transport = Transport { key_prefix: prefix.to_owned(), visibility_timeout, ..Patience::Forever.into() };
    connect_broker(url, transport).await.unwrap()
}

pub fn kombu_message(queue: &str, id: &str) -> String {
    let mut message: Value = serde_json::from_str(KOMBU).unwrap();
    message["headers"]["id"] = id.into();
    message["properties"]["delivery_info"]["routing_key"] = queue.into();
    message["properties"]["delivery_tag"] = id.into();
    message.to_string()
}

pub fn exchange(name: &str, kind: ExchangeKind) -> Exchange {
    Exchange { name: name.to_owned(), kind }
}

pub fn bound(queue: &str, exchange: Exchange, routing_key: &str) -> Queue {
    let binding = Binding { exchange, routing_key: routing_key.to_owned(), arguments: Headers::new() };
    Queue { bindings: vec![binding], ..Queue::named(queue) }
}

fn consuming(queue: Queue) -> Subscription {
    Subscription { queues: vec![queue], prefetch: 10, tag: unique("consumer") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_is_what_kombu_would_have_written() {
    let mut lab = Lab::new().await;
    let mut sent = publication(&lab.queue, "[[2, 2], {}, {}]");
    sent.message.properties.priority = Some(5);
    lab.broker.publish(sent).await.unwrap();
    let list = lab.key(&format!("{}{SEPARATOR}3", lab.queue));
    let element: String = lab.raw.lpop(&list, None).await.unwrap();
    let element: Value = serde_json::from_str(&element).unwrap();
    let tag = element["properties"]["delivery_tag"].clone();
    let expected = json!({
        "body": "W1syLCAyXSwge30sIHt9XQ==", "content-encoding": "utf-8", "content-type": "application/json", "headers": {},
        "properties": {
            "delivery_mode": 2, "delivery_info": {"exchange": "", "routing_key": lab.queue}, "priority": 5,
            "body_encoding": "base64", "delivery_tag": tag,
        },
    });
    assert_eq!(element, expected);
    // golden/02_redis_transport/01_publish_no_worker.json.
    let binding = HashSet::from([format!("{0}{SEPARATOR}{SEPARATOR}{0}", lab.queue)]);
    for table in ["_kombu.binding", "_kombu.binding_permanent"] {
        assert_eq!(lab.members(&format!("{table}.{}", lab.queue)).await, binding, "{table}");
    }
}

/// Looking at them would keep the server from everybody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_is_counted_unless_it_is_too_large_to_look_at() {
    let mut lab = Lab::new().await;
    for id in ["a", "b"] {
        lab.push(kombu_message(&lab.queue, id)).await;
    }
    let held = lab.broker.take(&lab.queue).await.unwrap().unwrap();
    let unacked = async || lab.broker.inspect(&lab.queue).await.unwrap().unwrap().unacked;
    assert_eq!(unacked().await, Some(1));
    lab.raw.hset(lab.key("unacked"), "large", "x".repeat(17 << 20)).await.unwrap();
    assert_eq!(unacked().await, None);
    held.ack().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kombu_published_is_received_and_kept_as_kombu_keeps_it() {
    let lab = Lab::new().await;
    let mut consumer = lab.consumer(1).await;
    let message = kombu_message(&lab.queue, "t");
    lab.push(&message).await;
    let delivery = next(&mut consumer).await;
    assert_eq!((delivery.attempts, &delivery.message.headers["id"]), (Attempts::First, &json!("t")));
    assert_eq!(delivery.routing.routing_key, lab.queue);
    let held: Vec<String> = lab.raw.clone().hvals(lab.key("unacked")).await.unwrap();
    let held: Value = serde_json::from_str(&held[0]).unwrap();
    assert_eq!(held, json!([serde_json::from_str::<Value>(&message).unwrap(), "", lab.queue]));
    delivery.ack().await.unwrap();
    assert_eq!(lab.unacked().await, 0);
    assert_eq!(lab.raw.clone().zcard(lab.key("unacked_index")).await.unwrap(), 0);
}

/// golden/02_redis_transport/19_priorities_consume.json: unlike AMQP's, kombu's lowest number goes first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lowest_priority_number_is_served_first_and_queues_take_turns() {
    let lab = Lab::new().await;
    let other = unique("queue");
    for (queue, priority, text) in [
        (&lab.queue, 9, "a9"),
        (&lab.queue, 0, "a0"),
        (&lab.queue, 0, "a0 too"),
        (&other, 4, "b3"),
        (&other, 0, "b0"),
        (&other, 0, "b0 too"),
    ] {
        let mut publication = publication(queue, text);
        publication.message.properties.priority = Some(priority);
        lab.broker.publish(publication).await.unwrap();
    }
    let mut consumer = lab.broker.consume(subscription(&[&lab.queue, &other], 0)).await.unwrap();
    let mut bodies = Vec::new();
    for _ in 0..6 {
        let delivery = next(&mut consumer).await;
        bodies.push(body(&delivery).to_owned());
        delivery.ack().await.unwrap();
    }
    assert_eq!(bodies, ["a0", "b0", "a0 too", "b0 too", "b3", "a9"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_exchange_compares_as_kombu_does() {
    let lab = Lab::new().await;
    let topic = exchange("logs", ExchangeKind::Topic);
    lab.broker.declare(&bound(&lab.queue, topic.clone(), "video.#")).await.unwrap();
    let member = format!(r"video.#{SEPARATOR}^video\..*?${SEPARATOR}{}", lab.queue);
    assert_eq!(lab.members("_kombu.binding.logs").await, HashSet::from([member]));
    for (key, takes) in [("video.cut.hd", true), ("video", false), ("audio.cut", false)] {
        let target = Target::Exchange { exchange: topic.clone(), routing_key: key.to_owned() };
        let published = lab.broker.publish(Publication { target, message: publication("q", key).message }).await;
        assert_eq!(published.is_ok(), takes, "{key}");
    }
    assert_eq!(lab.broker.waiting(&lab.queue).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_element_of_a_list_stops_its_reader() {
    let lab = Lab::new().await;
    let mut consumer = lab.consumer(0).await;
    let deep = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
    let headers_deep = format!(r#"{{"body": "", "headers": {deep}}}"#);
    let smuggled = format!(r#"{}, "", "other""#, kombu_message("other", "t"));
    let elements: [&[u8]; 9] = [
        b"",
        b"nonsense",
        b"\xff\xfe\x00",
        b"{}",
        b"[]",
        br#"{"body": "?", "headers": {}, "properties": {"body_encoding": "base64"}}"#,
        deep.as_bytes(),
        headers_deep.as_bytes(),
        smuggled.as_bytes(),
    ];
    let mut held = Vec::new();
    for element in elements {
        lab.push(element).await;
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.message.body, element);
        assert!(delivery.message.headers.is_empty());
        held.push(delivery);
    }
    // kombu reads them all when it sweeps.
    let entries: Vec<String> = lab.raw.clone().hvals(lab.key("unacked")).await.unwrap();
    assert_eq!(entries.len(), elements.len());
    for entry in entries {
        let (message, exchange, queue): (Value, String, String) = serde_json::from_str(&entry).unwrap();
        assert!(message["properties"]["delivery_tag"].is_string());
        assert_eq!((exchange.as_str(), &queue), ("", &lab.queue));
    }
    // They stay what they were when they go back.
    let last = held.pop().unwrap();
    last.requeue().await.unwrap();
    let again = next(&mut consumer).await;
    assert_eq!((again.attempts, &again.message.body[..]), (Attempts::Again, smuggled.as_bytes()));
    lab.push(kombu_message(&lab.queue, "sound")).await;
    assert_eq!(next(&mut consumer).await.message.headers["id"], "sound");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_expired_while_it_waited_is_not_delivered() {
    let mut lab = Lab::new().await;
    let mut message: Value = serde_json::from_str(&kombu_message(&lab.queue, "expired")).unwrap();
    message["properties"]["x-expires-at"] = 1.into();
    lab.push(message.to_string()).await;
    assert!(lab.broker.take(&lab.queue).await.unwrap().is_none());
    assert_eq!(lab.unacked().await, 0);
    lab.push(message.to_string()).await;
    // kombu's own expiry has no beginning, so that it never ends here.
    lab.push(kombu_message(&lab.queue, "fresh")).await;
    let mut consumer = lab.consumer(1).await;
    assert_eq!(next(&mut consumer).await.message.headers["id"], "fresh");
    // What rtask publishes tells when it ends.
    let mut mortal = publication(&lab.queue, "");
    mortal.message.properties.expiration = Some("60000".to_owned());
    lab.broker.publish(mortal).await.unwrap();
    let element: String = lab.raw.lpop(lab.key(&lab.queue), None).await.unwrap();
    let element: Value = serde_json::from_str(&element).unwrap();
    let end = element["properties"]["x-expires-at"].as_i64().unwrap();
    assert!((0..=60_000).contains(&(end - jiff::Timestamp::now().as_millisecond())), "{end}");
}

/// golden/02_redis_transport/16_pidbox_ping.json.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kombus_remote_control_is_heard_and_answered() {
    let mut lab = Lab::new().await;
    let mut listener = lab.broker.listen("w1@host").await.unwrap();
    let mailbox = HashSet::from([format!("{SEPARATOR}{SEPARATOR}w1@host.celery.pidbox")]);
    assert_eq!(lab.members("_kombu.binding.celery.pidbox").await, mailbox);
    let deadline = lab.raw.zscore(lab.key("_kombu.binding_deadlines"), "celery.pidbox").await.unwrap().unwrap();
    let left = deadline - jiff::Timestamp::now().as_millisecond() as f64;
    assert!((3_500_000.0..=3_600_000.0).contains(&left), "{left}");
    lab.raw.publish(lab.key("/0.celery.pidbox"), kombu_message("", "ping")).await.unwrap();
    let heard = next(&mut listener).await;
    assert_eq!((&*heard.queue, &heard.message.headers["id"]), ("w1@host.celery.pidbox", &json!("ping")));
    // Whoever asks has bound a queue of their own.
    let asker = unique("asker");
    let binding = format!("oid{SEPARATOR}{SEPARATOR}{asker}");
    lab.raw.sadd(lab.key("_kombu.binding.reply.celery.pidbox"), binding).await.unwrap();
    let target = Target::Reply { exchange: "reply.celery.pidbox".to_owned(), routing_key: "oid".to_owned() };
    let message = publication("q", "pong").message;
    lab.broker.publish(Publication { target, message }).await.unwrap();
    assert_eq!(lab.raw.llen(lab.key(&asker)).await.unwrap(), 1);
    let lifetime: i64 = redis::cmd("TTL").arg(lab.key(&asker)).query_async(&mut lab.raw).await.unwrap();
    assert!(lifetime > 80_000, "{lifetime}");
    soon(listener.cancel()).await;
    assert!(lab.members("_kombu.binding.celery.pidbox").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_nobody_keeps_is_swept_unless_it_is_for_good() {
    let mut lab = Lab::new().await;
    for table in ["dead", "lasting"] {
        lab.raw.sadd(lab.key(&format!("_kombu.binding.{table}")), "member").await.unwrap();
        lab.raw.zadd(lab.key("_kombu.binding_deadlines"), table, 1).await.unwrap();
    }
    lab.raw.sadd(lab.key("_kombu.binding_permanent.lasting"), "member").await.unwrap();
    let _listener = lab.broker.listen("w1@host").await.unwrap();
    assert!(lab.members("_kombu.binding.dead").await.is_empty());
    assert_eq!(lab.members("_kombu.binding.lasting").await.len(), 1);
    let kept = lab.raw.zcard(lab.key("_kombu.binding_deadlines")).await.unwrap();
    assert_eq!(kept, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fanout_message_gets_into_a_queue_once_whoever_brings_it() {
    let mut lab = Lab::new().await;
    let fanout = exchange("news", ExchangeKind::Fanout);
    let queue = bound(&lab.queue, fanout.clone(), "");
    // Before anybody listens.
    lab.broker.declare(&queue).await.unwrap();
    let target = Target::Exchange { exchange: fanout, routing_key: "x".to_owned() };
    let message = publication("q", "early").message;
    lab.broker.publish(Publication { target, message }).await.unwrap();
    let mut one = lab.broker.consume(consuming(queue.clone())).await.unwrap();
    let early = next(&mut one).await;
    assert_eq!((body(&early), early.routing.exchange.as_str()), ("early", "news"));
    early.ack().await.unwrap();
    // From kombu, to two who listen for the same queue.
    let _two = lab.broker.consume(consuming(queue)).await.unwrap();
    lab.raw.publish(lab.key("/0.news"), kombu_message("", "from kombu")).await.unwrap();
    until(async || lab.unacked().await == 1).await;
    lab.raw.publish(lab.key("/0.news/key"), kombu_message("", "again")).await.unwrap();
    until(async || lab.unacked().await == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_expires_does_so_only_without_a_consumer() {
    let mut lab = Lab::new().await;
    let queue = with_argument(&lab.queue, "x-expires", 60_000);
    let consumer = lab.broker.consume(Subscription { prefetch: 1, ..consuming(queue) }).await.unwrap();
    for index in 0..2 {
        lab.broker.publish(publication(&lab.queue, &index.to_string())).await.unwrap();
    }
    drop(consumer);
    let list = lab.key(&lab.queue);
    let again =
        lab.broker.consume(Subscription { prefetch: 1, ..consuming(with_argument(&lab.queue, "x-expires", 3_000)) });
    let _consumer = again.await.unwrap();
    let mut raw = lab.raw.clone();
    let lives =
        async |raw: &mut MultiplexedConnection| redis::cmd("PTTL").arg(&list).query_async::<i64>(raw).await.unwrap();
    until(async || (1..=3_000).contains(&lives(&mut lab.raw.clone()).await)).await;
    // It is put off again and again.
    let first: i64 = redis::cmd("PEXPIRETIME").arg(&list).query_async(&mut raw).await.unwrap();
    until(async || {
        redis::cmd("PEXPIRETIME").arg(&list).query_async::<i64>(&mut lab.raw.clone()).await.unwrap() > first
    })
    .await;
    assert!(lab.raw.zscore(lab.key("_kombu.binding_deadlines"), &lab.queue).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_a_prefix_sets_apart_is_apart() {
    let mut lab = Lab::new().await;
    let mut consumer = lab.consumer(0).await;
    for text in ["held", "postponed", "acked"] {
        lab.broker.publish(publication(&lab.queue, text)).await.unwrap();
    }
    let _held = next(&mut consumer).await;
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    next(&mut consumer).await.postpone(later).await.unwrap();
    next(&mut consumer).await.ack().await.unwrap();
    let keys = lab.raw.keys(format!("*{}*", lab.queue)).await.unwrap();
    assert!(keys.len() >= 4 && keys.iter().all(|key| key.starts_with(&lab.prefix)), "{keys:?}");
}
