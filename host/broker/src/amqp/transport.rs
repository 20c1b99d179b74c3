//! lapin's way to the server, with a [`Sieve`] in it.
//!
//! lapin reads from whatever stream its runtime's reactor names. This one is tokio's in everything but that.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

use async_rs::{
    Runtime, Tokio,
    traits::{Executor, Reactor, RuntimeKit},
    util::Task,
};
use futures::{
    Stream,
    io::{AsyncRead, AsyncWrite},
};
use lapin::{
    AsyncTcpStream,
    tcp::{AMQPUriTcpExt, RustlsConnector, RustlsConnectorConfig},
    uri::{AMQPScheme, AMQPUri},
};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};
use tokio::time::timeout;

use super::sieve::Sieve;
use crate::{Tls, connect::CONNECT_WITHIN, tls::Pem};

type Sifted = Sieve<AsyncTcpStream<<Tokio as Reactor>::TcpStream>>;

/// Tokio, with streams that are sifted.
#[derive(Clone, Debug)]
pub(super) struct Sifting(Tokio);

impl Sifting {
    /// On the runtime that calls this.
    pub fn runtime() -> Runtime<Self> {
        Runtime::new(Self(Tokio::current()))
    }
}

/// Connect, with TLS where it is asked for.
pub(super) async fn connect(uri: AMQPUri, tls: Option<&Tls>) -> lapin::Result<AsyncTcpStream<Sifted>> {
    // lapin would trust other authorities than asked, and read no files.
    let plain = AMQPUri { scheme: AMQPScheme::AMQP, ..uri };
    let runtime = Runtime::tokio_current();
    let connected = async {
        let stream = plain.connect_with_config_async(Default::default(), &runtime).await?;
        match tls {
            None => Ok(stream),
            Some(tls) => stream.into_rustls(&connector(tls)?, &plain.authority.host).await,
        }
    };
    // lapin's own thread waits here, and would go on for minutes for a host that swallows packets.
    match timeout(CONNECT_WITHIN, connected).await {
        Ok(stream) => Ok(AsyncTcpStream::Plain(Sieve::new(stream?))),
        Err(elapsed) => Err(io::Error::from(elapsed).into()),
    }
}

/// Trusts those who are named and nobody else, or those whom the system trusts.
fn connector(tls: &Tls) -> io::Result<RustlsConnector> {
    let Pem { ca, identity } = tls.read().map_err(io::Error::other)?;
    let config = match ca {
        None => RustlsConnectorConfig::new_with_native_certs()?,
        Some(pem) => RustlsConnectorConfig::default().with_parsable_certificates(certificates(&pem)?),
    };
    match identity {
        None => config.connector_with_no_client_auth(),
        Some((chain, key)) => {
            let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| not_pem("key", &error))?;
            config.connector_with_single_cert(certificates(&chain)?, key)
        }
    }
}

fn certificates(pem: &[u8]) -> io::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| not_pem("certificate", &error))
}

fn not_pem(what: &str, error: &pem::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a {what} is no PEM: {error}"))
}

impl RuntimeKit for Sifting {}

impl Executor for Sifting {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, future: F) -> T {
        self.0.block_on(future)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(&self, future: F) -> Task<Self::Task<T>> {
        self.0.spawn(future)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(&self, work: F) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(work)
    }
}

impl Reactor for Sifting {
    type TcpStream = Sifted;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, pause: Duration) -> Self::Sleep {
        self.0.sleep(pause)
    }

    fn interval(&self, pause: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(pause)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connected = self.0.tcp_connect_addr(address);
        async move { Ok(Sieve::new(AsyncTcpStream::Plain(connected.await?))) }
    }
}
