//! Claiming messages and handing them out.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use rtask_protocol::Message;
use rusqlite::params;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    holder::{Claim, ClaimReceipt, Holder},
    queues,
    store::{LOOK_EVERY, Turn},
};
use crate::{Attempts, BrokerError, Delivery, Receipt, Verdict, backoff::Backoff};

/// So many messages are claimed in one go at most.
pub(super) const CLAIM: usize = 64;
/// So many postponed messages become due in one go at most; more than are claimed, so that a crowd is worked off.
const DUE: i64 = 1_000;

/// The inner query finds what waits in an index of that alone; what is postponed costs it nothing.
const CLAIM_WAITING: &str = "
    UPDATE messages SET claimed_by = ?1, attempts = attempts + 1
    WHERE id IN (
        SELECT id FROM messages
        WHERE queue = ?2 AND claimed_by IS NULL AND visible_at IS NULL AND (expires_at IS NULL OR expires_at > ?3)
        ORDER BY priority DESC, id LIMIT ?4
    )
    RETURNING id, attempts, headers, properties, body, exchange, routing_key, priority";

/// What claims one queue's messages for one consumer.
pub(super) struct Feed {
    pub holder: Arc<Holder>,
    pub queue: Arc<str>,
    /// A permit for each delivery that may still be made; unsettled ones hold theirs.
    pub room: Arc<Semaphore>,
    pub cancelled: CancellationToken,
}

impl Feed {
    pub async fn run(self, deliveries: mpsc::Sender<Delivery>) {
        let mut changes = self.holder.store.changes();
        let mut backoff = Backoff::default();
        while let Some(room) = self.room().await {
            // Before looking, so that what comes while we look is noticed after it.
            changes.mark_unchanged();
            // Never abandoned half-way: what it claims must reach somebody.
            let found = look(&self.holder, &self.queue, room.len()).await;
            match found {
                Ok(Found::Nothing { look_again }) => {
                    drop(room);
                    let change = tokio::time::timeout(look_again, changes.changed());
                    let _ = self.cancelled.run_until_cancelled(change).await;
                }
                Ok(Found::Messages(claimed)) => {
                    backoff = Backoff::default();
                    for (claimed, permit) in claimed.into_iter().zip(room) {
                        if deliveries.send(claimed.delivery(Some(permit))).await.is_err() {
                            return;
                        }
                    }
                }
                Err(error) if error.is_permanent() => {
                    return tracing::error!(%error, queue = &*self.queue, "the consumer is given up");
                }
                Err(error) => {
                    tracing::warn!(%error, queue = &*self.queue, "claiming again");
                    let _ = self.cancelled.run_until_cancelled(backoff.wait()).await;
                }
            }
        }
    }

    /// Wait until something may be claimed, and answer for how many; none when it is over.
    async fn room(&self) -> Option<Vec<OwnedSemaphorePermit>> {
        let first = tokio::select! {
            biased;
            () = self.cancelled.cancelled() => return None,
            () = self.holder.closed.cancelled() => return None,
            permit = self.room.clone().acquire_owned() => permit.ok()?,
        };
        let more = std::iter::from_fn(|| self.room.clone().try_acquire_owned().ok());
        Some(std::iter::once(first).chain(more.take(CLAIM - 1)).collect())
    }
}

/// What a look into a queue found.
pub(super) enum Found {
    Messages(Vec<Claimed>),
    /// Nobody may say so when it is worth while to look again.
    Nothing {
        look_again: Duration,
    },
}

/// A claimed message on its way from the store's thread. Dropped, it goes back.
pub(super) struct Claimed {
    receipt: ClaimReceipt,
    headers: String,
    properties: String,
    body: Vec<u8>,
    exchange: String,
    /// None for the queue's name.
    routing_key: Option<String>,
}

/// Claim up to `limit` of the messages that wait in `queue`, first come first served within a priority.
pub(super) async fn look(holder: &Arc<Holder>, queue: &Arc<str>, limit: usize) -> Result<Found, BrokerError> {
    let (holder, queue) = (holder.clone(), queue.clone());
    let store = holder.store.clone();
    store
        .run(move |turn| {
            queues::release_due(turn, &queue, DUE)?;
            let claimed = claim(turn, &holder, &queue, limit)?;
            if claimed.is_empty() {
                return Ok(Found::Nothing { look_again: until_next_due(turn, &queue)? });
            }
            Ok(Found::Messages(claimed))
        })
        .await
}

