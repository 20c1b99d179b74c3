//! What can go wrong between rtask and a server, in terms that a caller can act on.

use std::fmt;

/// What a server would not let us do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The user does not exist, or the password is wrong.
    Credentials,
    /// The virtual host of an AMQP URL does not exist.
    VirtualHost,
    /// The database number of a Redis URL does not exist.
    Database,
    /// The user, or the process, may not do this.
    Permission,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Credentials => "the user name or password",
            Self::VirtualHost => "the virtual host",
            Self::Database => "the database",
            Self::Permission => "access",
        })
    }
}

/// Why a broker or a result backend did not do what it was asked. No text in it holds a password.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("`{url}` is no address of a {of}: {reason}")]
    Address { url: String, of: &'static str, reason: String },
    #[error("{url} cannot be reached: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("{url} refused {refusal}: {reason}")]
    Refused { url: String, refusal: Refusal, reason: String },
    #[error("the connection to {url} was lost: {reason}")]
    Lost { url: String, reason: String },
    /// The server answered, with an error that may pass: it is loading, read-only, out of memory or disk.
    #[error("{url} failed: {reason}")]
    Failed { url: String, reason: String },
    /// Nacked, unroutable, or not confirmed in time. It may have been kept all the same.
    #[error("a message for queue `{queue}` was not confirmed: {reason}")]
    NotConfirmed { queue: String, reason: String },
    /// No broker could carry it.
    #[error("a message cannot be sent: {reason}")]
    Unsendable { reason: String },
    /// The connection or lease that the delivery belonged to has ended; its queue hands the message out again.
    #[error("a delivery from queue `{queue}` is no longer ours to settle: {reason}")]
    NotOurs { queue: String, reason: String },
    #[error("{url} was closed by this process")]
    Closed { url: String },
    #[error("{what} is damaged: {reason}")]
    Damaged { what: String, reason: String },
}

impl BrokerError {
    /// Whether the same request would fail again, however long one waits.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Address { .. }
            | Self::Refused { .. }
            | Self::Unsendable { .. }
            | Self::NotOurs { .. }
            | Self::Closed { .. }
            | Self::Damaged { .. } => true,
            Self::Unreachable { .. } | Self::Lost { .. } | Self::Failed { .. } | Self::NotConfirmed { .. } => false,
        }
    }

    pub(crate) fn unsendable(reason: impl Into<String>) -> Self {
        Self::Unsendable { reason: reason.into() }
    }
}

/// A URL fit for messages and logs: without its password, and without its query, which may hold secrets too.
pub fn without_password(url: &str) -> String {
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

    #[test]
    fn no_password_survives() {
        let rows = [
            ("amqp://guest:secret@host:1/v", "amqp://guest@host:1/v"),
            ("amqp://guest:se/cr@t@host", "amqp://guest@host"),
            ("redis://:secret@host/0", "redis://host/0"),
            ("redis://host/0?password=secret", "redis://host/0"),
            ("amqp://host//", "amqp://host//"),
            ("sqlite:.rtask/a.db", "sqlite:.rtask/a.db"),
        ];
        for (url, expected) in rows {
            assert_eq!(without_password(url), expected);
        }
    }
}
