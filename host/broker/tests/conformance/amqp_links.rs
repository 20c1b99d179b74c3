//! How RabbitMQ is reached: lists of servers, TLS, and a server that takes no messages.

use std::time::Duration;

use rtask_broker::{BrokerError, Patience, SharedBroker, Tls, Transport, connect_broker};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::{
    brokers::{body, next, subscription},
    proxy::{Proxy, host_of},
    servers::{amqp_url, publication, soon, unique, until},
    tls::Authority,
};

async fn publish_and_receive(broker: &SharedBroker) {
    let queue = unique("queue");
    soon(broker.publish(publication(&queue, "x"))).await.unwrap();
    let mut consumer = broker.consume(subscription(&[&queue], 1)).await.unwrap();
    next(&mut consumer).await.ack().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_servers_any_will_do() {
    let (one, first) = Proxy::to(&amqp_url()).await;
    let (two, second) = Proxy::to(&amqp_url()).await;
    one.go_down();
    let broker = connect_broker(&format!("{first};{second}"), Patience::FailFast).await.unwrap();
    publish_and_receive(&broker).await;
    let broker = connect_broker(&format!("{first};{second}"), Patience::Forever).await.unwrap();
    let queue = unique("queue");
    let mut consumer = broker.consume(subscription(&[&queue], 10)).await.unwrap();
    assert_eq!(one.connections(), 0);
    for (down, up) in [(&two, &one), (&one, &two)] {
        up.come_up();
        down.go_down();
        until(async || down.connections() == 0).await;
        soon(broker.publish(publication(&queue, "x"))).await.unwrap();
        next(&mut consumer).await.ack().await.unwrap();
        assert!(up.connections() > 0);
    }
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_refuses_as_a_whole_is_given_up() {
    let refused = format!("amqp://guest:wrong@{}", host_of(&amqp_url()));
    let error = soon(connect_broker(&format!("{refused};{refused}"), Patience::Forever)).await.err().unwrap();
    assert!(matches!(error, BrokerError::Refused { .. }), "{error}");
    let broker = soon(connect_broker(&format!("{refused};{}", amqp_url()), Patience::FailFast)).await.unwrap();
    publish_and_receive(&broker).await;
}

/// As `url`, but with TLS and at another address.
fn with_tls(url: &str, address: &str) -> String {
    url.replacen("amqp://", "amqps://", 1).replacen(host_of(url), address, 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_asks_who_the_server_is_and_tells_who_we_are() {
    let (servers, clients) = (Authority::new(), Authority::new());
    let url = with_tls(&amqp_url(), &clients.guard(&amqp_url(), &servers).await);
    let (ca, identity) = (Some(servers.file.clone()), Some(clients.identity("rtask")));
    let broker = async |tls: Tls| connect_broker(&url, Transport { tls, ..Patience::FailFast.into() }).await;
    publish_and_receive(&broker(Tls { ca: ca.clone(), identity: identity.clone() }).await.unwrap()).await;
    let strangers = [
        Tls { ca: Some(clients.file.clone()), identity: identity.clone() },
        Tls { ca: None, identity },
        Tls { ca: ca.clone(), identity: None },
        Tls { ca, identity: Some(servers.identity("rtask")) },
    ];
    for tls in strangers {
        let error = broker(tls.clone()).await.err().unwrap_or_else(|| panic!("{tls:?} got in"));
        assert!(matches!(error, BrokerError::Unreachable { .. }), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_set_in_the_url_as_for_kombu() {
    let authority = Authority::new();
    let url = with_tls(&amqp_url(), &authority.guard(&amqp_url(), &authority).await);
    let (certificate, key) = authority.identity("rtask");
    let [ca, certificate, key] = [&authority.file, &certificate, &key].map(|file| file.display());
    let query = format!("?ssl_ca_certs={ca}&ssl_certfile={certificate}&ssl_keyfile={key}&ssl_cert_reqs=CERT_REQUIRED");
    let path = if url.matches('/').count() > 2 { "" } else { "//" };
    publish_and_receive(&connect_broker(&format!("{url}{path}{query}"), Patience::FailFast).await.unwrap()).await;
    let unchecked = connect_broker(&format!("{url}{path}?ssl_cert_reqs=CERT_NONE"), Patience::Forever).await;
    let error = soon(async { unchecked }).await.err().unwrap();
    assert!(error.is_permanent() && error.to_string().contains("ssl_ca_certs"), "{error}");
}

/// A certificate for another host is no certificate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_compares_the_servers_name() {
    let authority = Authority::new();
    let address = authority.guard(&amqp_url(), &authority).await;
    let url = with_tls(&amqp_url(), &address.replacen("127.0.0.1", "localhost", 1));
    let tls = Tls { ca: Some(authority.file.clone()), identity: Some(authority.identity("rtask")) };
    let error = connect_broker(&url, Transport { tls, ..Patience::FailFast.into() }).await.err().unwrap();
    assert!(matches!(error, BrokerError::Unreachable { .. }), "{error}");
}

/// `connection.blocked` with a reason, and `connection.unblocked`, on channel 0 (RabbitMQ's extension of AMQP 0-9-1).
const BLOCKED: &[u8] = b"\x01\0\0\0\0\0\x0f\0\x0a\0\x3c\x0alow memory\xce";
const UNBLOCKED: &[u8] = b"\x01\0\0\0\0\0\x04\0\x0a\0\x3d\xce";

/// A way to the server that treats its first connection, which is the publishing one, as the server does when its
/// memory is short: it says so and reads no more. The sender changes that.
async fn blocking_way() -> (watch::Sender<bool>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = amqp_url().replacen(host_of(&amqp_url()), &listener.local_addr().unwrap().to_string(), 1);
    let blocked = watch::Sender::new(false);
    let mut first = Some(blocked.subscribe());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(host_of(&amqp_url())).await.unwrap();
            let blocked = first.take().unwrap_or_else(|| watch::Sender::new(false).subscribe());
            tokio::spawn(carry(client, server, blocked));
        }
    });
    (blocked, url)
}

async fn carry(client: TcpStream, server: TcpStream, blocked: watch::Receiver<bool>) {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let mut listening = blocked.clone();
    let up = async {
        let mut bytes = vec![0; 1 << 16];
        while let Ok(count @ 1..) = from_client.read(&mut bytes).await {
            let _ = listening.wait_for(|blocked| !blocked).await;
            to_server.write_all(&bytes[..count]).await.unwrap();
        }
    };
    let mut told = blocked;
    let down = async {
        let mut bytes = vec![0; 1 << 16];
        loop {
            // The server is silent when a test blocks, so that this falls between two frames.
            tokio::select! {
                Ok(()) = told.changed() => {
                    let frame = if *told.borrow_and_update() { BLOCKED } else { UNBLOCKED };
                    to_client.write_all(frame).await.unwrap();
                }
                count = from_server.read(&mut bytes) => match count {
                    Ok(count @ 1..) => to_client.write_all(&bytes[..count]).await.unwrap(),
                    _ => return,
                },
            }
        }
    };
    tokio::select! { () = up => {} () = down => {} }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acks_go_on_while_publishing_waits_for_room() {
    let (blocked, url) = blocking_way().await;
    let broker = connect_broker(&url, Patience::Forever).await.unwrap();
    let beside = connect_broker(&amqp_url(), Patience::FailFast).await.unwrap();
    let queue = unique("queue");
    for text in ["one", "two"] {
        broker.publish(publication(&queue, text)).await.unwrap();
    }
    let mut consumer = broker.consume(subscription(&[&queue], 1)).await.unwrap();
    let held = next(&mut consumer).await;
    blocked.send_replace(true);
    let publishing = {
        let (broker, queue) = (broker.clone(), queue.clone());
        tokio::spawn(async move { broker.publish(publication(&queue, "three")).await })
    };
    // The second one comes because the ack of the first got through.
    held.ack().await.unwrap();
    let second = next(&mut consumer).await;
    assert_eq!(body(&second), "two");
    second.ack().await.unwrap();
    assert_eq!(beside.waiting(&queue).await.unwrap(), 0);
    assert!(!publishing.is_finished());
    blocked.send_replace(false);
    soon(publishing).await.unwrap().unwrap();
    assert_eq!(body(&next(&mut consumer).await), "three");
    assert_eq!(beside.waiting(&queue).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_told_that_the_server_takes_no_messages() {
    let (blocked, url) = blocking_way().await;
    let broker = connect_broker(&url, Patience::FailFast).await.unwrap();
    let queue = unique("queue");
    broker.publish(publication(&queue, "before")).await.unwrap();
    blocked.send_replace(true);
    let failed = tokio::time::timeout(Duration::from_secs(5), broker.publish(publication(&queue, "x"))).await;
    let error = failed.expect("it takes too long").unwrap_err();
    assert!(error.to_string().contains("takes no messages"), "{error}");
}
