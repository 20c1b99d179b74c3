//! What workers must remember together, beyond the life of any of them: the port [`Ledger`].

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::BrokerError;

/// How long an attempt is remembered.
pub const ATTEMPTS_LIFETIME: Duration = Duration::from_secs(86_400);
/// How long a revocation is remembered: as far ahead as an ETA may reasonably lie.
pub const REVOCATIONS_LIFETIME: Duration = Duration::from_secs(60 * 86_400);
/// So many revocations of each kind are remembered at most; the oldest go first.
pub const MAX_REVOCATIONS: usize = 1_000_000;
/// No turn is further ahead, and no allowance makes one wait longer for the next: ten years.
pub const FURTHEST_TURN: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Tasks that are not to run, whoever gets their messages.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Revocation {
    Task {
        id: String,
    },
    /// Every task that is stamped with this value under this header.
    Stamp {
        header: String,
        value: String,
    },
}

/// So many units in so long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Allowance {
    /// Time between two of them.
    pub every: Duration,
}

/// Kept in Redis or SQLite.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// Count another attempt at the message that `key` names, and answer the count, 1 for the first. Forgotten
    /// after [`ATTEMPTS_LIFETIME`]. For brokers that only tell that a message was delivered before.
    ///
    /// # Errors
    /// When the store cannot be reached; so for all below.
    async fn count_attempt(&self, key: &str) -> Result<u32, BrokerError>;

    /// Remember revocations for [`REVOCATIONS_LIFETIME`]; those that are known already are remembered anew.
    async fn revoke(&self, revocations: &[Revocation]) -> Result<(), BrokerError>;

    /// Whether a task's id is revoked.
    async fn is_revoked(&self, id: &str) -> Result<bool, BrokerError>;

    /// The latest revocations, latest first and at most `limit` of each kind, for a worker that starts.
    async fn revocations(&self, limit: usize) -> Result<Vec<Revocation>, BrokerError>;

    /// Reserve the next turn under a rate that is shared by everyone who names `key`: how long to wait for it.
    /// Turns that nobody took are not saved up (capacity 1, as Celery's token bucket).
    async fn reserve_turn(&self, key: &str, allowance: Allowance) -> Result<Duration, BrokerError>;
}

/// The port as it is passed about.
pub type SharedLedger = Arc<dyn Ledger>;
