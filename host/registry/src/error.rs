//! What can go wrong with a registry, in terms that a caller can act on.

use crate::{Digest, MAX_COMPONENT};

/// Why a registry did not do what it was asked. No text in it holds a password.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("`{url}` is no address of a registry: {reason}")]
    Address { url: String, reason: String },
    #[error("the registry at {url} cannot be reached: {reason}")]
    Unreachable { url: String, reason: String },
    /// Wrong credentials, no such database, no permission, no database file.
    #[error("the registry at {url} refused access: {reason}; check its URL and who may use it")]
    Refused { url: String, reason: String },
    /// The store answered, with an error that may pass: it is busy, loading, read-only, out of memory or disk.
    #[error("the registry at {url} failed: {reason}")]
    Failed { url: String, reason: String },
    #[error("`{name}` cannot name a {what}: {rule}")]
    InvalidName { what: &'static str, name: String, rule: &'static str },
    #[error(
        "the component has {size} bytes, more than the {MAX_COMPONENT} that a registry keeps; build it without debug information, or split the module"
    )]
    TooLarge { size: usize },
    #[error("task `{task}` belongs to module `{module}`; rename the task, or deploy with --take-over")]
    NameTaken { task: String, module: String },
    #[error("so many others deploy at the same time that module `{module}` had no turn; deploy it again")]
    Contended { module: String },
    #[error("no component {0} is kept; deploy its module again")]
    UnknownDigest(Digest),
    #[error("component {0} is damaged where it is kept; deploy its module again")]
    Damaged(Digest),
    #[error("{what} cannot be read: {reason}; if a newer rtask wrote it, update this one")]
    Unreadable { what: String, reason: String },
}

impl RegistryError {
    /// Whether the same request would fail again, however long one waits.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Address { .. }
            | Self::Refused { .. }
            | Self::InvalidName { .. }
            | Self::TooLarge { .. }
            | Self::NameTaken { .. }
            | Self::UnknownDigest(_)
            | Self::Damaged(_)
            | Self::Unreadable { .. } => true,
            Self::Unreachable { .. } | Self::Failed { .. } | Self::Contended { .. } => false,
        }
    }
}
