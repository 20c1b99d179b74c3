//! From a URL to a registry.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::{RegistryError, SharedRegistry, WORKER_LIFETIME, redis::RedisRegistry, sqlite::SqliteRegistry};

/// A store that has not answered after so long counts as unreachable.
pub const CONNECT_WITHIN: Duration = Duration::from_millis(4_500);

/// Connect to the registry at a `redis://`, `rediss://` or `sqlite:PATH` URL. A connection that is lost later is
/// taken up again by itself.
///
/// # Errors
/// Within [`CONNECT_WITHIN`]: for an address of no registry, and when the store is down or refuses.
pub async fn connect(url: &str) -> Result<SharedRegistry, RegistryError> {
    connect_with(url, WORKER_LIFETIME).await
}

/// As [`connect`], for tests that wait for workers to expire.
///
/// # Errors
/// See [`connect`].
#[doc(hidden)]
pub async fn connect_with(url: &str, worker_lifetime: Duration) -> Result<SharedRegistry, RegistryError> {
    match tokio::time::timeout(CONNECT_WITHIN, open(url, worker_lifetime)).await {
        Ok(registry) => registry,
        Err(_) => Err(RegistryError::Unreachable {
            url: without_password(url),
            reason: format!("no answer within {CONNECT_WITHIN:?}"),
        }),
    }
}

async fn open(url: &str, worker_lifetime: Duration) -> Result<SharedRegistry, RegistryError> {
    match url.split_once(':') {
        Some(("redis" | "rediss", _)) => Ok(Arc::new(RedisRegistry::connect(url, worker_lifetime).await?)),
        Some(("sqlite", "" | ":memory:")) => Err(address(url, "it must name a file, since processes meet in it")),
        Some(("sqlite", path)) => Ok(Arc::new(SqliteRegistry::open(PathBuf::from(path), worker_lifetime).await?)),
        Some(_) | None => Err(address(url, "it must begin with redis://, rediss:// or sqlite:PATH")),
    }
}

fn address(url: &str, reason: &str) -> RegistryError {
    RegistryError::Address { url: without_password(url), reason: reason.to_owned() }
}

/// A URL fit for messages and logs: without its password, and without its query, which may hold secrets too.
pub(crate) fn without_password(url: &str) -> String {
    let url = url.split_once('?').map_or(url, |(before, _)| before);
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    // A password that was not percent-encoded may hold a slash, so the last `@` ends it, wherever that is.
    let Some((user_info, host)) = rest.rsplit_once('@') else {
        return url.to_owned();
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
            ("redis://host/0?password=secret", "redis://host/0"),
            ("sqlite:.rtask/a@b.db", "sqlite:.rtask/a@b.db"),
        ];
        for (url, expected) in rows {
            assert_eq!(without_password(url), expected);
        }
    }
}
