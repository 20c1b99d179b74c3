//! From a URL to a port.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::{
    BrokerError, Retention, SharedBackend, SharedBroker,
    amqp::AmqpBroker,
    backoff::Backoff,
    error::without_password,
    redis::RedisBackend,
    sqlite::{SqliteBackend, SqliteBroker},
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

/// Connect to the broker at an `amqp://`, `amqps://` or `sqlite:PATH` URL.
///
/// # Errors
/// For an address of no broker; when the server refuses; and, with [`Patience::FailFast`], when it is down.
pub async fn connect_broker(url: &str, patience: Patience) -> Result<SharedBroker, BrokerError> {
    match scheme(url) {
        "amqp" | "amqps" => Ok(Arc::new(AmqpBroker::connect(url, patience).await?)),
        "sqlite" => {
            let path = sqlite_path(url, "broker")?;
            patiently(patience, || SqliteBroker::open(path.clone())).await.map(|broker| Arc::new(broker) as _)
        }
        _ => Err(unknown_scheme(url, "broker", "amqp://, amqps:// or sqlite:PATH")),
    }
}

/// Connect to the result backend at a `redis://`, `rediss://` or `sqlite:PATH` URL.
///
/// # Errors
/// As for [`connect_broker`].
pub async fn connect_backend(
    url: &str,
    retention: Retention,
    patience: Patience,
) -> Result<SharedBackend, BrokerError> {
    match scheme(url) {
        "redis" | "rediss" => Ok(Arc::new(RedisBackend::connect(url, retention, patience).await?)),
        "sqlite" => {
            let path = sqlite_path(url, "result backend")?;
            patiently(patience, || SqliteBackend::open(path.clone(), retention))
                .await
                .map(|backend| Arc::new(backend) as _)
        }
        _ => Err(unknown_scheme(url, "result backend", "redis://, rediss:// or sqlite:PATH")),
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
        let rows = ["redis://localhost/0", "kafka://x:secret@y", "nonsense", ""];
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
