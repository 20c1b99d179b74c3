//! One connection that all commands share, in one pipeline, and that is replaced when it is lost.

use std::time::Duration;

use redis::{
    AsyncConnectionConfig, Client, ErrorKind, FromRedisValue, Pipeline, ProtocolVersion, RedisError, RedisResult,
    ScriptInvocation, ServerErrorKind, aio::MultiplexedConnection,
};
use tokio::{sync::Mutex, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{address::Address, failure};
use crate::{BrokerError, Transport, backoff::Backoff, connect::CONNECT_WITHIN};

/// A server that has not answered a command after so long is taken for lost.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(4);

pub(super) struct Link {
    address: Address,
    /// Bounds a command with all of its attempts.
    within: Duration,
    /// Locked while connecting, so that a lost connection is replaced once, not once a caller.
    current: Mutex<Current>,
    closed: CancellationToken,
}

#[derive(Default)]
struct Current {
    connection: Option<MultiplexedConnection>,
    /// How many there were; tells a caller whether the one that failed it has been replaced already.
    number: u64,
}

impl Link {
    /// # Errors
    /// When `url` is not a Redis URL.
    pub fn new(url: &str, transport: &Transport) -> Result<Self, BrokerError> {
        let address = Address::parse(url, transport)?;
        let (current, closed) = (Mutex::default(), CancellationToken::new());
        Ok(Self { address, within: transport.patience.within(), current, closed })
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    pub fn url(&self) -> &str {
        self.address.url()
    }

    /// How long a command may take with all of its attempts.
    pub fn within(&self) -> Duration {
        self.within
    }

    /// Make sure that there is a connection, by a single attempt.
    pub async fn connect(&self) -> Result<(), BrokerError> {
        self.connection().await.map(drop)
    }

    /// Send commands that may be sent twice, over fresh connections if need be.
    pub async fn ask<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, BrokerError> {
        self.persist(|| self.send(commands)).await
    }

    /// Run a script that may be run twice, by its hash, or by its text where the server does not know it yet.
    pub async fn run<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, BrokerError> {
        self.persist(|| self.invoke(script)).await
    }

    async fn persist<T, F, A>(&self, attempt: A) -> Result<T, BrokerError>
    where
        A: Fn() -> F,
        F: Future<Output = Result<T, BrokerError>>,
    {
        let deadline = Instant::now() + self.within;
        let mut backoff = Backoff::default();
        loop {
            let error = match attempt().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let pause = backoff.pause();
            if error.is_permanent() || Instant::now() + pause >= deadline {
                return Err(error);
            }
            tracing::debug!(%error, ?pause, "asking again");
            tokio::time::sleep(pause).await;
        }
    }

    async fn send<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, BrokerError> {
        let (mut connection, number) = self.connection().await?;
        let answer = commands.query_async(&mut connection).await;
        self.judge(answer, number).await
    }

    /// Run a script in a single attempt, for those who must know that it may have run before.
    pub async fn invoke<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, BrokerError> {
        let (mut connection, number) = self.connection().await?;
        let answer = script.invoke_async(&mut connection).await;
        self.judge(answer, number).await
    }

    async fn judge<T>(&self, answer: RedisResult<T>, number: u64) -> Result<T, BrokerError> {
        match answer {
            Ok(answer) => Ok(answer),
            Err(error) => {
                if is_lost(&error) {
                    self.discard(number).await;
                }
                Err(failure::operating(self.url(), &error))
            }
        }
    }

    /// Do nothing any more, and leave.
    pub async fn close(&self) {
        self.closed.cancel();
        self.current.lock().await.connection = None;
    }

    async fn connection(&self) -> Result<(MultiplexedConnection, u64), BrokerError> {
        let mut current = self.current.lock().await;
        if self.closed.is_cancelled() {
            return Err(BrokerError::Closed { url: self.url().to_owned() });
        }
        if let Some(connection) = &current.connection {
            return Ok((connection.clone(), current.number));
        }
        let open =
            |client: Client| async move { client.get_multiplexed_async_connection_with_config(&configuration()).await };
        let fresh = self.address.connect(ProtocolVersion::RESP2, open).await?;
        current.connection = Some(fresh.clone());
        current.number += 1;
        Ok((fresh, current.number))
    }

    async fn discard(&self, number: u64) {
        let mut current = self.current.lock().await;
        if current.number == number {
            current.connection = None;
        }
    }
}

/// How connections that take commands are opened.
pub(super) fn configuration() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_WITHIN)).set_response_timeout(Some(ANSWER_WITHIN))
}

/// After a time-out too: the answer may still come, but a server that is this slow may as well be gone. And when the
/// server has become another one's replica, since the address may lead to the new master by now.
pub(super) fn is_lost(error: &RedisError) -> bool {
    let is_replica = error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly);
    error.is_io_error() || error.is_unrecoverable_error() || is_replica
}
