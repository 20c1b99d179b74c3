//! What holds for exchanges, replies and broadcasts, on every broker.

use rtask_broker::{Binding, BrokerError, Consumer, Exchange, ExchangeKind, Publication, Queue, Subscription, Target};
use rtask_protocol::Message;
use serde_json::{Value, json};

use crate::{
    brokers::{body, next, subscription},
    servers::{BrokerLab, broker_facts, publication, soon, unique},
};

broker_facts![
    a_direct_exchange_compares_routing_keys,
    a_fanout_exchange_serves_every_queue,
    a_headers_exchange_compares_headers,
    a_queue_may_have_several_bindings,
    a_message_that_no_queue_takes_is_an_error,
    a_reply_reaches_whoever_asked,
    a_reply_to_nobody_is_no_error,
    a_broadcast_reaches_each_listener_once;
    except redis: a_topic_exchange_compares_words
];

/// An exchange that no other test uses.
fn exchange(kind: ExchangeKind) -> Exchange {
    Exchange { name: unique("exchange"), kind }
}

fn binding(exchange: &Exchange, key: &str, arguments: Value) -> Binding {
    let arguments = arguments.as_object().cloned().unwrap_or_default();
    Binding { exchange: exchange.clone(), routing_key: key.to_owned(), arguments }
}

fn queue(bindings: Vec<Binding>) -> Queue {
    Queue { bindings, ..Queue::named(unique("queue")) }
}

fn through(exchange: &Exchange, key: &str, headers: &Value) -> Publication {
    let message =
        Message { headers: headers.as_object().cloned().unwrap_or_default(), ..publication("q", key).message };
    Publication { target: Target::Exchange { exchange: exchange.clone(), routing_key: key.to_owned() }, message }
}

impl BrokerLab {
    /// Publish through `exchange` and say which of `queues` the message reached, in their order.
    async fn reached(&self, queues: &mut [(Queue, Consumer)], publication: Publication) -> Vec<bool> {
        let text = body_of(&publication);
        self.other.publish(publication).await.unwrap();
        let mut reached = Vec::new();
        for (queue, consumer) in queues {
            // A queue keeps its order, so what has not come before this will not come.
            self.other.publish(crate::servers::publication(&queue.name, "the end")).await.unwrap();
            let delivery = next(consumer).await;
            let has_come = body(&delivery) == text;
            delivery.ack().await.unwrap();
            if has_come {
                let end = next(consumer).await;
                assert_eq!(body(&end), "the end");
                end.ack().await.unwrap();
            }
            reached.push(has_come);
        }
        reached
    }

    async fn consumed(&self, queues: impl IntoIterator<Item = Queue>) -> Vec<(Queue, Consumer)> {
        let mut consumed = Vec::new();
        for queue in queues {
            let subscription = Subscription { queues: vec![queue.clone()], prefetch: 1, tag: unique("consumer") };
            consumed.push((queue, self.broker.consume(subscription).await.unwrap()));
        }
        consumed
    }
}

fn body_of(publication: &Publication) -> String {
    String::from_utf8(publication.message.body.to_vec()).unwrap()
}

async fn a_direct_exchange_compares_routing_keys(lab: BrokerLab) {
    let exchange = exchange(ExchangeKind::Direct);
    let bound = ["a", "b", "a"].map(|key| queue(vec![binding(&exchange, key, json!({}))]));
    let mut queues = lab.consumed(bound).await;
    for (key, expected) in [("a", [true, false, true]), ("b", [false, true, false])] {
        assert_eq!(lab.reached(&mut queues, through(&exchange, key, &json!({}))).await, expected, "{key}");
    }
    lab.other.publish(through(&exchange, "b", &json!({}))).await.unwrap();
    let delivery = next(&mut queues[1].1).await;
    let routing = (delivery.routing.exchange.as_str(), delivery.routing.routing_key.as_str());
    assert_eq!(routing, (exchange.name.as_str(), "b"));
    delivery.ack().await.unwrap();
}

async fn a_topic_exchange_compares_words(lab: BrokerLab) {
    let exchange = exchange(ExchangeKind::Topic);
    let bound = ["video.*", "video.#", "*.*.hd", "#"].map(|key| queue(vec![binding(&exchange, key, json!({}))]));
    let mut queues = lab.consumed(bound).await;
    let rows = [
        ("video.cut", [true, true, false, true]),
        ("video", [false, true, false, true]),
        ("video.cut.hd", [false, true, true, true]),
        ("audio.cut.hd", [false, false, true, true]),
        ("videos.cut", [false, false, false, true]),
    ];
    for (key, expected) in rows {
        assert_eq!(lab.reached(&mut queues, through(&exchange, key, &json!({}))).await, expected, "{key}");
    }
}

async fn a_fanout_exchange_serves_every_queue(lab: BrokerLab) {
    let exchange = exchange(ExchangeKind::Fanout);
    let bound = ["", "x"].map(|key| queue(vec![binding(&exchange, key, json!({}))]));
    let mut queues = lab.consumed(bound).await;
    assert_eq!(lab.reached(&mut queues, through(&exchange, "y", &json!({}))).await, [true, true]);
}

