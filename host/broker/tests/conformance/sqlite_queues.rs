//! What is particular to the file as a broker.

use futures::future::try_join_all;
use jiff::{Timestamp, ToSpan};
use rtask_broker::{
    Attempts, Binding, Broker, BrokerError, Exchange, ExchangeKind, Publication, QueueStats, Routing, Target,
};
use rtask_protocol::{Headers, Message};

use crate::{
    brokers::{body, next, subscription},
    servers::{SOON, publication, soon, until},
    sqlite::{LONG_LEASE, SHORT_LEASE, apart, file},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_no_queue_takes_is_an_error_unless_it_is_a_reply() {
    let (_folder, path) = file();
    let broker = apart(&path, LONG_LEASE).await;
    let send = async |target| broker.publish(Publication { target, message: publication("", "x").message }).await;
    let exchange = |name: &str| Exchange { name: name.to_owned(), kind: ExchangeKind::Topic };
    for name in ["", "declared"] {
        let target = Target::Exchange { exchange: exchange(name), routing_key: "nobody".to_owned() };
        let error = send(target).await.unwrap_err();
        assert!(matches!(error, BrokerError::NotConfirmed { .. }), "{error}");
    }
    for name in ["", "declared", "unknown"] {
        send(Target::Reply { exchange: name.to_owned(), routing_key: "nobody".to_owned() }).await.unwrap();
    }
    assert_eq!(broker.inspect("nobody").await.unwrap(), None);
    let long = "n".repeat(256);
    let unsendable = [
        Target::Exchange { exchange: exchange(&long), routing_key: String::new() },
        Target::Exchange { exchange: exchange("x"), routing_key: long.clone() },
    ];
    for target in unsendable {
        assert!(matches!(send(target).await, Err(BrokerError::Unsendable { .. })));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_a_queue_is_told_by_kind() {
    let (_folder, path) = file();
    let (here, there) = (apart(&path, LONG_LEASE).await, apart(&path, LONG_LEASE).await);
    assert_eq!(here.inspect("q").await.unwrap(), None);
    try_join_all((0..5).map(|_| here.publish(publication("q", "")))).await.unwrap();
    let consumer = here.consume(subscription(&["q"], 2)).await.unwrap();
    let expected = |messages, unacked, postponed, consumers| {
        Some(QueueStats { messages, unacked: Some(unacked), postponed: Some(postponed), consumers: Some(consumers) })
    };
    until(async || there.inspect("q").await.unwrap() == expected(3, 2, 0, 1)).await;
    let another = there.consume(subscription(&["other", "q"], 1)).await.unwrap();
    until(async || here.inspect("q").await.unwrap() == expected(2, 3, 0, 2)).await;
    soon(another.cancel()).await;
    until(async || here.inspect("q").await.unwrap() == expected(3, 2, 0, 1)).await;
    let mut taken = there.take("q").await.unwrap().unwrap();
    taken.postpone(Timestamp::now() + 1.hour()).await.unwrap();
    assert_eq!(here.inspect("q").await.unwrap(), expected(2, 2, 1, 1));
    // Neither what is held nor what is postponed is purged.
    assert_eq!(there.purge("q").await.unwrap(), 2);
    assert_eq!(here.inspect("q").await.unwrap(), expected(0, 2, 1, 1));
    drop(consumer);
    until(async || here.inspect("q").await.unwrap() == expected(2, 0, 1, 0)).await;
    assert_eq!(there.purge("nothing").await.unwrap(), 0);
}

#[test]
fn a_dead_process_consumes_nothing_and_its_replies_are_forgotten() {
    let (_folder, path) = file();
    let dying = tokio::runtime::Runtime::new().unwrap();
    let name = dying.block_on(async {
        let broker = apart(&path, SHORT_LEASE).await;
        let consumer = broker.consume(subscription(&["q"], 1)).await.unwrap();
        let (name, replies) = broker.reply_queue().await.unwrap();
        // A killed process cleans nothing up.
        std::mem::forget((broker, consumer, replies));
        name
    });
    dying.shutdown_background();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let broker = apart(&path, SHORT_LEASE).await;
        until(async || broker.inspect("q").await.unwrap().unwrap().consumers == Some(0)).await;
        // It might have been asleep, so that a reply is kept for a while.
        let target = Target::Reply { exchange: String::new(), routing_key: name.clone() };
        broker.publish(Publication { target, message: publication("", "reply").message }).await.unwrap();
        assert_eq!(broker.waiting(&name).await.unwrap(), 1);
        let database = rusqlite::Connection::open(&path).unwrap();
        database.busy_timeout(SOON).unwrap();
        let an_hour_ago = "UPDATE leases SET expires_at = expires_at - 3600000";
        assert_eq!(database.execute(an_hour_ago, []).unwrap(), 1);
        // Whoever takes out a lease clears up.
        assert!(broker.take("q").await.unwrap().is_none());
        assert_eq!(broker.inspect(&name).await.unwrap(), None);
        for table in ["messages", "consumers"] {
            let left: i64 = database.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap();
            assert_eq!(left, 0, "{table}");
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postponed_message_comes_back_when_it_is_due_as_one_that_was_never_tried() {
    let (_folder, path) = file();
    let (here, there) = (apart(&path, LONG_LEASE).await, apart(&path, LONG_LEASE).await);
    let exchange = Exchange { name: "media".to_owned(), kind: ExchangeKind::Direct };
    let mut asking = subscription(&["q"], 1);
    asking.queues[0].bindings[0] =
        Binding { exchange: exchange.clone(), routing_key: "video".to_owned(), arguments: Headers::new() };
    let mut consumer = here.consume(asking).await.unwrap();
    let target = Target::Exchange { exchange, routing_key: "video".to_owned() };
    there.publish(Publication { target, message: publication("", "later").message }).await.unwrap();
    next(&mut consumer).await.requeue().await.unwrap();
    let mut delivery = next(&mut consumer).await;
    assert_eq!(delivery.attempts, Attempts::Number(2));
    delivery.message.headers.insert("seen".to_owned(), true.into());
    let until = Timestamp::now() + 1500.milliseconds();
    delivery.postpone(until).await.unwrap();
    // The prefetch is free for another.
    there.publish(publication("q", "now")).await.unwrap();
    let other = next(&mut consumer).await;
    assert_eq!(body(&other), "now");
    other.ack().await.unwrap();
    let again = next(&mut consumer).await;
    assert!(Timestamp::now() >= until);
    assert_eq!((body(&again), again.attempts), ("later", Attempts::Number(1)));
    assert_eq!(again.message.headers["seen"], true);
    assert_eq!(again.routing, Routing { exchange: "media".to_owned(), routing_key: "video".to_owned() });
    again.ack().await.unwrap();
    assert_eq!(there.inspect("q").await.unwrap().unwrap().postponed, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_was_lost_postpones_nothing() {
    let (_folder, path) = file();
    let (here, there) = (apart(&path, LONG_LEASE).await, apart(&path, LONG_LEASE).await);
    here.publish(publication("q", "x")).await.unwrap();
    let mut held = here.take("q").await.unwrap().unwrap();
    here.close().await;
    let error = held.postpone(Timestamp::now() + 1.hour()).await.unwrap_err();
    assert!(matches!(error, BrokerError::NotOurs { .. }), "{error}");
    let stats = there.inspect("q").await.unwrap().unwrap();
    assert_eq!((stats.messages, stats.postponed), (1, Some(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_postponed_messages_all_come_back() {
    let (_folder, path) = file();
    let broker = apart(&path, LONG_LEASE).await;
    try_join_all((0..3_000).map(|index| broker.publish(publication("q", &index.to_string())))).await.unwrap();
    let mut consumer = broker.consume(subscription(&["q"], 0)).await.unwrap();
    for _ in 0..3_000 {
        next(&mut consumer).await.postpone(Timestamp::now() + 10.seconds()).await.unwrap();
    }
    assert_eq!(broker.inspect("q").await.unwrap().unwrap().postponed, Some(3_000));
    // They are due sooner than that.
    let database = rusqlite::Connection::open(&path).unwrap();
    database.busy_timeout(SOON).unwrap();
    database.execute("UPDATE messages SET visible_at = 1", []).unwrap();
    for _ in 0..3_000 {
        next(&mut consumer).await.ack().await.unwrap();
    }
    until(async || {
        broker.inspect("q").await.unwrap().unwrap()
            == QueueStats { messages: 0, unacked: Some(0), postponed: Some(0), consumers: Some(1) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_reaches_all_who_listen_by_then_and_nobody_else() {
    let (_folder, path) = file();
    let (here, there) = (apart(&path, LONG_LEASE).await, apart(&path, LONG_LEASE).await);
    let send = async |body: &'static str| {
        there.broadcast(Message { body: body.into(), ..Message::default() }).await.unwrap();
    };
    send("before").await;
    let mut listeners = Vec::new();
    for (broker, node) in [(&here, "w1@host"), (&here, "w2@host"), (&there, "w3@host")] {
        listeners.push((node, broker.listen(node).await.unwrap()));
    }
    for round in ["one", "two"] {
        send(round).await;
        for (node, listener) in &mut listeners {
            let delivery = next(listener).await;
            assert_eq!(body(&delivery), round);
            assert_eq!(*delivery.queue, *format!("{node}.celery.pidbox"));
            delivery.requeue().await.unwrap();
        }
    }
    // An expired one is not heard.
    let mut expired = publication("", "expired").message;
    expired.properties.expiration = Some("0".to_owned());
    there.broadcast(expired).await.unwrap();
    send("last").await;
    for (_, mut listener) in listeners {
        assert_eq!(body(&next(&mut listener).await), "last");
        soon(listener.cancel()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_broadcasts_is_bounded_and_the_latest_are_heard() {
    let (_folder, path) = file();
    let broker = apart(&path, LONG_LEASE).await;
    let mut listener = broker.listen("w1@host").await.unwrap();
    let database = rusqlite::Connection::open(&path).unwrap();
    database.busy_timeout(SOON).unwrap();
    database
        .execute("INSERT INTO broadcasts VALUES (1000000, '{}', '{}', x'', 1), (1000001, '{}', '{}', x'', 1)", [])
        .unwrap();
    broker.broadcast(Message { body: "x".into(), ..Message::default() }).await.unwrap();
    assert_eq!(body(&next(&mut listener).await), "x");
    database.execute("UPDATE sqlite_sequence SET seq = seq + 9999 WHERE name = 'broadcasts'", []).unwrap();
    broker.broadcast(Message { body: "y".into(), ..Message::default() }).await.unwrap();
    assert_eq!(body(&next(&mut listener).await), "y");
    let ids = |which: &str| -> i64 {
        database.query_row(&format!("SELECT {which}(id) FROM broadcasts"), [], |row| row.get(0)).unwrap()
    };
    assert!(ids("max") - ids("min") < 10_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_queue_goes_with_its_reader() {
    let (_folder, path) = file();
    let (here, there) = (apart(&path, LONG_LEASE).await, apart(&path, LONG_LEASE).await);
    let (name, mut replies) = here.reply_queue().await.unwrap();
    let reply = async |body: &'static str| {
        let target = Target::Reply { exchange: String::new(), routing_key: name.clone() };
        there.publish(Publication { target, message: publication("", body).message }).await.unwrap();
    };
    for body_of in ["one", "two"] {
        reply(body_of).await;
        assert_eq!(body(&next(&mut replies).await), body_of);
    }
    // What is taken is gone.
    assert_eq!(there.waiting(&name).await.unwrap(), 0);
    drop(replies);
    until(async || there.inspect(&name).await.unwrap().is_none()).await;
    reply("late").await;
    let left: i64 = rusqlite::Connection::open(&path)
        .unwrap()
        .query_row("SELECT count(*) FROM messages", [], |row| row.get(0))
        .unwrap();
    assert_eq!(left, 0);
}
