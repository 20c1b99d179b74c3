//! From a URL to a port.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::{
    BrokerError, Retention, SharedBackend, SharedBroker, SharedLedger,
    amqp::AmqpBroker,
    backoff::Backoff,
    error::without_password,
    redis::{self, RedisBackend, RedisBroker, RedisLedger},
    rpc::RpcBackend,
    sqlite::{SqliteBackend, SqliteBroker, SqliteLedger},
};

/// One attempt to connect takes no longer.
pub const CONNECT_WITHIN: Duration = Duration::from_secs(4);

/// How long to put up with a server that is down. A server that refuses is never tried again, whatever this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// For clients: a command that cannot reach its server ends within 5 seconds.
    FailFast,
    /// For workers: try again, with back-off and a warning each time, until the server is there.
    Forever,
}

impl Patience {
    /// How long a single operation may take, with all of its attempts over fresh connections.
    pub(crate) fn within(self) -> Duration {
        match self {
            Self::FailFast => Duration::from_secs(4),
            Self::Forever => Duration::from_secs(30),
        }
    }
}

/// How to reach a server, beside its URL (`broker_transport_options`, `broker_use_ssl`). What a URL's query says
/// of the same goes before it.
#[derive(Clone, Debug)]
pub struct Transport {
    pub patience: Patience,
    pub tls: Tls,
    /// `global_keyprefix`: before every key in Redis.
    pub key_prefix: String,
    /// `visibility_timeout`: when Redis's messages of a consumer that has not been heard of go back to their queue.
    pub visibility_timeout: Duration,
    /// `priority_steps`: the priorities that Redis tells apart, ascending.
    pub priority_steps: Vec<u8>,
    /// `master_name`: which of their masters is asked of Redis's sentinels.
    pub master_name: Option<String>,
}

/// Whom to trust, and who to be. Files are PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Certificate authorities; none for those of the system.
    pub ca: Option<PathBuf>,
    /// The client's certificate, with the chain above it, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl Default for Transport {
    /// kombu's (`kombu/transport/redis.py`).
    fn default() -> Self {
        Self {
            patience: Patience::Forever,
            tls: Tls::default(),
            key_prefix: String::new(),
            visibility_timeout: Duration::from_secs(3600),
            priority_steps: vec![0, 3, 6, 9],
            master_name: None,
        }
    }
}

impl From<Patience> for Transport {
    fn from(patience: Patience) -> Self {
        Self { patience, ..Self::default() }
    }
}

/// Connect to the broker at an `amqp://`, `amqps://` or `sqlite:PATH` URL, or one of those that lead to a Redis. Of
/// several AMQP URLs, which `;` parts, the first that can be reached is used, now and at each lost connection.
///
/// # Errors
/// For an address of no broker; when the server refuses; and, with [`Patience::FailFast`], when it is down.
pub async fn connect_broker(url: &str, transport: impl Into<Transport>) -> Result<SharedBroker, BrokerError> {
    let transport = transport.into();
    let patience = transport.patience;
    match scheme(url) {
        "amqp" | "amqps" => Ok(Arc::new(AmqpBroker::connect(url, &transport).await?)),
        scheme if redis::is_redis(scheme) => {
            let transport = redis::with_query(url, transport)?;
            Ok(Arc::new(RedisBroker::connect(url, &transport).await?))
        }
        "sqlite" => {
            let path = sqlite_path(url, "broker")?;
            patiently(patience, || SqliteBroker::open(path.clone())).await.map(|broker| Arc::new(broker) as _)
        }
        _ => Err(unknown_scheme(url, "broker", &format!("amqp://, amqps://, {} or sqlite:PATH", redis::SCHEMES))),
    }
}

/// Connect to the result backend at a `sqlite:PATH` URL or one of those that lead to a Redis.
///
/// # Errors
/// As for [`connect_broker`].
pub async fn connect_backend(
    url: &str,
    retention: Retention,
    transport: impl Into<Transport>,
) -> Result<SharedBackend, BrokerError> {
    let transport = transport.into();
    let patience = transport.patience;
    match scheme(url) {
        scheme if redis::is_redis(scheme) => {
            let transport = redis::with_query(url, transport)?;
            Ok(Arc::new(RedisBackend::connect(url, retention, &transport).await?))
        }
        "sqlite" => {
            let path = sqlite_path(url, "result backend")?;
            patiently(patience, || SqliteBackend::open(path.clone(), retention))
                .await
                .map(|backend| Arc::new(backend) as _)
        }
        _ => Err(unknown_scheme(url, "result backend", &format!("{} or sqlite:PATH", redis::SCHEMES))),
    }
}

