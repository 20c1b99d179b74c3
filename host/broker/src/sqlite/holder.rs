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
use jiff::Timestamp;
use rtask_protocol::Message;
use rusqlite::{OptionalExtension, params};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    publish::{Row, Way},
    store::{Store, Turn},
};
use crate::{BrokerError, Receipt, Verdict};

/// A process that has said nothing for so long is taken for dead.
pub(super) const LEASE: Duration = Duration::from_secs(5);
/// How many times a lease is renewed before it would run out.
const RENEWALS: u32 = 5;
/// What a process has consumed and where it waited for replies is forgotten so long after its lease ran out; until
/// then it may have been asleep.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

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
    let messages = turn
        .connection
        .prepare_cached(
            "UPDATE messages SET claimed_by = NULL
             WHERE claimed_by IS NOT NULL AND claimed_by NOT IN (SELECT holder FROM leases WHERE expires_at > ?1)",
        )?
        .execute([turn.now])?;
    if messages > 0 {
        tracing::warn!(messages, "a process is gone; what it had claimed goes back to its queues");
        turn.wake_others();
    }
    let long_ago = turn.now - FORGOTTEN_AFTER.as_millis() as i64;
    let long_gone: Vec<String> = turn
        .connection
        .prepare_cached("SELECT holder FROM leases WHERE expires_at <= ?1")?
        .query_map([long_ago], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    long_gone.iter().try_for_each(|holder| forget(turn, holder))
}

/// Return what `holder` has claimed, and end its lease, its consumers and its reply queues.
fn forget(turn: &mut Turn<'_>, holder: &str) -> rusqlite::Result<()> {
    let messages = turn
        .connection
        .prepare_cached("UPDATE messages SET claimed_by = NULL WHERE claimed_by = ?1")?
        .execute([holder])?;
    if messages > 0 {
        turn.wake_others();
    }
    for query in [
        "DELETE FROM messages WHERE queue IN (SELECT name FROM queues WHERE holder = ?1)
             AND claimed_by IS NULL AND visible_at IS NULL",
        "DELETE FROM queues WHERE holder = ?1",
        "DELETE FROM consumers WHERE holder = ?1",
        "DELETE FROM leases WHERE holder = ?1",
    ] {
        turn.connection.prepare_cached(query)?.execute([holder])?;
    }
    Ok(())
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

/// Put a message aside until `until` as one that was never tried: under a new id, so that no receipt of an earlier
/// attempt fits it.
fn postpone(turn: &Turn<'_>, holder: &str, claim: Claim, row: &Row, until: i64) -> rusqlite::Result<bool> {
    let claimed = turn
        .connection
        .prepare_cached(
            "DELETE FROM messages WHERE id = ?1 AND claimed_by = ?2 AND attempts = ?3
             RETURNING queue, exchange, routing_key, expires_at",
        )?
        .query_row(params![claim.message, holder, claim.attempt], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })
        .optional()?;
    let Some((queue, exchange, routing_key, expires_at)) = claimed else {
        return Ok(false);
    };
    let (queue, exchange, routing_key): (String, String, Option<String>) = (queue, exchange, routing_key);
    let (routing_key, visible_at) = (routing_key.as_deref(), Some(until));
    row.insert(turn, &Way { queue: &queue, exchange: &exchange, routing_key, expires_at, visible_at })?;
    Ok(true)
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

    /// `was_ours` tells whether a verdict found the claim that it was for.
    fn judge(&self, was_ours: bool) -> Result<(), BrokerError> {
        self.settled.store(true, Ordering::Relaxed);
        if was_ours {
            return Ok(());
        }
        let reason = "the lease ran out or was given back".to_owned();
        Err(BrokerError::NotOurs { queue: self.queue.to_string(), reason })
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
        self.judge(settled)
    }

    async fn postpone(&self, message: &Message, until: Timestamp) -> Result<(), BrokerError> {
        let row = Row::of(message)?;
        let (id, claim, until) = (self.holder.id.clone(), self.claim, until.as_millisecond());
        let postponed = self.holder.store.run(move |turn| postpone(turn, &id, claim, &row, until)).await?;
        self.judge(postponed)
    }
}

impl Drop for ClaimReceipt {
    fn drop(&mut self) {
        if !self.settled.load(Ordering::Relaxed) {
            self.holder.drop_claim(self.claim);
        }
    }
}