async fn a_headers_exchange_compares_headers(lab: BrokerLab) {
    let exchange = exchange(ExchangeKind::Headers);
    let bound = ["all", "any"]
        .map(|how| queue(vec![binding(&exchange, "", json!({"x-match": how, "format": "pdf", "size": "large"}))]));
    let mut queues = lab.consumed(bound).await;
    // To everything else that is published there, so that no message goes astray.
    let mut rest = lab.consumed([queue(vec![binding(&exchange, "", json!({"x-match": "any", "id": "t"}))])]).await;
    let rows = [
        (json!({"id": "t", "format": "pdf", "size": "large"}), [true, true]),
        (json!({"id": "t", "format": "pdf", "size": "small"}), [false, true]),
        (json!({"id": "t", "format": "pdf"}), [false, true]),
        (json!({"id": "t", "format": "zip", "size": "small"}), [false, false]),
        (json!({"id": "t"}), [false, false]),
    ];
    for (headers, expected) in rows {
        assert_eq!(lab.reached(&mut queues, through(&exchange, "k", &headers)).await, expected, "{headers}");
        next(&mut rest[0].1).await.ack().await.unwrap();
    }
}

async fn a_queue_may_have_several_bindings(lab: BrokerLab) {
    let (direct, topic) = (exchange(ExchangeKind::Direct), exchange(ExchangeKind::Topic));
    let bindings = [(&direct, "a"), (&direct, "b"), (&topic, "c.*"), (&topic, "c.#")];
    let bindings = bindings.map(|(exchange, key)| binding(exchange, key, json!({})));
    let mut queues = lab.consumed([queue(bindings.into())]).await;
    for (exchange, key) in [(&direct, "a"), (&direct, "b"), (&topic, "c.d")] {
        // Once, though two bindings may take it.
        assert_eq!(lab.reached(&mut queues, through(exchange, key, &json!({}))).await, [true], "{key}");
    }
}

async fn a_message_that_no_queue_takes_is_an_error(lab: BrokerLab) {
    let direct = exchange(ExchangeKind::Direct);
    let mut queues = lab.consumed([queue(vec![binding(&direct, "a", json!({}))])]).await;
    for publication in [through(&direct, "b", &json!({})), through(&exchange(ExchangeKind::Topic), "a", &json!({}))] {
        let error = soon(lab.broker.publish(publication)).await.unwrap_err();
        assert!(matches!(error, BrokerError::NotConfirmed { .. }), "{error}");
    }
    assert_eq!(lab.reached(&mut queues, through(&direct, "a", &json!({}))).await, [true]);
}

fn reply(exchange: &str, key: &str, text: &str) -> Publication {
    let target = Target::Reply { exchange: exchange.to_owned(), routing_key: key.to_owned() };
    Publication { target, message: publication("q", text).message }
}

async fn a_reply_reaches_whoever_asked(lab: BrokerLab) {
    let (name, mut replies) = lab.broker.reply_queue().await.unwrap();
    let (other_name, mut other_replies) = lab.other.reply_queue().await.unwrap();
    for (index, to) in [&name, &other_name, &name].into_iter().enumerate() {
        lab.other.publish(reply("", to, &index.to_string())).await.unwrap();
    }
    assert_eq!([next(&mut replies).await, next(&mut replies).await].each_ref().map(body), ["0", "2"]);
    assert_eq!(body(&next(&mut other_replies).await), "1");
}

async fn a_reply_to_nobody_is_no_error(lab: BrokerLab) {
    for (exchange, key) in [("", unique("gone")), (&*unique("gone"), unique("gone")), (&*unique("gone"), String::new())]
    {
        soon(lab.broker.publish(reply(exchange, &key, "?"))).await.unwrap();
    }
    lab.publish("still works").await;
    let mut consumer = lab.broker.consume(subscription(&[&lab.queue], 1)).await.unwrap();
    assert_eq!(body(&next(&mut consumer).await), "still works");
}

/// The next broadcast of this test; others share the server.
async fn heard(listener: &mut Consumer, test: &str) -> String {
    loop {
        let delivery = next(listener).await;
        if let Some(text) = body(&delivery).strip_prefix(test) {
            return text.to_owned();
        }
    }
}

async fn a_broadcast_reaches_each_listener_once(lab: BrokerLab) {
    let (one, two) = (unique("w1@host"), unique("w2@host"));
    let test = unique("broadcast");
    let broadcast = async |text: &str| {
        lab.other.broadcast(publication("q", &format!("{test}{text}")).message).await.unwrap();
    };
    // Nobody hears this.
    broadcast("too early").await;
    let mut first = lab.broker.listen(&one).await.unwrap();
    let mut second = lab.other.listen(&two).await.unwrap();
    broadcast("1").await;
    assert_eq!(heard(&mut first, &test).await, "1");
    assert_eq!(heard(&mut second, &test).await, "1");
    soon(second.cancel()).await;
    broadcast("2").await;
    let mut second = lab.other.listen(&two).await.unwrap();
    broadcast("3").await;
    assert_eq!([heard(&mut first, &test).await, heard(&mut first, &test).await], ["2", "3"]);
    assert_eq!(heard(&mut second, &test).await, "3");
}
