//! Leases, lost connections and what waiting costs, on the Redis broker.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::FutureExt;
use redis::AsyncTypedCommands;
use rtask_broker::{Attempts, BrokerError, ExchangeKind};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    brokers::{next, subscription},
    proxy::{Proxy, host_of},
    redis_broker::{Lab, bound, broker, exchange, kombu_message},
    servers::{redis_url, soon, unique, until},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_task_holds_beyond_the_visibility_timeout_stays_its_own() {
    let lab = Lab::with(Duration::from_secs(1)).await;
    let sweeping = broker(&redis_url(), &lab.prefix, Duration::from_secs(1)).await;
    let mut others = sweeping.consume(subscription(&[&lab.queue], 1)).await.unwrap();
    let taken = lab.broker.take(&lab.queue).await.unwrap();
    assert!(taken.is_none());
    lab.push(kombu_message(&lab.queue, "t")).await;
    let held = next(&mut others).await;
    let begun = lab.held_at().await;
    // Both sweep meanwhile, this one as well as the one that holds it.
    until(async || lab.held_at().await > begun + 3.0).await;
    assert!(others.next().now_or_never().is_none());
    assert_eq!((lab.broker.waiting(&lab.queue).await.unwrap(), lab.unacked().await), (0, 1));
    held.ack().await.unwrap();
    assert_eq!(lab.unacked().await, 0);
}

/// As a kombu worker that was killed leaves it: golden/02_redis_transport/21_kill9_state.json.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_kombu_worker_held_goes_back_to_its_queue() {
    let mut lab = Lab::with(Duration::from_secs(1)).await;
    let topic = exchange("logs", ExchangeKind::Topic);
    lab.broker.declare(&bound(&lab.queue, topic, "video.#")).await.unwrap();
    let rows = [("direct", "", lab.queue.as_str()), ("topic", "logs", "video.cut"), ("gone", "no-such", &lab.queue)];
    for (id, exchange, routing_key) in rows {
        let message: Value = serde_json::from_str(&kombu_message(&lab.queue, id)).unwrap();
        let entry = json!([message, exchange, routing_key]).to_string();
        lab.raw.hset(lab.key("unacked"), id, entry).await.unwrap();
        lab.raw.zadd(lab.key("unacked_index"), id, 1).await.unwrap();
    }
    for (tag, entry) in [("nonsense", "nonsense"), ("empty", "[]")] {
        lab.raw.hset(lab.key("unacked"), tag, entry).await.unwrap();
        lab.raw.zadd(lab.key("unacked_index"), tag, 1).await.unwrap();
    }
    lab.raw.zadd(lab.key("unacked_index"), "without an entry", 1).await.unwrap();
    let mut consumer = lab.consumer(0).await;
    let mut ids = BTreeSet::new();
    for _ in 0..3 {
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.attempts, Attempts::Again);
        ids.insert(delivery.message.headers["id"].as_str().unwrap().to_owned());
        delivery.ack().await.unwrap();
    }
    assert_eq!(ids.iter().map(String::as_str).collect::<Vec<_>>(), ["direct", "gone", "topic"]);
    until(async || lab.unacked().await == 0).await;
    assert_eq!(lab.raw.zcard(lab.key("unacked_index")).await.unwrap(), 0);
}

