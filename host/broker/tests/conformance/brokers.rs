//! What holds for every broker.

use std::collections::HashSet;

use bytes::Bytes;
use futures::{FutureExt, future::join_all};
use jiff::{SignedDuration, Timestamp};
use rtask_broker::{Attempts, BrokerError, Consumer, Delivery, Publication, Queue, Subscription};
use rtask_protocol::{Headers, Message, Properties};
use serde_json::json;

use crate::servers::{BrokerLab, broker_facts, publication, soon, unique, with_argument};

broker_facts![
    a_message_arrives_as_it_was_sent,
    a_large_body_and_an_empty_one_arrive,
    messages_arrive_in_order,
    an_acked_or_rejected_message_is_gone,
    a_requeued_message_is_delivered_again,
    a_dropped_delivery_is_delivered_again,
    prefetch_bounds_what_is_unsettled,
    what_is_taken_is_not_waiting,
    a_queue_that_nobody_declared_is_empty,
    several_queues_are_consumed_side_by_side,
    two_consumers_share_a_queue,
    a_cancelled_consumer_gives_back_what_nobody_took,
    a_dropped_consumer_gives_back_what_it_had,
    a_closed_broker_gives_back_what_is_unsettled,
    concurrent_publications_are_all_kept,
    an_expired_message_is_never_delivered,
    what_cannot_be_sent_is_refused_for_good,
    without_a_prefetch_everything_is_handed_out,
    a_queue_tells_what_is_in_it,
    purging_removes_what_waits_and_says_how_much;
    except quorum and redis: a_higher_priority_is_served_first
];

pub fn subscription(queues: &[&str], prefetch: u16) -> Subscription {
    let queues = queues.iter().map(|&queue| Queue::named(queue)).collect();
    Subscription { queues, prefetch, tag: unique("consumer") }
}

pub async fn next(consumer: &mut Consumer) -> Delivery {
    soon(consumer.next()).await.expect("the consumer is given up")
}

pub fn body(delivery: &Delivery) -> &str {
    std::str::from_utf8(&delivery.message.body).unwrap()
}

/// golden/01_amqp_task_messages/31_stamps_visitor.json and 17_custom_headers.json, put together.
pub fn golden_headers() -> Headers {
    let headers = json!({
        "lang": "py", "task": "tasks.add", "id": "0aceeb76-6523-4e65-806c-e247d5f85eaf", "shadow": null,
        "eta": null, "expires": null, "group": null, "group_index": null, "retries": 0,
        "timelimit": [30, 2.5], "root_id": "0aceeb76-6523-4e65-806c-e247d5f85eaf", "parent_id": null,
        "argsrepr": "(2, 2)", "kwargsrepr": "{}", "origin": "gen1@host", "ignore_result": false,
        "replaced_task_nesting": 0, "stamped_headers": ["header", "monitor"],
        "stamps": {"header": ["value"], "monitor": ["0f1e"]},
        "x-large": 5_000_000_000_i64, "x-negative": -5_000_000_000_i64, "x-unicode": "zażółć",
    });
    headers.as_object().unwrap().clone()
}

pub fn full_message() -> Message {
    let text = |text: &str| Some(text.to_owned());
    let properties = Properties {
        content_type: text("application/json"),
        content_encoding: text("utf-8"),
        delivery_mode: Some(2),
        priority: Some(3),
        correlation_id: text("0aceeb76-6523-4e65-806c-e247d5f85eaf"),
        reply_to: text("2a150778-ece6-3b1d-a076-d7cd5f1dace6"),
        expiration: text("600000"),
        message_id: text("m"),
        timestamp: Some(1_795_510_242),
        kind: text("kind"),
        app_id: text("app"),
    };
    Message { headers: golden_headers(), properties, body: "[[2, 2], {}, {}]".into() }
}

async fn a_message_arrives_as_it_was_sent(lab: BrokerLab) {
    let sent = full_message();
    lab.broker.publish(Publication::to_queue(&lab.queue, sent.clone())).await.unwrap();
    let mut consumer = lab.other.consume(subscription(&[&lab.queue], 1)).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.message, sent);
    assert_eq!(&*delivery.queue, lab.queue);
    assert!(matches!(delivery.attempts, Attempts::First | Attempts::Number(1)), "{:?}", delivery.attempts);
    delivery.ack().await.unwrap();
}

