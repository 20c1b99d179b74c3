//! The [`Ledger`] port on a file.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use rusqlite::{Row, params};

use super::{
    broker::blocking,
    store::{Store, Turn},
};
use crate::{
    BrokerError, Ledger, Revocation,
    ledger::{ATTEMPTS_LIFETIME, Allowance, FURTHEST_TURN, MAX_REVOCATIONS, REVOCATIONS_LIFETIME},
};

/// A ledger in a file, which may be a broker's too.
pub struct SqliteLedger {
    store: Arc<Store>,
    /// [`MAX_REVOCATIONS`], but for tests.
    max_revocations: usize,
}

impl SqliteLedger {
    /// Open the file, made with its folder if it does not exist.
    ///
    /// # Errors
    /// When it cannot be opened, is no database, or was made by a newer rtask.
    pub async fn open(path: PathBuf) -> Result<Self, BrokerError> {
        let store = blocking(move || Store::open(&path)).await?;
        Ok(Self { store, max_revocations: MAX_REVOCATIONS })
    }

    /// As another process would open it, and with another bound on what is remembered.
    ///
    /// # Errors
    /// See [`Self::open`].
    #[doc(hidden)]
    pub async fn open_apart(path: PathBuf, max_revocations: usize) -> Result<Self, BrokerError> {
        blocking(move || Store::open_apart(&path)).await.map(|store| Self { store, max_revocations })
    }
}

#[async_trait]
impl Ledger for SqliteLedger {
    async fn count_attempt(&self, key: &str) -> Result<u32, BrokerError> {
        let key = key.to_owned();
        self.store
            .run(move |turn| {
                turn.connection
                    .prepare_cached(
                        "INSERT INTO attempts (key, count, expires_at) VALUES (?1, 1, ?2)
                         ON CONFLICT (key) DO UPDATE SET
                             count = CASE WHEN expires_at > ?3 THEN count + 1 ELSE 1 END,
                             expires_at = excluded.expires_at
                         RETURNING count",
                    )?
                    .query_row(params![key, turn.now + milliseconds(ATTEMPTS_LIFETIME), turn.now], |row| row.get(0))
            })
            .await
    }

    async fn revoke(&self, revocations: &[Revocation]) -> Result<(), BrokerError> {
        let (revocations, limit) = (revocations.to_vec(), self.max_revocations);
        self.store
            .run(move |turn| {
                revocations.iter().try_for_each(|revocation| revoke(turn, revocation))?;
                trim(turn, "revoked_tasks", limit)?;
                trim(turn, "revoked_stamps", limit)
            })
            .await
    }

    async fn is_revoked(&self, id: &str) -> Result<bool, BrokerError> {
        let id = id.to_owned();
        self.store
            .run(move |turn| {
                turn.connection
                    .prepare_cached("SELECT TRUE FROM revoked_tasks WHERE id = ?1 AND expires_at > ?2")?
                    .exists(params![id, turn.now])
            })
            .await
    }

    async fn revocations(&self, limit: usize) -> Result<Vec<Revocation>, BrokerError> {
        let task = |row: &Row<'_>| Ok(Revocation::Task { id: row.get(0)? });
        let stamp = |row: &Row<'_>| Ok(Revocation::Stamp { header: row.get(0)?, value: row.get(1)? });
        self.store
            .run(move |turn| {
                let mut latest = latest(turn, "SELECT id FROM revoked_tasks", limit, task)?;
                latest.extend(self::latest(turn, "SELECT header, value FROM revoked_stamps", limit, stamp)?);
                Ok(latest)
            })
            .await
    }

    async fn reserve_turn(&self, key: &str, allowance: Allowance) -> Result<Duration, BrokerError> {
        let key = key.to_owned();
        let every = allowance.every.min(FURTHEST_TURN).as_micros() as i64;
        self.store.run(move |turn| reserve(turn, &key, every)).await
    }
}

/// The latest revocation of a thing has the highest row, also where it was revoked before.
fn revoke(turn: &Turn<'_>, revocation: &Revocation) -> rusqlite::Result<()> {
    let expires_at = turn.now + milliseconds(REVOCATIONS_LIFETIME);
    match revocation {
        Revocation::Task { id } => turn
            .connection
            .prepare_cached("INSERT OR REPLACE INTO revoked_tasks (id, expires_at) VALUES (?1, ?2)")?
            .execute(params![id, expires_at]),
        Revocation::Stamp { header, value } => turn
            .connection
            .prepare_cached("INSERT OR REPLACE INTO revoked_stamps (header, value, expires_at) VALUES (?1, ?2, ?3)")?
            .execute(params![header, value, expires_at]),
    }
    .map(drop)
}

/// Forget the oldest rows of a table that has more than `limit`.
fn trim(turn: &Turn<'_>, table: &str, limit: usize) -> rusqlite::Result<()> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    // Counting them takes a while; a table whose first and last row lie closer together cannot have that many.
    let span = format!("SELECT coalesce(max(rowid), 0) - coalesce(min(rowid), 0) FROM {table}");
    let span: i64 = turn.connection.prepare_cached(&span)?.query_row([], |row| row.get(0))?;
    if span < limit {
        return Ok(());
    }
    let oldest = format!(
        "DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} ORDER BY rowid DESC LIMIT -1 OFFSET ?1)"
    );
    turn.connection.prepare_cached(&oldest)?.execute([limit]).map(drop)
}

fn latest(
    turn: &Turn<'_>,
    select: &str,
    limit: usize,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<Revocation>,
) -> rusqlite::Result<Vec<Revocation>> {
    let query = format!("{select} WHERE expires_at > ?1 ORDER BY rowid DESC LIMIT ?2");
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    turn.connection.prepare_cached(&query)?.query_map(params![turn.now, limit], |row| read(row))?.collect()
}

/// Move the next turn on by `every` microseconds, from now on if it has passed already. Once it has passed the row
/// says nothing more.
fn reserve(turn: &Turn<'_>, key: &str, every: i64) -> rusqlite::Result<Duration> {
    let now = turn.now * 1_000;
    let furthest = now + FURTHEST_TURN.as_micros() as i64;
    let next: i64 = turn
        .connection
        .prepare_cached(
            "INSERT INTO turns (key, next_us, expires_at) VALUES (?1, ?2 + ?3, (?2 + ?3) / 1000 + 1)
             ON CONFLICT (key) DO UPDATE SET
                 next_us = min(max(next_us, ?2) + ?3, ?4),
                 expires_at = min(max(next_us, ?2) + ?3, ?4) / 1000 + 1
             RETURNING next_us",
        )?
        .query_row(params![key, now, every, furthest], |row| row.get(0))?;
    Ok(Duration::from_micros(u64::try_from(next - every - now).unwrap_or(0)))
}

fn milliseconds(lifetime: Duration) -> i64 {
    i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX)
}
