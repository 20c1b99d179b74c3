//! What is particular to RabbitMQ.

use std::time::Duration;

use futures::future::try_join_all;
use lapin::{
    Connection, ConnectionProperties, ExchangeKind,
    options::{BasicGetOptions, ExchangeDeclareOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPType, AMQPValue, FieldTable},
};
use rtask_broker::{Attempts, BrokerError, Patience, Publication, Refusal, SharedBroker, connect_broker};
use rtask_protocol::Message;

use crate::{
    brokers::{body, golden_headers, next, subscription},
    proxy::{Proxy, host_of},
    servers::{amqp_url, publication, soon, unique, until},
};

/// What the issue promises of a command that cannot work.
const AT_ONCE: Duration = Duration::from_secs(5);

async fn broker() -> SharedBroker {
    connect_broker(&amqp_url(), Patience::FailFast).await.unwrap()
}

/// What another program does with the server.
pub async fn channel(url: &str) -> lapin::Channel {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    connection.create_channel().await.unwrap()
}

/// Declare a durable queue as an operator does, with an argument.
pub async fn declare(url: &str, queue: &str, argument: &str, value: AMQPValue) {
    let mut arguments = FieldTable::default();
    arguments.insert(argument.into(), value);
    channel(url).await.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_have_the_types_that_py_amqp_gives_them() {
    let (broker, queue) = (broker().await, unique("queue"));
    let message = Message { headers: golden_headers(), ..publication("", "").message };
    broker.publish(Publication::to_queue(&queue, message)).await.unwrap();
    let channel = channel(&amqp_url()).await;
    let got = channel.basic_get(queue.as_str().into(), BasicGetOptions { no_ack: true }).await.unwrap().unwrap();
    let headers = got.delivery.properties.headers().clone().unwrap();
    let rows = [
        ("task", AMQPType::LongString),
        ("shadow", AMQPType::Void),
        ("retries", AMQPType::LongInt),
        ("timelimit", AMQPType::FieldArray),
        ("ignore_result", AMQPType::Boolean),
        ("stamps", AMQPType::FieldTable),
        ("x-large", AMQPType::LongLongInt),
    ];
    for (name, expected) in rows {
        assert_eq!(headers.inner()[name].get_type(), expected, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_are_declared_as_celery_declares_them() {
    let (broker, queue, channel) = (broker().await, unique("queue"), channel(&amqp_url()).await);
    broker.publish(publication(&queue, "")).await.unwrap();
    // Any difference is refused with 406.
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel
        .exchange_declare(queue.as_str().into(), ExchangeKind::Direct, durable, FieldTable::default())
        .await
        .unwrap();
    let declared = QueueDeclareOptions::durable();
    channel.queue_declare(queue.as_str().into(), declared, FieldTable::default()).await.unwrap();
    // Bound to the exchange of its own name.
    let name = || queue.as_str().into();
    let sent = channel.basic_publish(name(), name(), Default::default(), b"", Default::default()).await;
    sent.unwrap().await.unwrap();
    until(async || broker.waiting(&queue).await.unwrap() == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quorum_queue_is_used_as_it_is_and_counts() {
    let (broker, queue) = (broker().await, unique("queue"));
    declare(&amqp_url(), &queue, "x-queue-type", AMQPValue::LongString("quorum".into())).await;
    broker.publish(publication(&queue, "counted")).await.unwrap();
    let mut consumer = broker.consume(subscription(&[&queue], 1)).await.unwrap();
    for attempt in 1..=3 {
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.attempts, Attempts::Number(attempt));
        delivery.requeue().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_cannot_forge_the_delivery_count() {
    let (broker, queue) = (broker().await, unique("queue"));
    let mut forged = publication(&queue, "");
    forged.message.headers.insert("x-delivery-count".to_owned(), 0.into());
    broker.publish(forged).await.unwrap();
    let mut consumer = broker.consume(subscription(&[&queue], 1)).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.attempts, Attempts::First);
    delivery.requeue().await.unwrap();
    assert_eq!(next(&mut consumer).await.attempts, Attempts::Again);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_of_another_kind_is_not_in_the_way() {
    let (broker, queue, channel) = (broker().await, unique("queue"), channel(&amqp_url()).await);
    let (kind, options) = (ExchangeKind::Topic, ExchangeDeclareOptions::default());
    channel.exchange_declare(queue.as_str().into(), kind, options, FieldTable::default()).await.unwrap();
    broker.publish(publication(&queue, "")).await.unwrap();
    until(async || broker.waiting(&queue).await.unwrap() == 1).await;
}

/// RabbitMQ allows 2,047 channels for a connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_messages_can_be_taken_than_there_are_channels() {
    const MANY: usize = 2_100;
    let (broker, queue) = (broker().await, unique("queue"));
    try_join_all((0..MANY).map(|_| broker.publish(publication(&queue, "")))).await.unwrap();
    let mut taken = Vec::new();
    for _ in 0..MANY {
        taken.push(broker.take(&queue).await.unwrap().unwrap());
    }
    // Another queue, though it is none, is not in their way.
    assert!(broker.take(&unique("queue")).await.unwrap().is_none());
    for delivery in taken {
        delivery.ack().await.unwrap();
    }
    assert_eq!(broker.waiting(&queue).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_queue_is_declared_again() {
    let (broker, queue, channel) = (broker().await, unique("queue"), channel(&amqp_url()).await);
    let delete = async || {
        channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    };
    broker.publish(publication(&queue, "lost with the queue")).await.unwrap();
    delete().await;
    soon(broker.publish(publication(&queue, "kept"))).await.unwrap();
    let mut consumer = broker.consume(subscription(&[&queue], 1)).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!(body(&delivery), "kept");
    delete().await;
    soon(broker.publish(publication(&queue, "kept too"))).await.unwrap();
    assert_eq!(body(&next(&mut consumer).await), "kept too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receiving_and_publishing_go_on_after_the_connection_is_cut() {
    let (proxy, url) = Proxy::to(&amqp_url()).await;
    let broker = connect_broker(&url, Patience::Forever).await.unwrap();
    let queue = unique("queue");
    let mut consumer = broker.consume(subscription(&[&queue], 10)).await.unwrap();
    for round in 0..3 {
        let text = format!("round {round}");
        soon(broker.publish(publication(&queue, &text))).await.unwrap();
        let held = next(&mut consumer).await;
        assert_eq!(body(&held), text);
        proxy.cut();
        let again = next(&mut consumer).await;
        assert_eq!((body(&again), again.attempts), (text.as_str(), Attempts::Again));
        assert!(matches!(held.ack().await, Err(BrokerError::NotOurs { .. })));
        again.ack().await.unwrap();
    }
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_waits_for_a_server_that_is_down() {
    let (proxy, url) = Proxy::to(&amqp_url()).await;
    let broker = connect_broker(&url, Patience::Forever).await.unwrap();
    let queue = unique("queue");
    broker.publish(publication(&queue, "before")).await.unwrap();
    proxy.go_down();
    let publishing = {
        let (broker, queue) = (broker.clone(), queue.clone());
        tokio::spawn(async move { broker.publish(publication(&queue, "meanwhile")).await })
    };
    until(async || proxy.connections() == 0).await;
    proxy.come_up();
    soon(publishing).await.unwrap().unwrap();
    // At least once: a first attempt may have been kept, and only its confirmation cut off.
    until(async || broker.waiting(&queue).await.unwrap() >= 2).await;
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_ends_at_once_however_patient_one_is() {
    let url = amqp_url();
    let server = host_of(&url).to_owned();
    let (scheme, address) = url.split_once("://").unwrap();
    let (authority, vhost) = address.split_once('/').unwrap_or((address, ""));
    let rows = [
        (format!("amqp://guest:wrong@{server}/{vhost}"), Refusal::Credentials),
        (format!("amqp://nobody:wrong@{server}/{vhost}"), Refusal::Credentials),
        (format!("{scheme}://{authority}/no-such-vhost"), Refusal::VirtualHost),
    ];
    for patience in [Patience::FailFast, Patience::Forever] {
        for (url, expected) in &rows {
            let refused = tokio::time::timeout(AT_ONCE, connect_broker(url, patience)).await;
            let error = refused.expect("it takes too long").err().expect(url);
            assert!(error.is_permanent() && !error.to_string().contains("wrong@"), "{error}");
            let BrokerError::Refused { refusal, .. } = error else { panic!("{error}") };
            assert_eq!(refusal, *expected);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_down_ends_only_the_impatient() {
    let (proxy, url) = Proxy::to(&amqp_url()).await;
    proxy.go_down();
    let failed = tokio::time::timeout(AT_ONCE, connect_broker(&url, Patience::FailFast)).await;
    let error = failed.expect("it takes too long").err().unwrap();
    assert!(!error.is_permanent() && error.to_string().contains(&proxy.address().to_string()), "{error}");
    let patient = tokio::spawn(async move { connect_broker(&url, Patience::Forever).await });
    proxy.come_up();
    soon(patient).await.unwrap().unwrap().close().await;
}
