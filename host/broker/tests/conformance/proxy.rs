//! A TCP proxy whose connections the test can cut.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

pub struct Proxy {
    address: SocketAddr,
    /// Each change ends the connections there are.
    cuts: watch::Sender<()>,
    up: Arc<AtomicBool>,
}

impl Proxy {
    /// To the server of `url`; answers the proxy and the URL that leads through it.
    pub async fn to(url: &str) -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cuts, up) = (watch::Sender::new(()), Arc::new(AtomicBool::new(true)));
        let server = host_of(url).to_owned();
        tokio::spawn(forward(listener, server.clone(), cuts.clone(), up.clone()));
        (Self { address, cuts, up }, url.replacen(&server, &address.to_string(), 1))
    }

    /// As if the network failed for a moment.
    pub fn cut(&self) {
        self.cuts.send_replace(());
    }

    /// As if the server were gone: connections end as soon as they are made.
    pub fn go_down(&self) {
        self.up.store(false, Ordering::SeqCst);
        self.cut();
    }

    pub fn come_up(&self) {
        self.up.store(true, Ordering::SeqCst);
    }

    /// How many connections stand.
    pub fn connections(&self) -> usize {
        self.cuts.receiver_count()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// `host:port` of a URL.
pub fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").expect("a URL").1;
    let authority = rest.split('/').next().expect("split answers at least one");
    authority.rsplit('@').next().expect("split answers at least one")
}

async fn forward(listener: TcpListener, server: String, cuts: watch::Sender<()>, up: Arc<AtomicBool>) {
    while let Ok((mut client, _)) = listener.accept().await {
        if !up.load(Ordering::SeqCst) {
            continue;
        }
        let (server, mut cut) = (server.clone(), cuts.subscribe());
        tokio::spawn(async move {
            let mut server = TcpStream::connect(server).await.unwrap();
            tokio::select! {
                _ = copy_bidirectional(&mut client, &mut server) => {}
                _ = cut.changed() => {}
            }
        });
    }
}
