//! Delays beside Celery's own (golden/01b_native_delayed_delivery), and remote control's mailbox.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lapin::{
    BasicProperties, ExchangeKind,
    options::{BasicPublishOptions, ExchangeDeclareOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};
use rtask_broker::{
    Attempts, Binding, BrokerError, Consumer, Exchange, Patience, Queue, SharedBroker, Subscription, connect_broker,
};

use crate::{
    amqp::channel,
    brokers::{body, next, subscription},
    proxy::{Proxy, host_of},
    servers::{amqp_url, publication, rabbitmqctl, soon, unique, until, with_argument},
};

async fn broker() -> SharedBroker {
    connect_broker(&amqp_url(), Patience::FailFast).await.unwrap()
}

fn in_a_second() -> Timestamp {
    Timestamp::now() + SignedDuration::from_secs(1)
}

/// A quorum queue behind a topic exchange of its name, as Celery wants it for its delays.
fn celerys_queue(name: &str, routing_key: &str) -> Queue {
    let exchange = Exchange { name: name.to_owned(), kind: rtask_broker::ExchangeKind::Topic };
    let binding = Binding { exchange, routing_key: routing_key.to_owned(), arguments: Default::default() };
    Queue { bindings: vec![binding], ..with_argument(name, "x-queue-type", "quorum") }
}

fn consuming(queue: Queue) -> Subscription {
    Subscription { queues: vec![queue], prefetch: 10, tag: unique("consumer") }
}