async fn a_large_body_and_an_empty_one_arrive(lab: BrokerLab) {
    let large: Bytes = (0..1 << 20).map(|index: u32| index as u8).collect::<Vec<_>>().into();
    for body in [large, Bytes::new()] {
        let message = Message { body: body.clone(), ..full_message() };
        lab.broker.publish(Publication::to_queue(&lab.queue, message)).await.unwrap();
        let delivery = lab.other.take(&lab.queue).await.unwrap().unwrap();
        assert!(delivery.message.body == body);
        delivery.ack().await.unwrap();
    }
}

async fn messages_arrive_in_order(lab: BrokerLab) {
    for index in 0..20 {
        lab.publish(&index.to_string()).await;
    }
    let mut consumer = lab.broker.consume(subscription(&[&lab.queue], 3)).await.unwrap();
    for index in 0..20 {
        let delivery = next(&mut consumer).await;
        assert_eq!(body(&delivery), index.to_string());
        delivery.ack().await.unwrap();
    }
}

async fn an_acked_or_rejected_message_is_gone(lab: BrokerLab) {
    lab.publish("acked").await;
    lab.publish("rejected").await;
    let mut consumer = lab.broker.consume(subscription(&[&lab.queue], 2)).await.unwrap();
    next(&mut consumer).await.ack().await.unwrap();
    next(&mut consumer).await.reject().await.unwrap();
    lab.publish("last").await;
    assert_eq!(body(&next(&mut consumer).await), "last");
}

async fn a_requeued_message_is_delivered_again(lab: BrokerLab) {
    lab.publish("again").await;
    let mut consumer = lab.broker.consume(subscription(&[&lab.queue], 1)).await.unwrap();
    for attempt in 1..=3 {
        let delivery = next(&mut consumer).await;
        let expected = if attempt == 1 { Attempts::First } else { Attempts::Again };
        assert!([expected, Attempts::Number(attempt)].contains(&delivery.attempts), "{:?}", delivery.attempts);
        delivery.requeue().await.unwrap();
    }
}

async fn a_dropped_delivery_is_delivered_again(lab: BrokerLab) {
    lab.publish("again").await;
    let mut consumer = lab.broker.consume(subscription(&[&lab.queue], 1)).await.unwrap();
    drop(next(&mut consumer).await);
    let again = next(&mut consumer).await;
    assert!(matches!(again.attempts, Attempts::Again | Attempts::Number(2)), "{:?}", again.attempts);
    drop(again);
    let taken_again = next(&mut consumer).await;
    taken_again.ack().await.unwrap();
    lab.until_waiting(0).await;
}

async fn prefetch_bounds_what_is_unsettled(lab: BrokerLab) {
    for index in 0..5 {
        lab.publish(&index.to_string()).await;
    }
    let mut consumer = lab.broker.consume(subscription(&[&lab.queue], 2)).await.unwrap();
    let first = next(&mut consumer).await;
    let second = next(&mut consumer).await;
    lab.until_waiting(3).await;
    assert!(consumer.next().now_or_never().is_none());
    first.ack().await.unwrap();
    assert_eq!(body(&next(&mut consumer).await), "2");
    drop(second);
}

async fn what_is_taken_is_not_waiting(lab: BrokerLab) {
    lab.publish("first").await;
    lab.publish("second").await;
    lab.until_waiting(2).await;
    let taken = lab.other.take(&lab.queue).await.unwrap().unwrap();
    assert_eq!(body(&taken), "first");
    lab.until_waiting(1).await;
    taken.requeue().await.unwrap();
    lab.until_waiting(2).await;
    // In whatever order: a quorum queue puts what comes back behind the rest.
    let mut bodies = HashSet::new();
    for _ in 0..2 {
        let taken = lab.broker.take(&lab.queue).await.unwrap().unwrap();
        bodies.insert(body(&taken).to_owned());
        taken.ack().await.unwrap();
    }
    assert_eq!(bodies, HashSet::from(["first".to_owned(), "second".to_owned()]));
    assert!(lab.broker.take(&lab.queue).await.unwrap().is_none());
}