/// The same, for a process that has a broker: `rpc://` sends results over it.
///
/// # Errors
/// As for [`connect_broker`].
pub async fn connect_backend_over(
    broker: &SharedBroker,
    url: &str,
    retention: Retention,
    transport: impl Into<Transport>,
) -> Result<SharedBackend, BrokerError> {
    match scheme(url) {
        "rpc" => Ok(Arc::new(RpcBackend::over(broker.clone()))),
        _ => connect_backend(url, retention, transport).await,
    }
}

/// Connect to the ledger at a `sqlite:PATH` URL or one of those that lead to a Redis.
///
/// # Errors
/// As for [`connect_broker`].
pub async fn connect_ledger(url: &str, transport: impl Into<Transport>) -> Result<SharedLedger, BrokerError> {
    let transport = transport.into();
    let patience = transport.patience;
    match scheme(url) {
        scheme if redis::is_redis(scheme) => {
            let transport = redis::with_query(url, transport)?;
            Ok(Arc::new(RedisLedger::connect(url, &transport).await?))
        }
        "sqlite" => {
            let path = sqlite_path(url, "ledger")?;
            patiently(patience, || SqliteLedger::open(path.clone())).await.map(|ledger| Arc::new(ledger) as _)
        }
        _ => Err(unknown_scheme(url, "ledger", &format!("{} or sqlite:PATH", redis::SCHEMES))),
    }
}

/// Attempt until it works, or until trying again makes no sense.
pub(crate) async fn patiently<T, F, A>(patience: Patience, mut attempt: A) -> Result<T, BrokerError>
where
    A: FnMut() -> F,
    F: Future<Output = Result<T, BrokerError>>,
{
    let mut backoff = Backoff::default();
    loop {
        match attempt().await {
            Err(error) if patience == Patience::Forever && !error.is_permanent() => {
                let pause = backoff.pause();
                tracing::warn!(%error, ?pause, "trying again");
                tokio::time::sleep(pause).await;
            }
            answer => return answer,
        }
    }
}

fn scheme(url: &str) -> &str {
    url.split_once(':').map_or("", |(scheme, _)| scheme)
}

fn sqlite_path(url: &str, of: &'static str) -> Result<PathBuf, BrokerError> {
    match url.strip_prefix("sqlite:") {
        None | Some("" | ":memory:") => Err(BrokerError::Address {
            url: url.to_owned(),
            of,
            reason: "it must name a file, since processes meet in it".to_owned(),
        }),
        Some(path) => Ok(PathBuf::from(path)),
    }
}

fn unknown_scheme(url: &str, of: &'static str, known: &str) -> BrokerError {
    BrokerError::Address { url: without_password(url), of, reason: format!("it must begin with {known}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_unknown_scheme_is_answered_with_the_known_ones() {
        let rows = ["kafka://x:secret@y", "nonsense", ""];
        for url in rows {
            let error = connect_broker(url, Patience::Forever).await.err().expect(url);
            assert!(error.is_permanent());
            let text = error.to_string();
            assert!(text.contains("amqp://") && text.contains("sqlite:PATH") && !text.contains("secret"), "{text}");
        }
        let error = connect_backend("amqp://localhost", Retention::default(), Patience::Forever).await.err().unwrap();
        assert!(error.to_string().contains("redis://"), "{error}");
    }

    #[tokio::test]
    async fn a_store_in_memory_is_refused() {
        for url in ["sqlite:", "sqlite::memory:"] {
            assert!(connect_broker(url, Patience::FailFast).await.is_err(), "{url}");
        }
    }

    #[tokio::test]
    async fn patience_ends_at_a_permanent_error() {
        let mut attempts = 0;
        let answer: Result<(), _> = patiently(Patience::Forever, || {
            attempts += 1;
            let (url, reason) = (String::new(), String::new());
            std::future::ready(Err(if attempts < 3 {
                BrokerError::Unreachable { url, reason }
            } else {
                BrokerError::Damaged { what: url, reason }
            }))
        })
        .await;
        assert!(matches!(answer, Err(BrokerError::Damaged { .. })));
        assert_eq!(attempts, 3);
    }
}
