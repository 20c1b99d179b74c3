//! What Redis's errors mean to us.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::{BrokerError, Refusal};

/// Why a connection did not come about.
pub(super) fn connecting(url: &str, error: &RedisError) -> BrokerError {
    match operating(url, error) {
        BrokerError::Lost { url, reason } => BrokerError::Unreachable { url, reason },
        other => other,
    }
}

/// Why something failed on a connection that stood.
pub(super) fn operating(url: &str, error: &RedisError) -> BrokerError {
    let (url, reason) = (url.to_owned(), error.to_string());
    match error.kind() {
        ErrorKind::AuthenticationFailed => BrokerError::Refused { url, refusal: Refusal::Credentials, reason },
        ErrorKind::Server(ServerErrorKind::NoPerm) => {
            BrokerError::Refused { url, refusal: Refusal::Permission, reason }
        }
        ErrorKind::InvalidClientConfig => BrokerError::Address { url, of: "Redis", reason },
        ErrorKind::Io => BrokerError::Lost { url, reason },
        _ => match refusal(&reason) {
            Some(refusal) => BrokerError::Refused { url, refusal, reason },
            None => BrokerError::Failed { url, reason },
        },
    }
}

/// Answers that the client library passes on by their text alone.
fn refusal(reason: &str) -> Option<Refusal> {
    if reason.contains("NOAUTH") || reason.contains("WRONGPASS") {
        Some(Refusal::Credentials)
    } else if reason.contains("DB index") || reason.contains("refused to switch database") {
        Some(Refusal::Database)
    } else {
        None
    }
}