async fn a_queue_that_nobody_declared_is_empty(lab: BrokerLab) {
    assert_eq!(lab.broker.waiting(&lab.queue).await.unwrap(), 0);
    assert!(lab.broker.take(&lab.queue).await.unwrap().is_none());
    // Neither did that leave anything unusable.
    lab.publish("first").await;
    lab.until_waiting(1).await;
}

async fn several_queues_are_consumed_side_by_side(lab: BrokerLab) {
    let others = [unique("queue"), unique("queue")];
    let queues = [lab.queue.as_str(), &others[0], &others[1]];
    let mut consumer = lab.broker.consume(subscription(&queues, 1)).await.unwrap();
    for queue in queues {
        lab.other.publish(publication(queue, queue)).await.unwrap();
    }
    // Unsettled all three, since the prefetch is each queue's.
    let mut held = Vec::new();
    for _ in queues {
        held.push(next(&mut consumer).await);
    }
    let arrived: HashSet<_> = held.iter().map(|delivery| (body(delivery), &*delivery.queue)).collect();
    assert_eq!(arrived, queues.iter().map(|&queue| (queue, queue)).collect());
}

async fn two_consumers_share_a_queue(lab: BrokerLab) {
    let mut one = lab.broker.consume(subscription(&[&lab.queue], 1)).await.unwrap();
    let mut two = lab.other.consume(subscription(&[&lab.queue], 1)).await.unwrap();
    lab.publish("a").await;
    lab.publish("b").await;
    let (one, two) = (next(&mut one).await, next(&mut two).await);
    let bodies = HashSet::from([body(&one), body(&two)]);
    assert_eq!(bodies, HashSet::from(["a", "b"]));
}

async fn a_cancelled_consumer_gives_back_what_nobody_took(lab: BrokerLab) {
    for index in 0..5 {
        lab.publish(&index.to_string()).await;
    }
    let mut consumer = lab.broker.consume(subscription(&[&lab.queue], 5)).await.unwrap();
    let running = next(&mut consumer).await;
    lab.until_waiting(0).await;
    soon(consumer.cancel()).await;
    lab.until_waiting(4).await;
    // What was taken is still the taker's.
    running.ack().await.unwrap();
    lab.until_waiting(4).await;
}

async fn a_dropped_consumer_gives_back_what_it_had(lab: BrokerLab) {
    for index in 0..5 {
        lab.publish(&index.to_string()).await;
    }
    let mut consumer = lab.broker.consume(subscription(&[&lab.queue], 3)).await.unwrap();
    let running = next(&mut consumer).await;
    drop(consumer);
    lab.until_waiting(4).await;
    running.ack().await.unwrap();
}

async fn a_closed_broker_gives_back_what_is_unsettled(lab: BrokerLab) {
    for index in 0..3 {
        lab.publish(&index.to_string()).await;
    }
    let mut consumer = lab.broker.consume(subscription(&[&lab.queue], 2)).await.unwrap();
    let held = next(&mut consumer).await;
    lab.until_waiting(1).await;
    soon(lab.broker.close()).await;
    lab.until_waiting(3).await;
    assert!(matches!(held.ack().await, Err(BrokerError::NotOurs { .. })));
    let refused = lab.broker.publish(publication(&lab.queue, "late")).await;
    assert!(matches!(refused, Err(BrokerError::Closed { .. })), "{refused:?}");
    while soon(consumer.next()).await.is_some() {}
}

async fn concurrent_publications_are_all_kept(lab: BrokerLab) {
    let publications = (0..500).map(|index| lab.broker.publish(publication(&lab.queue, &index.to_string())));
    for published in soon(join_all(publications)).await {
        published.unwrap();
    }
    let mut consumer = lab.other.consume(subscription(&[&lab.queue], 50)).await.unwrap();
    let mut bodies = HashSet::new();
    while bodies.len() < 500 {
        let delivery = next(&mut consumer).await;
        assert!(bodies.insert(body(&delivery).to_owned()), "{} twice", body(&delivery));
        delivery.ack().await.unwrap();
    }
}

