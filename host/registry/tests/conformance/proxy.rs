//! A wire between a registry and its server that a test can cut.

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Passes connections on until it is dropped.
pub struct Proxy {
    port: u16,
    /// Whoever holds a connection ends it when this changes.
    cuts: watch::Sender<()>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub async fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let cuts = watch::Sender::new(());
        let accepting = tokio::spawn(accept(listener, server, cuts.clone()));
        Self { port, cuts, accepting }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// End every connection that there is; answers how many those were.
    pub fn cut(&self) -> usize {
        let held = self.cuts.receiver_count();
        self.cuts.send_replace(());
        held
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, server: String, cuts: watch::Sender<()>) {
    while let Ok((mut near, _)) = listener.accept().await {
        let (server, mut cut) = (server.clone(), cuts.subscribe());
        tokio::spawn(async move {
            let Ok(mut far) = TcpStream::connect(server).await else {
                return;
            };
            tokio::select! {
                _ = copy_bidirectional(&mut near, &mut far) => {}
                _ = cut.changed() => {}
            }
        });
    }
}