/// Some are large, and all take more time than is given to one sweep: our own leases are renewed meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_that_a_dead_worker_held_goes_back_and_what_we_hold_stays_ours() {
    const MANY: usize = 2_000;
    let mut lab = Lab::with(Duration::from_secs(1)).await;
    lab.push(kombu_message(&lab.queue, "ours")).await;
    let held = lab.broker.take(&lab.queue).await.unwrap().unwrap();
    let mut dead = redis::pipe();
    for index in 0..MANY {
        let mut message: Value = serde_json::from_str(&kombu_message(&lab.queue, "theirs")).unwrap();
        message["headers"]["padding"] = "x".repeat(if index % 500 == 0 { 5 << 20 } else { 10 }).into();
        let entry = json!([message, &lab.queue, &lab.queue]).to_string();
        dead.hset(lab.key("unacked"), index, entry).ignore().zadd(lab.key("unacked_index"), index, 1).ignore();
    }
    dead.exec_async(&mut lab.raw).await.unwrap();
    until(async || lab.unacked().await == 1).await;
    assert_eq!(lab.broker.waiting(&lab.queue).await.unwrap(), MANY as u64);
    held.ack().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_for_somebody_who_has_gone_goes_back() {
    let lab = Lab::new().await;
    lab.push(kombu_message(&lab.queue, "a")).await;
    assert!(lab.broker.take(&lab.queue).now_or_never().is_none());
    // Asked over the same connection, so the answer comes behind that of the claim.
    until(async || lab.broker.waiting(&lab.queue).await.unwrap() == 1 && lab.unacked().await == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_put_back_is_no_longer_ours() {
    let mut lab = Lab::new().await;
    let mut consumer = lab.consumer(1).await;
    lab.push(kombu_message(&lab.queue, "t")).await;
    let delivery = next(&mut consumer).await;
    lab.raw.del(&[lab.key("unacked"), lab.key("unacked_index")]).await.unwrap();
    assert!(matches!(delivery.ack().await, Err(BrokerError::NotOurs { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_is_still_ours_after_the_connection_was_lost() {
    let (proxy, url) = Proxy::to(&redis_url()).await;
    let mut lab = Lab::new().await;
    lab.broker = broker(&url, &lab.prefix, Duration::from_secs(3_600)).await;
    let mut consumer = lab.consumer(10).await;
    for round in 0..3 {
        lab.push(kombu_message(&lab.queue, &format!("{round} held"))).await;
        let held = next(&mut consumer).await;
        proxy.cut();
        lab.push(kombu_message(&lab.queue, &format!("{round} meanwhile"))).await;
        let meanwhile = next(&mut consumer).await;
        assert_eq!(meanwhile.message.headers["id"], format!("{round} meanwhile"));
        proxy.cut();
        soon(meanwhile.ack()).await.unwrap();
        soon(held.ack()).await.unwrap();
        assert_eq!(lab.unacked().await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verdicts_wait_for_a_server_that_is_down() {
    let (proxy, url) = Proxy::to(&redis_url()).await;
    let mut lab = Lab::new().await;
    let through = broker(&url, &lab.prefix, Duration::from_secs(3_600)).await;
    let mut consumer = through.consume(subscription(&[&lab.queue], 10)).await.unwrap();
    for id in ["acked", "requeued", "postponed"] {
        lab.push(kombu_message(&lab.queue, id)).await;
    }
    let (acked, requeued) = (next(&mut consumer).await, next(&mut consumer).await);
    let mut postponed = next(&mut consumer).await;
    let cancelling = tokio::spawn(consumer.cancel());
    soon(cancelling).await.unwrap();
    proxy.go_down();
    until(async || proxy.connections() == 0).await;
    let verdicts = tokio::spawn(async move {
        let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
        tokio::join!(acked.ack(), requeued.requeue(), postponed.postpone(later))
    });
    assert_eq!(lab.unacked().await, 3);
    proxy.come_up();
    let (acked, requeued, postponed) = soon(verdicts).await.unwrap();
    acked.and(requeued).and(postponed).unwrap();
    assert_eq!(lab.unacked().await, 0);
    assert_eq!(lab.raw.llen(lab.key(&lab.queue)).await.unwrap(), 1);
    let aside = format!("rtask-postponed.{}", lab.queue);
    assert_eq!(lab.raw.zcard(lab.key(&aside)).await.unwrap(), 1);
}

/// Whatever is cut, and whenever: a claim whose answer is lost is answered again, and so is an ack.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_cut_connection_loses_or_doubles_a_message() {
    const MANY: usize = 2_000;
    const CUT_EVERY: usize = 100;
    let (proxy, url) = Proxy::to(&redis_url()).await;
    let lab = Lab::new().await;
    for index in 0..MANY {
        lab.push(kombu_message(&lab.queue, &index.to_string())).await;
    }
    let through = broker(&url, &lab.prefix, Duration::from_secs(3_600)).await;
    let mut consumer = through.consume(subscription(&[&lab.queue], 20)).await.unwrap();
    let (mut seen, mut settling) = (HashSet::new(), tokio::task::JoinSet::new());
    while seen.len() < MANY {
        let delivery = next(&mut consumer).await;
        let id = delivery.message.headers["id"].as_str().unwrap().to_owned();
        assert_eq!(delivery.attempts, Attempts::First, "{id}");
        settling.spawn(delivery.ack());
        assert!(seen.insert(id.clone()), "{id} twice");
        if seen.len() % CUT_EVERY == 0 {
            proxy.cut();
        }
    }
    while let Some(settled) = soon(settling.join_next()).await {
        settled.unwrap().unwrap();
    }
    assert_eq!((lab.unacked().await, lab.broker.waiting(&lab.queue).await.unwrap()), (0, 0));
}

/// A managed server may not let its users ask for that, and a proxy may not know it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_tells_of_no_change_is_asked() {
    let mut lab = Lab::new().await;
    let user = unique("user");
    let mut set_user = redis::cmd("ACL");
    set_user.arg("SETUSER").arg(&user).arg("on").arg(">secret").arg("~*").arg("&*").arg("+@all");
    set_user.arg("-client|tracking").exec_async(&mut lab.raw).await.unwrap();
    let url = redis_url().replacen("://", &format!("://{user}:secret@"), 1);
    let broker = broker(&url, &lab.prefix, Duration::from_secs(3_600)).await;
    let mut consumer = broker.consume(subscription(&[&lab.queue], 1)).await.unwrap();
    for round in 0..3 {
        lab.push(kombu_message(&lab.queue, &round.to_string())).await;
        next(&mut consumer).await.ack().await.unwrap();
    }
    redis::cmd("ACL").arg("DELUSER").arg(&user).exec_async(&mut lab.raw).await.unwrap();
}

/// A proxy that counts what its clients send.
async fn counted(bytes: Arc<AtomicUsize>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(host_of(&redis_url())).await.unwrap();
            let ((mut from, mut back), (mut answers, mut to)) = (client.into_split(), server.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut answers, &mut back).await });
            let bytes = bytes.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = from.read(&mut buffer).await {
                    bytes.fetch_add(read, Ordering::Relaxed);
                    to.write_all(&buffer[..read]).await.unwrap();
                }
            });
        }
    });
    redis_url().replacen(host_of(&redis_url()), &address, 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_what_was_put_aside_asks_nothing_of_the_server() {
    const A_FEW_COMMANDS: usize = 20_000;
    let bytes = Arc::<AtomicUsize>::default();
    let mut lab = Lab::new().await;
    lab.broker = broker(&counted(bytes.clone()).await, &lab.prefix, Duration::from_secs(3_600)).await;
    let mut consumer = lab.consumer(10).await;
    for (id, seconds) in [("later", 3_600), ("soon", 1)] {
        lab.push(kombu_message(&lab.queue, id)).await;
        let until = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
        next(&mut consumer).await.postpone(until).await.unwrap();
    }
    let before = bytes.load(Ordering::Relaxed);
    assert_eq!(next(&mut consumer).await.message.headers["id"], "soon");
    let asked = bytes.load(Ordering::Relaxed) - before;
    assert!(asked < A_FEW_COMMANDS, "{asked} bytes");
}
