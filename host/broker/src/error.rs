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
    #[error("a message for `{queue}` was not confirmed: {reason}")]
    NotConfirmed { queue: String, reason: String },
    /// No broker could carry it.
    #[error("a message cannot be sent: {reason}")]
    Unsendable { reason: String },
    /// The connection or lease that the delivery belonged to has ended; its queue hands the message out again.
    #[error("a delivery from queue `{queue}` is no longer ours to settle: {reason}")]
    NotOurs { queue: String, reason: String },
    /// `rpc://` hands a result to whoever sent the task, and to nobody else.
    #[error("the result of task `{task_id}` goes only to the process that sent it, which is how `rpc://` works")]
    Elsewhere { task_id: String },
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
            | Self::Elsewhere { .. }
            | Self::Closed { .. }
            | Self::Damaged { .. } => true,
            Self::Unreachable { .. } | Self::Lost { .. } | Self::Failed { .. } | Self::NotConfirmed { .. } => false,
        }
    }

    pub(crate) fn unsendable(reason: impl Into<String>) -> Self {
        Self::Unsendable { reason: reason.into() }
    }
}

/// A URL fit for messages and logs: without its password, and without its query, which may hold secrets too. So for
/// each of a list, whose parts `;` parts; a password that holds one makes pieces that are no URLs.
pub fn without_password(url: &str) -> String {
    let pieces = || url.split(';').map(str::trim).filter(|piece| !piece.is_empty());
    match pieces().all(|piece| piece.contains("://")) {
        true => pieces().map(one_without_password).collect::<Vec<_>>().join(";"),
        false => one_without_password(url),
    }
}

/// A password that was not percent-encoded may hold a slash, so the last `@` ends it, wherever that is. It may hold a
/// question mark, too: if there is an `@` behind one, only what is certainly no password is told.
fn one_without_password(url: &str) -> String {
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

    #[test]
    fn no_password_survives() {
        let rows = [
            ("amqp://guest:secret@host:1/v", "amqp://guest@host:1/v"),
            ("amqp://guest:se/cr@t@host", "amqp://guest@host"),
            ("redis://:secret@host/0", "redis://host/0"),
            ("redis://host/0?password=secret", "redis://host/0"),
            ("amqp://host//", "amqp://host//"),
            ("sqlite:.rtask/a.db", "sqlite:.rtask/a.db"),
            ("amqp://guest:se?cr@t@host", "amqp://guest"),
            ("redis://:secret?@host", "redis://"),
            ("redis://host/0?password=se@cret", "redis://host/0"),
            ("redis://:secret@a;redis://u:secret@b", "redis://a;redis://u@b"),
            ("redis://:sec;ret@a", "redis://a"),
            ("amqp://u:secret@a?heartbeat=3; amqp://u:secret@b;", "amqp://u@a;amqp://u@b"),
            ("sentinel://:secret@a/0?sentinel_password=secret", "sentinel://a/0"),
        ];
        for (url, expected) in rows {
            assert_eq!(without_password(url), expected);
        }
    }
}
