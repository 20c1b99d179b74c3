//! Connections to Redis: one that all small commands share, and one apart for each deploy and each component.

use std::{fs, path::PathBuf, time::Duration};

use ::redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue,
    IntoConnectionInfo, Pipeline, RedisError, RedisResult, ServerErrorKind, TlsCertificates, Value,
    aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection},
    from_redis_value,
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};
use tokio::time::timeout;

use crate::{
    RegistryError,
    connect::{Tls, without_password},
};

const CONNECT_WITHIN: Duration = Duration::from_secs(4);
/// Bounds a small command, with its second attempt.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);
/// Bounds the transfer of a component: 64 MiB at some 10 Mbit/s.
const TRANSFER_WITHIN: Duration = Duration::from_secs(60);
/// A peer that is silent for so long is asked whether it is there; and given up when it does not acknowledge.
const SILENCE: Duration = Duration::from_secs(5);
/// The pause between two attempts to take up the shared connection again.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Link {
    client: Client,
    /// Without the password.
    url: String,
    shared: ConnectionManager,
}

impl Link {
    /// A single attempt: the server is there and lets us in, or not.
    pub async fn connect(url: &str, tls: &Tls) -> Result<Self, RegistryError> {
        let safe = without_password(url);
        let address = |reason| RegistryError::Address { url: safe.clone(), reason };
        let certificates = certificates(tls).map_err(address)?;
        let client = client(url, certificates).map_err(|error| address(error.to_string()))?;
        let configuration = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT_WITHIN))
            .set_response_timeout(Some(CONNECT_WITHIN))
            .set_max_delay(RECONNECT_PAUSE);
        let shared = client.get_connection_manager_lazy(configuration).map_err(|error| explain(&safe, &error))?;
        let link = Self { client, url: safe, shared };
        // The shared connection would try again, also where it was refused.
        link.apart().await?;
        Ok(link)
    }

    /// A connection that nobody else uses.
    pub async fn apart(&self) -> Result<MultiplexedConnection, RegistryError> {
        let configuration = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_WITHIN))
            .set_response_timeout(Some(TRANSFER_WITHIN));
        let connecting = self.client.get_multiplexed_async_connection_with_config(&configuration);
        connecting.await.map_err(|error| self.explain(&error))
    }

    /// Send commands that may be sent twice; the second time over a fresh connection, if the first was lost.
    pub async fn ask<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, RegistryError> {
        if commands.is_empty() {
            // The client library refuses to send nothing.
            return from_redis_value(Value::Array(Vec::new())).map_err(|error| self.explain(&error.into()));
        }
        let mut shared = self.shared.clone();
        let attempts = async {
            match commands.query_async(&mut shared).await {
                Err(error) if error.is_connection_dropped() => commands.query_async(&mut shared).await,
                answer => answer,
            }
        };
        match timeout(ANSWER_WITHIN, attempts).await {
            Ok(answer) => answer.map_err(|error| self.explain(&error)),
            Err(_) => Err(RegistryError::Unreachable {
                url: self.url.clone(),
                reason: format!("no answer within {ANSWER_WITHIN:?}"),
            }),
        }
    }

    /// Send commands over a connection that was opened for them.
    pub async fn ask_once<T: FromRedisValue>(
        &self,
        commands: &Pipeline,
        connection: &mut MultiplexedConnection,
    ) -> Result<T, RegistryError> {
        commands.query_async(connection).await.map_err(|error| self.explain(&error))
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn shared(&self) -> &ConnectionManager {
        &self.shared
    }

    pub fn explain(&self, error: &RedisError) -> RegistryError {
        explain(&self.url, error)
    }
}

/// What the files hold.
fn certificates(tls: &Tls) -> Result<TlsCertificates, String> {
    let read = |path: &PathBuf| fs::read(path).map_err(|error| format!("failed to read {}: {error}", path.display()));
    let identity = match &tls.identity {
        Some((certificate, key)) => Some(ClientTlsConfig { client_cert: read(certificate)?, client_key: read(key)? }),
        None => None,
    };
    Ok(TlsCertificates { client_tls: identity, root_cert: tls.ca.as_ref().map(read).transpose()? })
}

fn client(url: &str, certificates: TlsCertificates) -> RedisResult<Client> {
    let information: ConnectionInfo = url.into_connection_info()?;
    let settings = TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(TcpKeepalive::new().with_time(SILENCE).with_interval(SILENCE))
        .set_user_timeout(SILENCE);
    let is_secured = matches!(information.addr(), ConnectionAddr::TcpTls { .. });
    let information = information.set_tcp_settings(settings);
    if !is_secured {
        return Client::open(information);
    }
    // One is enough for the process; whoever came first has installed it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::build_with_tls(information, certificates)
}

/// What an error of Redis means to us.
fn explain(url: &str, error: &RedisError) -> RegistryError {
    let (url, reason) = (url.to_owned(), error.to_string());
    match error.kind() {
        ErrorKind::AuthenticationFailed | ErrorKind::Server(ServerErrorKind::NoPerm) => {
            RegistryError::Refused { url, reason }
        }
        ErrorKind::InvalidClientConfig => RegistryError::Address { url, reason },
        ErrorKind::Io => RegistryError::Unreachable { url, reason },
        _ if is_refusal(&reason) => RegistryError::Refused { url, reason },
        _ => RegistryError::Failed { url, reason },
    }
}

/// Answers that the client library passes on by their text alone.
fn is_refusal(reason: &str) -> bool {
    ["NOAUTH", "WRONGPASS", "DB index", "refused to switch database"].iter().any(|word| reason.contains(word))
}
