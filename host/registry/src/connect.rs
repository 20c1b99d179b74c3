//! From a URL to a registry.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::{RegistryError, SharedRegistry, WORKER_LIFETIME, redis::RedisRegistry, sqlite::SqliteRegistry};

/// A store that has not answered after so long counts as unreachable.
pub const CONNECT_WITHIN: Duration = Duration::from_millis(4_500);

/// Whom to trust at a `rediss://` URL, and who to be. Files are PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Certificate authorities; none for those of the system.
    pub ca: Option<PathBuf>,
    /// The client's certificate, with the chain above it, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Connect to the registry at a `redis://`, `rediss://` or `sqlite:PATH` URL. A connection that is lost later is
/// taken up again by itself.
///
/// # Errors
/// Within [`CONNECT_WITHIN`]: for an address of no registry, and when the store is down or refuses.
pub async fn connect(url: &str) -> Result<SharedRegistry, RegistryError> {
    connect_over_tls(url, &Tls::default()).await
}

/// As [`connect`], with certificates of one's own.
///
/// # Errors
/// See [`connect`], and for a file that cannot be read.
pub async fn connect_over_tls(url: &str, tls: &Tls) -> Result<SharedRegistry, RegistryError> {
    within(url, open(url, WORKER_LIFETIME, tls)).await
}

/// As [`connect`], for tests that wait for workers to expire.
///
/// # Errors
/// See [`connect`].
#[doc(hidden)]
pub async fn connect_with(url: &str, worker_lifetime: Duration) -> Result<SharedRegistry, RegistryError> {
    within(url, open(url, worker_lifetime, &Tls::default())).await
}

async fn within(
    url: &str,
    opening: impl Future<Output = Result<SharedRegistry, RegistryError>>,
) -> Result<SharedRegistry, RegistryError> {
    match tokio::time::timeout(CONNECT_WITHIN, opening).await {
        Ok(registry) => registry,
        Err(_) => Err(RegistryError::Unreachable {
            url: without_password(url),
            reason: format!("no answer within {CONNECT_WITHIN:?}"),
        }),
    }
}

async fn open(url: &str, worker_lifetime: Duration, tls: &Tls) -> Result<SharedRegistry, RegistryError> {
    match url.split_once(':') {
        Some(("redis" | "rediss", _)) => Ok(Arc::new(RedisRegistry::connect(url, worker_lifetime, tls).await?)),
        Some(("sqlite", "" | ":memory:")) => Err(address(url, "it must name a file, since processes meet in it")),
        Some(("sqlite", path)) => Ok(Arc::new(SqliteRegistry::open(PathBuf::from(path), worker_lifetime).await?)),
        Some(_) | None => Err(address(url, "it must begin with redis://, rediss:// or sqlite:PATH")),
    }
}

fn address(url: &str, reason: &str) -> RegistryError {
    RegistryError::Address { url: without_password(url), reason: reason.to_owned() }
}

/// A URL fit for messages and logs: without its password, and without its query, which may hold secrets too.
///
/// A password that was not percent-encoded may hold a slash, so the last `@` ends it, wherever that is. It may hold a
/// question mark, too: if there is an `@` behind one, only what is certainly no password is told.
pub(crate) fn without_password(url: &str) -> String {
    let (before, query) = url.split_once('?').unwrap_or((url, ""));
    let Some((scheme, rest)) = before.split_once("://") else {
        return before.to_owned();
    };
    let rest = if query.contains('@') { rest.split(':').next().unwrap_or_default() } else { rest };
    let Some((user_info, host)) = rest.rsplit_once('@') else {
        return format!("{scheme}://{rest}");
    };
    match user_info.split(':').next() {
        None | Some("") => format!("{scheme}://{host}"),
        Some(user) => format!("{scheme}://{user}@{host}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_of_no_registry_is_answered_with_what_one_looks_like() {
        for url in ["amqp://user:secret@localhost", "nonsense", "", "redis", "http://x?token=secret"] {
            let error = connect(url).await.err().expect(url);
            assert!(error.is_permanent());
            let text = error.to_string();
            assert!(text.contains("redis://") && text.contains("sqlite:PATH"), "{text}");
            assert!(!text.contains("secret"), "{text}");
        }
    }

    #[tokio::test]
    async fn a_file_in_memory_is_refused() {
        for url in ["sqlite:", "sqlite::memory:"] {
            assert!(matches!(connect(url).await, Err(RegistryError::Address { .. })), "{url}");
        }
    }

    #[tokio::test]
    async fn a_url_that_redis_does_not_understand_is_refused_without_its_password() {
        let error = connect("redis://:secret@host:port/x").await.err().unwrap();
        assert!(matches!(error, RegistryError::Address { .. }), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[test]
    fn no_password_survives() {
        let rows = [
            ("redis://user:secret@host:1/0", "redis://user@host:1/0"),
            ("redis://user:se/cr@t@host", "redis://user@host"),
            ("rediss://:secret@host/0", "rediss://host/0"),
            ("redis://user:se?cr@t@host", "redis://user"),
            ("redis://host/0?password=secret", "redis://host/0"),
            ("sqlite:.rtask/a@b.db", "sqlite:.rtask/a@b.db"),
        ];
        for (url, expected) in rows {
            assert_eq!(without_password(url), expected);
        }
    }
}
