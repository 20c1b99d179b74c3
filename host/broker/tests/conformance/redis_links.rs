//! How Redis is reached: lists of servers, sentinels, TLS and sockets, for the broker and all that is kept beside it.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use rtask_broker::{
    BrokerError, Patience, Retention, SharedBroker, Tls, Transport, connect_backend, connect_broker, connect_ledger,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream, UnixListener},
};

use crate::{
    backends::success,
    brokers::{body, next, subscription},
    proxy::{Proxy, host_of},
    servers::{publication, redis_url, soon, unique, until},
    tls::Authority,
};

async fn publish_and_receive(broker: &SharedBroker) {
    let queue = unique("queue");
    soon(broker.publish(publication(&queue, "x"))).await.unwrap();
    let mut consumer = broker.consume(subscription(&[&queue], 1)).await.unwrap();
    assert_eq!(body(&next(&mut consumer).await), "x");
}

/// All three ports, over every kind of connection that they have.
async fn everything_works(url: &str, transport: &Transport) {
    publish_and_receive(&connect_broker(url, transport.clone()).await.unwrap()).await;
    let broker = connect_broker(url, transport.clone()).await.unwrap();
    let mut listener = broker.listen(&unique("w@host")).await.unwrap();
    broker.broadcast(publication("q", "hello").message).await.unwrap();
    // Other tests may broadcast as well.
    while body(&next(&mut listener).await) != "hello" {}
    let (backend, id) = (connect_backend(url, Retention::default(), transport.clone()).await.unwrap(), unique("task"));
    let (waited, stored) = soon(futures::future::join(backend.wait(&id), backend.store(&success(&id, 4), None))).await;
    stored.unwrap();
    assert_eq!(waited.unwrap().result.get(), "4");
    let ledger = connect_ledger(url, transport.clone()).await.unwrap();
    assert_eq!(ledger.count_attempt(&unique("message")).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_servers_any_will_do() {
    let (one, first) = Proxy::to(&redis_url()).await;
    let (two, second) = Proxy::to(&redis_url()).await;
    let both = format!("{first};{second}");
    one.go_down();
    everything_works(&both, &Patience::FailFast.into()).await;
    let broker = connect_broker(&both, Patience::Forever).await.unwrap();
    let queue = unique("queue");
    let mut consumer = broker.consume(subscription(&[&queue], 10)).await.unwrap();
    for (down, up) in [(&two, &one), (&one, &two)] {
        up.come_up();
        down.go_down();
        until(async || down.connections() == 0).await;
        soon(broker.publish(publication(&queue, "x"))).await.unwrap();
        next(&mut consumer).await.ack().await.unwrap();
    }
    broker.close().await;
}

/// As `url`, but with another scheme and at another address.
fn at(url: &str, scheme: &str, address: &str) -> String {
    url.replacen("redis://", scheme, 1).replacen(host_of(url), address, 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_tls_both_sides_show_who_they_are() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let url = at(&redis_url(), "rediss://", &ours.guard(&redis_url(), &theirs).await);
    let transport =
        |ca: &Path, identity| Transport { tls: Tls { ca: Some(ca.to_owned()), identity }, ..Patience::FailFast.into() };
    everything_works(&url, &transport(&theirs.file, Some(ours.identity("worker")))).await;
    let (certificate, key) = ours.identity("client");
    let query = format!(
        "?ssl_ca_certs={}&ssl_certfile={}&ssl_keyfile={}&ssl_cert_reqs=CERT_REQUIRED",
        theirs.file.display(),
        certificate.display(),
        key.display()
    );
    everything_works(&format!("{url}{query}"), &Patience::FailFast.into()).await;
    // Whoever names certificates gets TLS, whatever the scheme says.
    let plain = url.replacen("rediss://", "redis://", 1);
    everything_works(&plain, &transport(&theirs.file, Some(ours.identity("plain")))).await;
    let rows = [
        transport(&ours.file, Some(ours.identity("another authority"))),
        transport(&theirs.file, Some(theirs.identity("stranger"))),
        transport(&theirs.file, None),
        Patience::FailFast.into(),
    ];
    for row in rows {
        let refused = soon(connect_broker(&url, row.clone())).await;
        assert!(refused.is_err(), "{row:?}");
    }
    let missing =
        soon(connect_broker(&url, Transport { patience: Patience::Forever, ..transport(Path::new("/no/ca"), None) }));
    let error = missing.await.err().unwrap();
    assert!(error.is_permanent() && error.to_string().contains("/no/ca"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_make_tls_worthless_is_refused() {
    for query in ["ssl_cert_reqs=CERT_NONE", "ssl_cert_reqs=none", "ssl_check_hostname=false"] {
        let error = connect_broker(&format!("rediss://localhost?{query}"), Patience::Forever).await.err().unwrap();
        assert!(error.is_permanent() && error.to_string().contains("ssl_ca_certs"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_is_a_way_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("redis.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect(host_of(&redis_url())).await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    let url = format!("redis+socket://{}?virtual_host=1", path.display());
    everything_works(&url, &Patience::FailFast.into()).await;
}

/// Answers as a sentinel that knows one master, or none.
struct Sentinel {
    master: Arc<Mutex<Option<(String, u16)>>>,
    address: String,
}

impl Sentinel {
    async fn knowing(master: Option<&str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let known = Arc::new(Mutex::new(None));
        let sentinel = Self { master: known.clone(), address };
        sentinel.learn(master);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(converse(client, known.clone()));
            }
        });
        sentinel
    }

    fn learn(&self, master: Option<&str>) {
        let parted = master.and_then(|address| address.rsplit_once(':'));
        *self.master.lock().unwrap() = parted.map(|(host, port)| (host.to_owned(), port.parse().unwrap()));
    }
}

async fn converse(client: TcpStream, master: Arc<Mutex<Option<(String, u16)>>>) {
    let (reader, mut writer) = client.into_split();
    let mut lines = BufReader::new(reader).lines();
    // A command is an array of texts: a count, and for each a length and the text itself.
    while let Ok(Some(count)) = lines.next_line().await {
        let mut words = Vec::new();
        for _ in 0..count.trim_start_matches('*').parse::<usize>().unwrap() {
            lines.next_line().await.unwrap();
            words.push(lines.next_line().await.unwrap().unwrap());
        }
        let master = master.lock().unwrap().clone();
        let answer = match (words[0].as_str(), master) {
            ("SENTINEL", Some((host, port))) if words[2] == "mymaster" => {
                let port = port.to_string();
                format!("*2\r\n${}\r\n{host}\r\n${}\r\n{port}\r\n", host.len(), port.len())
            }
            ("SENTINEL", _) => "*-1\r\n".to_owned(),
            _ => "+OK\r\n".to_owned(),
        };
        writer.write_all(answer.as_bytes()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_lead_to_the_master_and_to_the_next_one() {
    let (one, first) = Proxy::to(&redis_url()).await;
    let (_two, second) = Proxy::to(&redis_url()).await;
    let ignorant = Sentinel::knowing(None).await;
    let sentinel = Sentinel::knowing(Some(host_of(&first))).await;
    // Nobody listens at the first.
    let url = format!(
        "sentinel://127.0.0.1:1/0?master_name=mymaster;sentinel://{};sentinel://{}/0",
        ignorant.address, sentinel.address
    );
    everything_works(&url, &Patience::FailFast.into()).await;
    let named = Transport { master_name: Some("mymaster".to_owned()), ..Patience::Forever.into() };
    let broker = connect_broker(&format!("sentinel://{}/0", sentinel.address), named).await.unwrap();
    let queue = unique("queue");
    let mut consumer = broker.consume(subscription(&[&queue], 1)).await.unwrap();
    broker.publish(publication(&queue, "held")).await.unwrap();
    let held = next(&mut consumer).await;
    sentinel.learn(Some(host_of(&second)));
    one.go_down();
    soon(held.ack()).await.unwrap();
    soon(broker.publish(publication(&queue, "after"))).await.unwrap();
    assert_eq!(body(&next(&mut consumer).await), "after");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_no_sentinel_knows_is_waited_for() {
    let sentinel = Sentinel::knowing(Some(host_of(&redis_url()))).await;
    let url = format!("sentinel://{}/0?master_name=another", sentinel.address);
    let error = soon(connect_broker(&url, Patience::FailFast)).await.err().unwrap();
    assert!(!error.is_permanent() && error.to_string().contains("`another`"), "{error}");
    sentinel.learn(None);
    let url = format!("sentinel://{}/0?master_name=mymaster", sentinel.address);
    let waiting = tokio::spawn(async move { connect_broker(&url, Patience::Forever).await });
    sentinel.learn(Some(host_of(&redis_url())));
    publish_and_receive(&soon(waiting).await.unwrap().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_refused_with_the_reason() {
    let error = connect_broker("redis+cluster://:secret@localhost", Patience::Forever).await.err().unwrap();
    assert!(matches!(error, BrokerError::Address { .. }), "{error}");
    assert!(error.to_string().contains("Cluster") && !error.to_string().contains("secret"), "{error}");
}
