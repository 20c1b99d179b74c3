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
use lapin::{AsyncTcpStream, tcp::AMQPUriTcpExt, uri::AMQPUri};
use tokio::time::timeout;

use super::sieve::Sieve;
use crate::connect::CONNECT_WITHIN;

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

/// Connect, with TLS where the URL asks for it.
pub(super) async fn connect(uri: AMQPUri, sifting: Runtime<Sifting>) -> lapin::Result<AsyncTcpStream<Sifted>> {
    drop(sifting);
    let runtime = Runtime::tokio_current();
    let connected = uri.connect_with_config_async(Default::default(), &runtime);
    // lapin's own thread waits here, and would go on for minutes for a host that swallows packets.
    match timeout(CONNECT_WITHIN, connected).await {
        Ok(stream) => Ok(AsyncTcpStream::Plain(Sieve::new(stream?))),
        Err(elapsed) => Err(io::Error::from(elapsed).into()),
    }
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
