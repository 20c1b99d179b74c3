//! What holds for messages that are put aside until their time, on every broker.

use std::collections::HashSet;

use jiff::{SignedDuration, Timestamp};
use rtask_broker::{Attempts, Publication};

use crate::{
    brokers::{body, full_message, next, subscription},
    servers::{BrokerLab, broker_facts, publication, soon, unique},
};

broker_facts![
    a_postponed_message_comes_back_in_time_as_a_first_attempt,
    what_is_postponed_neither_waits_nor_is_held,
    a_postponed_message_outlives_whoever_postponed_it,
    a_message_may_be_postponed_again_and_again,
    messages_come_back_to_the_queue_they_were_in,
    what_is_due_already_comes_back_at_once,
    many_are_postponed_at_once,
];

fn in_seconds(seconds: i64) -> Timestamp {
    Timestamp::now() + SignedDuration::from_secs(seconds)
}

async fn a_postponed_message_comes_back_in_time_as_a_first_attempt(lab: BrokerLab) {
    let sent = full_message();
    lab.broker.publish(Publication::to_queue(&lab.queue, sent.clone())).await.unwrap();
    let mut consumer = lab.broker.consume(subscription(&[&lab.queue], 1)).await.unwrap();
    let until = in_seconds(1);
    next(&mut consumer).await.postpone(until).await.unwrap();
    let back = next(&mut consumer).await;
    assert!(Timestamp::now() >= until);
    assert!(matches!(back.attempts, Attempts::First | Attempts::Number(1)), "{:?}", back.attempts);
    assert_eq!((&*back.queue, &back.message.body), (lab.queue.as_str(), &sent.body));
    for (name, value) in &sent.headers {
        assert_eq!(back.message.headers.get(name), Some(value), "{name}");
    }
    // A broker may take the time to live for over; the task's own expiry is in its headers.
    let mut properties = back.message.properties.clone();
    properties.expiration = sent.properties.expiration.clone();
    assert_eq!(properties, sent.properties);
    back.ack().await.unwrap();
    lab.until_waiting(0).await;
}

async fn what_is_postponed_neither_waits_nor_is_held(lab: BrokerLab) {
    for index in 0..5 {
        lab.publish(&index.to_string()).await;
    }
    let mut consumer = lab.broker.consume(subscription(&[&lab.queue], 2)).await.unwrap();
    for index in 0..5 {
        let mut delivery = next(&mut consumer).await;
        assert_eq!(body(&delivery), index.to_string());
        delivery.postpone(in_seconds(60)).await.unwrap();
    }
    let stats = lab.other.inspect(&lab.queue).await.unwrap().unwrap_or_default();
    assert_eq!((stats.messages, stats.unacked.unwrap_or(0)), (0, 0), "{stats:?}");
    assert!(matches!(stats.postponed, None | Some(5)), "{stats:?}");
    // There is room for two.
    lab.publish("one").await;
    lab.publish("two").await;
    let held = [next(&mut consumer).await, next(&mut consumer).await];
    assert_eq!(held.each_ref().map(body), ["one", "two"]);
}

async fn a_postponed_message_outlives_whoever_postponed_it(lab: BrokerLab) {
    lab.publish("later").await;
    let mut consumer = lab.broker.consume(subscription(&[&lab.queue], 1)).await.unwrap();
    next(&mut consumer).await.postpone(in_seconds(1)).await.unwrap();
    drop(consumer);
    soon(lab.broker.close()).await;
    let mut consumer = lab.other.consume(subscription(&[&lab.queue], 1)).await.unwrap();
    let back = next(&mut consumer).await;
    assert_eq!(body(&back), "later");
    back.ack().await.unwrap();
}

async fn a_message_may_be_postponed_again_and_again(lab: BrokerLab) {
    lab.publish("later").await;
    let mut consumer = lab.broker.consume(subscription(&[&lab.queue], 1)).await.unwrap();
    let mut sizes = Vec::new();
    for _ in 0..3 {
        let mut delivery = next(&mut consumer).await;
        assert!(matches!(delivery.attempts, Attempts::First | Attempts::Number(1)), "{:?}", delivery.attempts);
        sizes.push(serde_json::to_string(&delivery.message.headers).unwrap().len());
        delivery.postpone(in_seconds(1)).await.unwrap();
    }
    // What a broker notes in the message does not grow each time.
    assert_eq!(sizes[1], sizes[2]);
    next(&mut consumer).await.ack().await.unwrap();
}

/// A broker that leads messages back by patterns must not take dots in a name for anything.
async fn messages_come_back_to_the_queue_they_were_in(lab: BrokerLab) {
    let dotted = format!("{}.{}", unique("queue"), lab.queue);
    let queues = [lab.queue.as_str(), &dotted, &unique("queue")];
    for queue in queues {
        lab.broker.publish(publication(queue, queue)).await.unwrap();
    }
    let mut consumer = lab.broker.consume(subscription(&queues, 1)).await.unwrap();
    for _ in queues {
        next(&mut consumer).await.postpone(in_seconds(1)).await.unwrap();
    }
    let mut seen = HashSet::new();
    for _ in queues {
        let back = next(&mut consumer).await;
        assert_eq!(body(&back), &*back.queue);
        assert!(seen.insert(back.queue.clone()), "{} twice", back.queue);
        back.ack().await.unwrap();
    }
}

async fn what_is_due_already_comes_back_at_once(lab: BrokerLab) {
    lab.publish("overdue").await;
    let mut consumer = lab.broker.consume(subscription(&[&lab.queue], 1)).await.unwrap();
    next(&mut consumer).await.postpone(in_seconds(-5)).await.unwrap();
    let back = next(&mut consumer).await;
    assert_eq!(body(&back), "overdue");
    back.ack().await.unwrap();
}

async fn many_are_postponed_at_once(lab: BrokerLab) {
    const MANY: usize = 200;
    for index in 0..MANY {
        lab.publish(&index.to_string()).await;
    }
    let mut consumer = lab.broker.consume(subscription(&[&lab.queue], 50)).await.unwrap();
    let mut postponing = tokio::task::JoinSet::new();
    for _ in 0..MANY {
        let mut delivery = next(&mut consumer).await;
        postponing.spawn(async move { delivery.postpone(in_seconds(2)).await });
    }
    while let Some(postponed) = soon(postponing.join_next()).await {
        postponed.unwrap().unwrap();
    }
    let mut bodies = HashSet::new();
    for _ in 0..MANY {
        let back = next(&mut consumer).await;
        assert!(bodies.insert(body(&back).to_owned()), "{} twice", body(&back));
        back.ack().await.unwrap();
    }
    lab.until_waiting(0).await;
}