async fn a_higher_priority_is_served_first(lab: BrokerLab) {
    lab.declare(with_argument(&lab.queue, "x-max-priority", 10)).await;
    for (text, priority) in [("low", 0), ("high", 9), ("middle", 5), ("high too", 9)] {
        let mut publication = publication(&lab.queue, text);
        publication.message.properties.priority = Some(priority);
        lab.broker.publish(publication).await.unwrap();
    }
    let mut consumer = lab.broker.consume(subscription(&[&lab.queue], 1)).await.unwrap();
    for expected in ["high", "high too", "middle", "low"] {
        let delivery = next(&mut consumer).await;
        assert_eq!(body(&delivery), expected);
        delivery.ack().await.unwrap();
    }
}

async fn an_expired_message_is_never_delivered(lab: BrokerLab) {
    let mut expired = publication(&lab.queue, "expired");
    expired.message.properties.expiration = Some("0".to_owned());
    lab.broker.publish(expired).await.unwrap();
    lab.publish("fresh").await;
    lab.until_waiting(1).await;
    let mut consumer = lab.broker.consume(subscription(&[&lab.queue], 2)).await.unwrap();
    assert_eq!(body(&next(&mut consumer).await), "fresh");
}

async fn what_cannot_be_sent_is_refused_for_good(lab: BrokerLab) {
    let mut eternal = publication(&lab.queue, "");
    eternal.message.properties.expiration = Some("never".to_owned());
    let rows = [publication("", "no name"), publication(&"q".repeat(256), "a long name"), eternal];
    for row in rows {
        let error = soon(lab.broker.publish(row)).await.unwrap_err();
        assert!(matches!(error, BrokerError::Unsendable { .. }) && error.is_permanent(), "{error}");
    }
    assert_eq!(lab.broker.waiting(&lab.queue).await.unwrap(), 0);
}

async fn without_a_prefetch_everything_is_handed_out(lab: BrokerLab) {
    const MANY: usize = 300;
    for index in 0..MANY {
        lab.publish(&index.to_string()).await;
    }
    let mut consumer = lab.broker.consume(subscription(&[&lab.queue], 0)).await.unwrap();
    let mut held = Vec::new();
    while held.len() < MANY {
        held.push(next(&mut consumer).await);
    }
    lab.until_waiting(0).await;
    for delivery in held {
        delivery.ack().await.unwrap();
    }
}

async fn a_queue_tells_what_is_in_it(lab: BrokerLab) {
    assert_eq!(lab.broker.inspect(&unique("queue")).await.unwrap(), None);
    for index in 0..3 {
        lab.publish(&index.to_string()).await;
    }
    let mut consumer = lab.broker.consume(subscription(&[&lab.queue], 1)).await.unwrap();
    let held = next(&mut consumer).await;
    lab.until_waiting(2).await;
    let stats = lab.other.inspect(&lab.queue).await.unwrap().unwrap();
    assert!(matches!(stats.unacked, None | Some(1)), "{stats:?}");
    assert!(matches!(stats.consumers, None | Some(1)), "{stats:?}");
    assert!(matches!(stats.postponed, None | Some(0)), "{stats:?}");
    held.ack().await.unwrap();
}

async fn purging_removes_what_waits_and_says_how_much(lab: BrokerLab) {
    assert_eq!(lab.other.purge(&unique("queue")).await.unwrap(), 0);
    for text in ["postponed", "held", "waiting", "waiting too"] {
        lab.publish(text).await;
    }
    let mut consumer = lab.broker.consume(subscription(&[&lab.queue], 1)).await.unwrap();
    next(&mut consumer).await.postpone(Timestamp::now() + SignedDuration::from_secs(2)).await.unwrap();
    let held = next(&mut consumer).await;
    lab.until_waiting(2).await;
    assert_eq!(lab.other.purge(&lab.queue).await.unwrap(), 2);
    assert_eq!(lab.other.purge(&lab.queue).await.unwrap(), 0);
    held.requeue().await.unwrap();
    for expected in ["held", "postponed"] {
        let delivery = next(&mut consumer).await;
        assert_eq!(body(&delivery), expected);
        delivery.ack().await.unwrap();
    }
}
