//! What a process has claimed, and the lease that proves that it lives.
//!
//! The lease is renewed for as long as the broker or one of its deliveries is there, also after their consumer
//! was cancelled. When a process dies its lease runs out, and any other holder returns its messages.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use rusqlite::params;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::store::{Store, Turn};
use crate::{BrokerError, Receipt, Verdict};

/// A process that has said nothing for so long is taken for dead.
pub(super) const LEASE: Duration = Duration::from_secs(5);
/// How many times a lease is renewed before it would run out.
const RENEWALS: u32 = 5;

/// This broker's name in the file.
pub(super) struct Holder {
    pub store: Arc<Store>,
    pub id: Arc<str>,
    lease: Duration,
    /// Claims that were dropped where nothing could be awaited; the renewing task gives them back.
    dropped: Mutex<Vec<Claim>>,
    poke: Arc<Notify>,
    pub closed: CancellationToken,
}

/// Which message is claimed, and by which of its attempts.
#[derive(Clone, Copy)]
pub(super) struct Claim {
    pub message: i64,
    pub attempt: u32,
}

impl Holder {
    /// Take out a lease and keep it.
    pub async fn begin(store: Arc<Store>, lease: Duration) -> Result<Arc<Self>, BrokerError> {
        let holder = Arc::new(Self {
            store,
            id: Uuid::new_v4().to_string().into(),
            lease,
            dropped: Mutex::default(),
            poke: Arc::default(),
            closed: CancellationToken::new(),
        });
        holder.renew().await?;
        tokio::spawn(keep_renewing(
            Arc::downgrade(&holder),
            holder.poke.clone(),
            holder.closed.clone(),
            lease / RENEWALS,
        ));
        Ok(holder)
    }

    /// Renew the lease, and return what holders that are gone have left.
    pub async fn renew(&self) -> Result<(), BrokerError> {
        let dropped = std::mem::take(&mut *self.dropped());
        let (id, lease) = (self.id.clone(), self.lease);
        self.store
            .run(move |turn| {
                for claim in &dropped {
                    release(turn, &id, *claim)?;
                }
                let until = turn.now.saturating_add(i64::try_from(lease.as_millis()).unwrap_or(i64::MAX));
                turn.connection
                    .prepare_cached("INSERT OR REPLACE INTO leases (holder, expires_at) VALUES (?1, ?2)")?
                    .execute(params![&*id, until])?;
                return_abandoned(turn)
            })
            .await
    }

    /// Give everything back.
    pub async fn end(&self) -> Result<(), BrokerError> {
        self.closed.cancel();
        let id = self.id.clone();
        self.store.run(move |turn| forget(turn, &id)).await
    }

    fn drop_claim(&self, claim: Claim) {
        self.dropped().push(claim);
        self.poke.notify_one();
    }

    fn dropped(&self) -> std::sync::MutexGuard<'_, Vec<Claim>> {
        // No code panics while it holds the lock.
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if !self.closed.is_cancelled() {
            self.closed.cancel();
            let id = self.id.clone();
            self.store.run_unheard(move |turn| forget(turn, &id));
        }
    }
}

async fn keep_renewing(holder: Weak<Holder>, poke: Arc<Notify>, closed: CancellationToken, every: Duration) {
    loop {
        let poked_or_due = tokio::time::timeout(every, poke.notified());
        if closed.run_until_cancelled(poked_or_due).await.is_none() {
            return;
        }
        let Some(holder) = holder.upgrade() else {
            return;
        };
        if let Err(error) = holder.renew().await {
            tracing::warn!(%error, "the lease is not renewed");
        }
    }
}

/// The messages of holders whose lease has run out go back to their queues. A holder that was only asleep may
/// have claimed something before it renews, so whoever has no lease counts as gone.
fn return_abandoned(turn: &mut Turn<'_>) -> rusqlite::Result<()> {
    turn.connection.prepare_cached("DELETE FROM leases WHERE expires_at <= ?1")?.execute([turn.now])?;
    let messages = turn
        .connection
        .prepare_cached(
            "UPDATE messages SET claimed_by = NULL
             WHERE claimed_by IS NOT NULL AND claimed_by NOT IN (SELECT holder FROM leases)",
        )?
        .execute([])?;
    if messages > 0 {
        tracing::warn!(messages, "a process is gone; what it had claimed goes back to its queues");
        turn.wake_others();
    }
    Ok(())
}

/// Return what `holder` has claimed, and end its lease.
fn forget(turn: &mut Turn<'_>, holder: &str) -> rusqlite::Result<()> {
    let messages = turn
        .connection
        .prepare_cached("UPDATE messages SET claimed_by = NULL WHERE claimed_by = ?1")?
        .execute([holder])?;
    if messages > 0 {
        turn.wake_others();
    }
    turn.connection.execute("DELETE FROM leases WHERE holder = ?1", [holder]).map(drop)
}

/// Put a message back, if it is still ours. Answers whether it was.
fn release(turn: &mut Turn<'_>, holder: &str, claim: Claim) -> rusqlite::Result<bool> {
    let released = turn
        .connection
        .prepare_cached("UPDATE messages SET claimed_by = NULL WHERE id = ?1 AND claimed_by = ?2 AND attempts = ?3")?
        .execute(params![claim.message, holder, claim.attempt])?;
    turn.wake_others();
    Ok(released > 0)
}

fn delete(turn: &mut Turn<'_>, holder: &str, claim: Claim) -> rusqlite::Result<bool> {
    let deleted = turn
        .connection
        .prepare_cached("DELETE FROM messages WHERE id = ?1 AND claimed_by = ?2 AND attempts = ?3")?
        .execute(params![claim.message, holder, claim.attempt])?;
    Ok(deleted > 0)
}

/// A claimed message's receipt. Dropped unsettled, it gives the message back.
pub(super) struct ClaimReceipt {
    pub holder: Arc<Holder>,
    pub claim: Claim,
    pub queue: Arc<str>,
    settled: AtomicBool,
}

impl ClaimReceipt {
    pub fn new(holder: Arc<Holder>, claim: Claim, queue: Arc<str>) -> Self {
        Self { holder, claim, queue, settled: AtomicBool::new(false) }
    }
}

#[async_trait]
impl Receipt for ClaimReceipt {
    async fn settle(&self, verdict: Verdict) -> Result<(), BrokerError> {
        let (id, claim) = (self.holder.id.clone(), self.claim);
        let settled = self
            .holder
            .store
            .run(move |turn| match verdict {
                Verdict::Ack | Verdict::Reject => delete(turn, &id, claim),
                Verdict::Requeue => release(turn, &id, claim),
            })
            .await?;
        self.settled.store(true, Ordering::Relaxed);
        if settled {
            return Ok(());
        }
        let reason = "the lease ran out or was given back".to_owned();
        Err(BrokerError::NotOurs { queue: self.queue.to_string(), reason })
    }
}

impl Drop for ClaimReceipt {
    fn drop(&mut self) {
        if !self.settled.load(Ordering::Relaxed) {
            self.holder.drop_claim(self.claim);
        }
    }
}