/// What Celery's client publishes for a countdown of a second.
async fn put_aside_as_celery(routing_key: &str, text: &[u8]) {
    let key = format!("{}1.{routing_key}", "0.".repeat(27));
    let options = BasicPublishOptions::default();
    let channel = channel(&amqp_url()).await;
    channel.confirm_select(Default::default()).await.unwrap();
    let sent = channel.basic_publish("celery_delayed_27".into(), key.into(), options, text, BasicProperties::default());
    sent.await.unwrap().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_celery_puts_aside_comes_in_time() {
    let (broker, name) = (broker().await, unique("queue"));
    let mut consumer = broker.consume(consuming(celerys_queue(&name, &name))).await.unwrap();
    put_aside_as_celery(&name, b"celery's").await;
    let mut delivery = next(&mut consumer).await;
    assert_eq!((body(&delivery), delivery.attempts), ("celery's", Attempts::Number(1)));
    assert_eq!(delivery.routing.exchange, "celery_delayed_delivery");
    assert!(delivery.routing.routing_key.ends_with(&name) && delivery.message.headers.contains_key("x-death"));
    // Ours from here on; what the server wrote into it is not taken along.
    delivery.postpone(in_a_second()).await.unwrap();
    let delivery = next(&mut consumer).await;
    let deaths = delivery.message.headers["x-death"].as_array().unwrap();
    assert_eq!((body(&delivery), deaths.len(), &deaths[0]["count"]), ("celery's", 1, &1.into()));
    delivery.ack().await.unwrap();
    // Once only, though Celery's bindings are there beside ours.
    broker.publish(publication(&name, "the end")).await.unwrap();
    assert_eq!(body(&next(&mut consumer).await), "the end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_we_put_aside_never_reaches_what_celery_has_bound() {
    let broker = broker().await;
    let word = unique("word");
    let (ours, theirs) = (format!("{}.{word}.x", unique("queue")), unique("queue"));
    let mut celery = broker.consume(consuming(celerys_queue(&theirs, &format!("{word}.#")))).await.unwrap();
    let mut consumer = broker.consume(subscription(&[&ours], 1)).await.unwrap();
    broker.publish(publication(&ours, "ours")).await.unwrap();
    next(&mut consumer).await.postpone(in_a_second()).await.unwrap();
    let back = next(&mut consumer).await;
    assert_eq!(body(&back), "ours");
    back.ack().await.unwrap();
    broker.publish(publication(&theirs, "the end")).await.unwrap();
    assert_eq!(body(&next(&mut celery).await), "the end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn levels_are_declared_as_celery_declares_them() {
    let (broker, queue, channel) = (broker().await, unique("queue"), channel(&amqp_url()).await);
    broker.publish(publication(&queue, "x")).await.unwrap();
    let mut taken = broker.take(&queue).await.unwrap().unwrap();
    taken.postpone(in_a_second()).await.unwrap();
    // golden/01b_native_delayed_delivery/01_worker_startup_declares.json; any difference is refused with 406.
    let text = |text: &str| AMQPValue::LongString(text.into());
    for (level, milliseconds, next) in [
        (27, AMQPValue::LongLongInt(134_217_728_000), "celery_delayed_26"),
        (0, AMQPValue::LongInt(1_000), "celery_delayed_delivery"),
    ] {
        let name = format!("celery_delayed_{level}");
        let mut arguments = FieldTable::default();
        for (name, value) in [
            ("x-queue-type", text("quorum")),
            ("x-overflow", text("reject-publish")),
            ("x-message-ttl", milliseconds),
            ("x-dead-letter-exchange", text(next)),
            ("x-dead-letter-strategy", text("at-least-once")),
        ] {
            arguments.insert(name.into(), value);
        }
        channel.queue_declare(name.as_str().into(), QueueDeclareOptions::durable(), arguments).await.unwrap();
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        for exchange in [name.as_str(), next] {
            let none = FieldTable::default();
            channel.exchange_declare(exchange.into(), ExchangeKind::Topic, durable, none).await.unwrap();
        }
    }
    until(async || broker.waiting(&queue).await.unwrap() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn levels_of_another_kind_are_used_as_they_are() {
    let vhost = unique("vhost");
    let url = format!("amqp://guest:guest@{}/{vhost}", host_of(&amqp_url()));
    rabbitmqctl(&["add_vhost", &vhost]);
    rabbitmqctl(&["set_permissions", "-p", &vhost, "guest", ".*", ".*", ".*"]);
    // Somebody has made them by hand.
    let channel = channel(&url).await;
    for (bit, next) in [(0, "celery_delayed_delivery"), (1, "celery_delayed_0")] {
        let mut arguments = FieldTable::default();
        arguments.insert("x-message-ttl".into(), (1_000 << bit).into());
        arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString(next.into()));
        let name = format!("celery_delayed_{bit}");
        channel.queue_declare(name.into(), QueueDeclareOptions::durable(), arguments).await.unwrap();
    }
    let (broker, queue) = (connect_broker(&url, Patience::FailFast).await.unwrap(), unique("queue"));
    broker.publish(publication(&queue, "x")).await.unwrap();
    let mut consumer = broker.consume(subscription(&[&queue], 1)).await.unwrap();
    next(&mut consumer).await.postpone(Timestamp::now() + SignedDuration::from_secs(3)).await.unwrap();
    assert_eq!(body(&next(&mut consumer).await), "x");
    rabbitmqctl(&["delete_vhost", &vhost]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_put_aside_waits_for_a_queue_that_was_deleted() {
    let (broker, queue, channel) = (broker().await, unique("queue"), channel(&amqp_url()).await);
    broker.publish(publication(&queue, "x")).await.unwrap();
    let mut consumer = broker.consume(subscription(&[&queue], 1)).await.unwrap();
    next(&mut consumer).await.postpone(in_a_second()).await.unwrap();
    soon(consumer.cancel()).await;
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let mut consumer = broker.consume(subscription(&[&queue], 1)).await.unwrap();
    assert_eq!(body(&next(&mut consumer).await), "x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_of_our_own_declaration_is_known_as_a_quorum_queue() {
    let (broker, name) = (broker().await, unique("queue"));
    let mut consumer = broker.consume(consuming(with_argument(&name, "x-queue-type", "quorum"))).await.unwrap();
    broker.publish(publication(&name, "x")).await.unwrap();
    assert_eq!(next(&mut consumer).await.attempts, Attempts::Number(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_declaration_that_cannot_be_is_refused_for_good() {
    let broker = connect_broker(&amqp_url(), Patience::Forever).await.unwrap();
    let odd = with_argument(&unique("queue"), "x-queue-type", "no such type");
    let error = soon(broker.consume(consuming(odd))).await.err().unwrap();
    assert!(matches!(error, BrokerError::Damaged { .. }) && error.to_string().contains("x-queue-type"), "{error}");
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mailbox_is_where_celery_looks_for_it() {
    let (broker, node, channel) = (broker().await, unique("w1@host"), channel(&amqp_url()).await);
    let mut mailbox = broker.listen(&node).await.unwrap();
    // golden/06_startup_gossip_mingle: exclusive, and bound to an exchange that is not durable.
    let (kind, options, none) = (ExchangeKind::Fanout, ExchangeDeclareOptions::default(), FieldTable::default);
    channel.exchange_declare("celery.pidbox".into(), kind, options, none()).await.unwrap();
    let sent = channel.basic_publish("celery.pidbox".into(), "".into(), Default::default(), b"x", Default::default());
    sent.await.unwrap().await.unwrap();
    while body(&next(&mut mailbox).await) != "x" {}
    let queue = format!("{node}.celery.pidbox");
    let other = crate::amqp::channel(&amqp_url()).await;
    let passive = QueueDeclareOptions::default().passive();
    let locked = other.queue_declare(queue.as_str().into(), passive, none()).await.unwrap_err();
    assert!(locked.to_string().contains("RESOURCE_LOCKED"), "{locked}");
    // It goes with its listener.
    soon(mailbox.cancel()).await;
    until(async || broker.inspect(&queue).await.unwrap().is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_listeners_of_one_name_take_turns() {
    let (first, second, node) = (broker().await, broker().await, unique("w1@host"));
    let text = unique("broadcast");
    let mut holder = soon(first.listen(&node)).await.unwrap();
    let mut heir = soon(second.listen(&node)).await.unwrap();
    first.broadcast(publication("q", &text).message).await.unwrap();
    while body(&next(&mut holder).await) != text {}
    soon(holder.cancel()).await;
    call_until_heard(&first, &text, &mut heir).await;
}

/// Broadcast again and again until the listener is there.
async fn call_until_heard(broker: &SharedBroker, text: &str, listener: &mut Consumer) {
    let heard = async { while body(&next(listener).await) != text {} };
    let calling = async {
        loop {
            broker.broadcast(publication("q", text).message).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! { () = heard => {} () = calling => {} }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_listens_again_after_its_connection_was_cut() {
    let (proxy, url) = Proxy::to(&amqp_url()).await;
    let broker = connect_broker(&url, Patience::Forever).await.unwrap();
    let (beside, node) = (self::broker().await, unique("w1@host"));
    let mut mailbox = broker.listen(&node).await.unwrap();
    for round in 0..2 {
        let text = unique(&format!("broadcast-{round}"));
        call_until_heard(&beside, &text, &mut mailbox).await;
        proxy.cut();
    }
    broker.close().await;
}