fn until_next_due(turn: &Turn<'_>, queue: &str) -> rusqlite::Result<Duration> {
    let due = queues::next_due(turn, queue)?.map(|due| u64::try_from(due - turn.now).unwrap_or(0));
    Ok(due.map_or(LOOK_EVERY, |due| LOOK_EVERY.min(Duration::from_millis(due))))
}

fn claim(turn: &Turn<'_>, holder: &Arc<Holder>, queue: &Arc<str>, limit: usize) -> rusqlite::Result<Vec<Claimed>> {
    let mut statement = turn.connection.prepare_cached(CLAIM_WAITING)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = statement.query_map(params![&*holder.id, &**queue, turn.now, limit], |row| {
        let claim = Claim { message: row.get(0)?, attempt: row.get(1)? };
        let receipt = ClaimReceipt::new(holder.clone(), claim, queue.clone());
        let (headers, properties, body) = (row.get(2)?, row.get(3)?, row.get(4)?);
        let (exchange, routing_key) = (row.get(5)?, row.get(6)?);
        Ok((row.get::<_, u8>(7)?, Claimed { receipt, headers, properties, body, exchange, routing_key }))
    })?;
    let mut claimed = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    // RETURNING promises no order.
    claimed.sort_by_key(|(priority, claimed)| (u8::MAX - priority, claimed.receipt.claim.message));
    Ok(claimed.into_iter().map(|(_, claimed)| claimed).collect())
}

impl Claimed {
    /// `permit` is given back when the delivery is settled.
    pub fn delivery(self, permit: Option<OwnedSemaphorePermit>) -> Delivery {
        let queue = self.receipt.queue.clone();
        let attempts = Attempts::Number(self.receipt.claim.attempt);
        let message = Message {
            headers: decode(&self.headers, &queue),
            properties: decode(&self.properties, &queue),
            body: self.body.into(),
        };
        let routing_key = self.routing_key.unwrap_or_else(|| queue.to_string());
        Delivery::new(message, queue, attempts, Box::new(Permitted { receipt: self.receipt, _permit: permit }))
            .routed(self.exchange, routing_key)
    }
}

/// A receipt that makes room for another delivery when it goes.
struct Permitted {
    receipt: ClaimReceipt,
    _permit: Option<OwnedSemaphorePermit>,
}

#[async_trait]
impl Receipt for Permitted {
    async fn settle(&self, verdict: Verdict) -> Result<(), BrokerError> {
        self.receipt.settle(verdict).await
    }

    async fn postpone(&self, message: &Message, until: Timestamp) -> Result<(), BrokerError> {
        self.receipt.postpone(message, until).await
    }
}

/// A message whose headers cannot be read is handed out without any, for the reader to dead-letter.
pub(super) fn decode<T: serde::de::DeserializeOwned + Default>(text: &str, queue: &str) -> T {
    serde_json::from_str(text).unwrap_or_else(|error| {
        tracing::error!(%error, queue, "a stored message is damaged");
        T::default()
    })
}

#[cfg(test)]
mod tests {
    use rtask_protocol::Headers;

    use super::{super::store::Store, *};

    #[test]
    fn damaged_headers_read_as_none() {
        assert_eq!(decode::<Headers>("{", "q"), Headers::new());
    }

    /// Its cost is that of the messages that it claims, whatever else is in the queue.
    #[tokio::test]
    async fn a_claim_looks_at_nothing_that_is_postponed_and_sorts_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_apart(&folder.path().join("rtask.db")).unwrap();
        let explain = |turn: &mut Turn<'_>| {
            let mut statement = turn.connection.prepare(&format!("EXPLAIN QUERY PLAN {CLAIM_WAITING}"))?;
            let steps = statement.query_map(params!["h", "q", 0, 64], |row| row.get("detail"))?;
            steps.collect::<rusqlite::Result<Vec<String>>>()
        };
        let plan = store.run(explain).await.unwrap();
        assert!(plan.iter().any(|step| step.contains("COVERING INDEX messages_waiting (queue=?)")), "{plan:?}");
        assert!(!plan.iter().any(|step| step.contains("SCAN messages") || step.contains("ORDER BY")), "{plan:?}");
    }
}
