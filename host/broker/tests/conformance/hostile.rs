//! Messages that no AMQP library would send, written byte by byte.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use lapin::{ExchangeKind, uri::AMQPUri};
use rtask_broker::{Patience, connect_broker};
use serde_json::json;

use crate::{
    amqp::channel,
    brokers::{body, next, subscription},
    servers::{amqp_url, publication, unique, until},
};

const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;
const BODY: u8 = 3;

fn frame(kind: u8, channel: u8, payload: &[u8]) -> Vec<u8> {
    [&[kind, 0, channel], &block(payload)[..], &[0xce]].concat()
}

fn name(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

fn block(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

/// Log in, publish one message with these headers and this routing key to an exchange, and wait for the channel's
/// end to be confirmed, which comes after the message was taken.
fn publish(exchange: &str, key: &[u8], headers: &[u8]) {
    let uri: AMQPUri = amqp_url().parse().unwrap();
    let user = &uri.authority.userinfo;
    let login = format!("\0{}\0{}", user.username, user.password);
    let mut server = TcpStream::connect((uri.authority.host.as_str(), uri.authority.port)).unwrap();
    let mut ask = |frames: &[u8], answer: Option<[u8; 4]>| {
        server.write_all(frames).unwrap();
        while answer.is_some_and(|answer| read(&mut server)[..4] != answer) {}
    };
    let method = |channel, id: [u8; 4], fields: &[u8]| frame(METHOD, channel, &[&id[..], fields].concat());
    ask(b"AMQP\0\0\x09\x01", Some([0, 10, 0, 10]));
    let start = [block(b""), name(b"PLAIN"), block(login.as_bytes()), name(b"en_US")].concat();
    ask(&method(0, [0, 10, 0, 11], &start), Some([0, 10, 0, 30]));
    ask(&method(0, [0, 10, 0, 31], &[0, 1, 0, 2, 0, 0, 0, 0]), None);
    ask(&method(0, [0, 10, 0, 40], &[name(uri.vhost.as_bytes()), vec![0, 0]].concat()), Some([0, 10, 0, 41]));
    ask(&method(1, [0, 20, 0, 10], &[0]), Some([0, 20, 0, 11]));
    let to = [vec![0, 0], name(exchange.as_bytes()), name(key), vec![0]].concat();
    let header = [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0b0010_0000, 0], &block(headers)[..]].concat();
    let message = [method(1, [0, 60, 0, 40], &to), frame(CONTENT_HEADER, 1, &header), frame(BODY, 1, b"x")];
    ask(&message.concat(), None);
    let goodbye = [&[0, 200], &name(b"")[..], &[0, 0, 0, 0]].concat();
    ask(&method(1, [0, 20, 0, 40], &goodbye), Some([0, 20, 0, 41]));
}

/// One frame's payload.
fn read(server: &mut TcpStream) -> Vec<u8> {
    let mut start = [0; 7];
    server.read_exact(&mut start).unwrap();
    let size = u32::from_be_bytes(start[3..].try_into().unwrap()) as usize;
    let mut payload = vec![0; size + 1];
    server.read_exact(&mut payload).unwrap();
    payload
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_header_of_a_message_can_hurt_its_reader() {
    let broker = connect_broker(&amqp_url(), Patience::FailFast).await.unwrap();
    let queue = unique("queue");
    let mut consumer = broker.consume(subscription(&[&queue], 1)).await.unwrap();
    // Lists in lists, written back to front, since the innermost comes first here and last on the wire.
    let deep = (0..20_000).fold(b"V".to_vec(), |mut list, _| {
        let size = u32::try_from(list.len()).unwrap();
        list.extend(size.to_le_bytes());
        list.push(b'A');
        list
    });
    let deep: Vec<u8> = deep.into_iter().rev().collect();
    let rows = [
        ([name(b"deep"), deep].concat(), None),
        ([name(b"\xff"), b"t\x01".to_vec()].concat(), Some(json!({"?": true}))),
        ([name(b"text"), [b"S", &block(b"\xff")[..]].concat()].concat(), Some(json!({"text": "\u{fffd}"}))),
        ([name(b"time"), [b"T", &[0xff; 8][..]].concat()].concat(), Some(json!({"time": u64::MAX}))),
    ];
    for (headers, expected) in rows {
        let to = queue.clone();
        tokio::task::spawn_blocking(move || publish("", to.as_bytes(), &headers)).await.unwrap();
        let delivery = next(&mut consumer).await;
        assert_eq!(body(&delivery), "x");
        if let Some(expected) = expected {
            assert_eq!(serde_json::Value::from(delivery.message.headers.clone()), expected);
        }
        delivery.ack().await.unwrap();
    }
    // On the same connection still.
    broker.publish(publication(&queue, "sound")).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!((body(&delivery), delivery.attempts), ("sound", rtask_broker::Attempts::First));
    delivery.ack().await.unwrap();
    until(async || broker.waiting(&queue).await.unwrap() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_routing_key_that_is_no_text_is_borne() {
    let broker = connect_broker(&amqp_url(), Patience::FailFast).await.unwrap();
    let (queue, exchange) = (unique("queue"), unique("exchange"));
    let mut consumer = broker.consume(subscription(&[&queue], 1)).await.unwrap();
    let channel = channel(&amqp_url()).await;
    let (kind, name) = (ExchangeKind::Fanout, exchange.as_str());
    channel.exchange_declare(name.into(), kind, Default::default(), Default::default()).await.unwrap();
    let bound =
        channel.queue_bind(queue.as_str().into(), name.into(), "".into(), Default::default(), Default::default());
    bound.await.unwrap();
    tokio::task::spawn_blocking(move || publish(&exchange, b"\xff", b"")).await.unwrap();
    next(&mut consumer).await.ack().await.unwrap();
}
