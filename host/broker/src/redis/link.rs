//! One connection that all commands share, in one pipeline, and that is replaced when it is lost.

use std::time::Duration;

use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, FromRedisValue, IntoConnectionInfo, Pipeline, RedisError,
    RedisResult, aio::MultiplexedConnection, io::tcp::TcpSettings,
};
use tokio::{sync::Mutex, time::Instant};

use super::failure;
use crate::{BrokerError, backoff::Backoff, connect::CONNECT_WITHIN, error::without_password};

/// A server that has not answered a command after so long is taken for lost.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);

pub(super) struct Link {
    client: Client,
    /// Without the password.
    url: String,
    /// Bounds a command with all of its attempts.
    within: Duration,
    /// Locked while connecting, so that a lost connection is replaced once, not once a caller.
    current: Mutex<Current>,
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
    pub fn new(url: &str, within: Duration) -> Result<Self, BrokerError> {
        let safe = without_password(url);
        let client = client(url).map_err(|error| BrokerError::Address {
            url: safe.clone(),
            of: "result backend",
            reason: error.to_string(),
        })?;
        Ok(Self { client, url: safe, within, current: Mutex::default() })
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Make sure that there is a connection, by a single attempt.
    pub async fn connect(&self) -> Result<(), BrokerError> {
        self.connection().await.map(drop)
    }

    /// Send commands that may be sent twice, over fresh connections if need be.
    pub async fn ask<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, BrokerError> {
        let deadline = Instant::now() + self.within;
        let mut backoff = Backoff::default();
        loop {
            let error = match self.attempt(commands).await {
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

    async fn attempt<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, BrokerError> {
        let (mut connection, number) = self.connection().await?;
        match commands.query_async(&mut connection).await {
            Ok(answer) => Ok(answer),
            Err(error) => {
                if is_lost(&error) {
                    self.discard(number).await;
                }
                Err(failure::operating(&self.url, &error))
            }
        }
    }

    async fn connection(&self) -> Result<(MultiplexedConnection, u64), BrokerError> {
        let mut current = self.current.lock().await;
        if let Some(connection) = &current.connection {
            return Ok((connection.clone(), current.number));
        }
        let configuration = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_WITHIN))
            .set_response_timeout(Some(ANSWER_WITHIN));
        let connected = self.client.get_multiplexed_async_connection_with_config(&configuration).await;
        let fresh = connected.map_err(|error| failure::connecting(&self.url, &error))?;
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

fn client(url: &str) -> RedisResult<Client> {
    let information: ConnectionInfo = url.into_connection_info()?;
    // A lone result must not wait for company; the pipeline batches by itself.
    Client::open(information.set_tcp_settings(TcpSettings::default().set_nodelay(true)))
}

/// After a time-out too: the answer may still come, but a server that is this slow may as well be gone.
fn is_lost(error: &RedisError) -> bool {
    error.is_io_error() || error.is_unrecoverable_error()
}
