//! Queues, exchanges and what ties them; the file keeps them in tables of their own.

use rtask_protocol::Headers;
use rusqlite::{OptionalExtension, Params, params};
use serde_json::Value;

use super::{
    routing::{kind_name, kind_named, takes},
    store::Turn,
};
use crate::{Exchange, Queue, QueueStats};

/// So many messages are purged in one transaction, since other processes give up waiting for a long one.
const PURGED_AT_ONCE: i64 = 10_000;

/// Make sure that `queue` and its bindings exist. Its arguments are a server's; the file needs none, since every
/// queue of it has priorities and is as durable as the file.
pub(super) fn declare(turn: &Turn<'_>, queue: &Queue) -> rusqlite::Result<()> {
    turn.connection.prepare_cached("INSERT OR IGNORE INTO queues (name) VALUES (?1)")?.execute([&queue.name])?;
    // Every queue is bound to the default exchange, and nobody may bind it there.
    for binding in queue.bindings.iter().filter(|binding| !binding.exchange.name.is_empty()) {
        declare_exchange(turn, &binding.exchange)?;
        turn.connection
            .prepare_cached(
                "INSERT OR IGNORE INTO bindings (exchange, routing_key, queue, arguments) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![
                binding.exchange.name,
                binding.routing_key,
                queue.name,
                Value::Object(binding.arguments.clone()).to_string()
            ])?;
    }
    Ok(())
}

/// The same for a queue of which a publisher knows only the name.
pub(super) fn declare_named(turn: &Turn<'_>, queue: &str) -> rusqlite::Result<()> {
    if exists(turn, queue)? { Ok(()) } else { declare(turn, &Queue::named(queue)) }
}

/// One that exists stays what it is.
pub(super) fn declare_exchange(turn: &Turn<'_>, exchange: &Exchange) -> rusqlite::Result<()> {
    turn.connection
        .prepare_cached("INSERT OR IGNORE INTO exchanges (name, kind) VALUES (?1, ?2)")?
        .execute(params![exchange.name, kind_name(exchange.kind)])
        .map(drop)
}

pub(super) fn exists(turn: &Turn<'_>, queue: &str) -> rusqlite::Result<bool> {
    turn.connection.prepare_cached("SELECT TRUE FROM queues WHERE name = ?1")?.exists([queue])
}

/// The queues that take a message published to `exchange`, each of them once. The default exchange, whose name is
/// empty, knows each queue by its name.
pub(super) fn takers(
    turn: &Turn<'_>,
    exchange: &str,
    routing_key: &str,
    headers: &Headers,
) -> rusqlite::Result<Vec<String>> {
    if exchange.is_empty() {
        return Ok(exists(turn, routing_key)?.then(|| routing_key.to_owned()).into_iter().collect());
    }
    let kind: Option<String> = turn
        .connection
        .prepare_cached("SELECT kind FROM exchanges WHERE name = ?1")?
        .query_row([exchange], |row| row.get(0))
        .optional()?;
    let Some(kind) = kind.as_deref().and_then(kind_named) else {
        return Ok(Vec::new());
    };
    let mut statement =
        turn.connection.prepare_cached("SELECT routing_key, arguments, queue FROM bindings WHERE exchange = ?1")?;
    let mut rows = statement.query([exchange])?;
    let mut queues = Vec::new();
    while let Some(row) = rows.next()? {
        let (key, queue): (String, String) = (row.get(0)?, row.get(2)?);
        // What no rtask has written asks for nothing.
        let arguments = serde_json::from_str(row.get_ref(1)?.as_str()?).unwrap_or_default();
        if takes(kind, &key, &arguments, routing_key, headers) && !queues.contains(&queue) {
            queues.push(queue);
        }
    }
    Ok(queues)
}

/// What is in a queue; none if it does not exist.
pub(super) fn stats(turn: &Turn<'_>, queue: &str) -> rusqlite::Result<Option<QueueStats>> {
    if !exists(turn, queue)? {
        return Ok(None);
    }
    let waiting = "SELECT count(*) FROM messages WHERE queue = ?1 AND claimed_by IS NULL AND visible_at IS NULL
                       AND (expires_at IS NULL OR expires_at > ?2)";
    let due = "SELECT count(*) FROM messages WHERE queue = ?1 AND visible_at <= ?2";
    let postponed = "SELECT count(*) FROM messages WHERE queue = ?1 AND visible_at > ?2";
    let unacked = "SELECT count(*) FROM messages WHERE claimed_by IS NOT NULL AND queue = ?1";
    let consumers = "SELECT count(*) FROM consumers JOIN leases USING (holder)
                     WHERE queue = ?1 AND leases.expires_at > ?2";
    let at_this_time = (queue, turn.now);
    Ok(Some(QueueStats {
        messages: count(turn, waiting, at_this_time)? + count(turn, due, at_this_time)?,
        unacked: Some(count(turn, unacked, (queue,))?),
        postponed: Some(count(turn, postponed, at_this_time)?),
        consumers: Some(count(turn, consumers, at_this_time)?),
    }))
}

fn count(turn: &Turn<'_>, query: &str, of: impl Params) -> rusqlite::Result<u64> {
    let count: i64 = turn.connection.prepare_cached(query)?.query_row(of, |row| row.get(0))?;
    Ok(count.unsigned_abs())
}

/// Messages whose time has come, up to `limit` of them, wait again. They are first attempts then.
pub(super) fn release_due(turn: &Turn<'_>, queue: &str, limit: i64) -> rusqlite::Result<()> {
    turn.connection
        .prepare_cached(
            "UPDATE messages SET visible_at = NULL WHERE id IN
                 (SELECT id FROM messages WHERE queue = ?1 AND visible_at <= ?2 ORDER BY visible_at LIMIT ?3)",
        )?
        .execute(params![queue, turn.now, limit])
        .map(drop)
}

/// When the next postponed message of a queue is due.
pub(super) fn next_due(turn: &Turn<'_>, queue: &str) -> rusqlite::Result<Option<i64>> {
    turn.connection
        .prepare_cached("SELECT min(visible_at) FROM messages WHERE queue = ?1 AND visible_at IS NOT NULL")?
        .query_row([queue], |row| row.get(0))
}

/// The number of the last message in the file, so that whoever purges knows where to stop.
pub(super) fn last_message(turn: &mut Turn<'_>) -> rusqlite::Result<i64> {
    turn.connection.query_row("SELECT coalesce(max(id), 0) FROM messages", [], |row| row.get(0))
}

/// Delete some of what waits among the messages up to `last`, and answer how many those were: none if there are no
/// more. What has expired is not counted, and is left to be swept.
pub(super) fn purge(turn: &Turn<'_>, queue: &str, last: i64) -> rusqlite::Result<u64> {
    release_due(turn, queue, PURGED_AT_ONCE)?;
    let purged = turn
        .connection
        .prepare_cached(
            "DELETE FROM messages WHERE id IN
                 (SELECT id FROM messages
                  WHERE queue = ?1 AND claimed_by IS NULL AND visible_at IS NULL AND id <= ?2
                      AND (expires_at IS NULL OR expires_at > ?3)
                  LIMIT ?4)",
        )?
        .execute(params![queue, last, turn.now, PURGED_AT_ONCE])?;
    Ok(purged as u64)
}

#[cfg(test)]
mod tests {
    use super::{super::store::Store, *};

    #[tokio::test]
    async fn a_purge_holds_the_file_for_no_longer_than_some_messages_take() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_apart(&folder.path().join("rtask.db")).unwrap();
        let fill = "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?1)
                    INSERT INTO messages (queue, priority, headers, properties, body, visible_at)
                    SELECT 'q', 0, '{}', '{}', x'', ?2 FROM numbers";
        let purged = store
            .run(move |turn| {
                turn.connection.execute(fill, params![PURGED_AT_ONCE, None::<i64>])?;
                turn.connection.execute(fill, params![PURGED_AT_ONCE + 1, 1])?;
                let last = last_message(turn)?;
                turn.connection.execute(fill, params![1, None::<i64>])?;
                let mut purged = Vec::new();
                while purged.last() != Some(&0) {
                    purged.push(purge(turn, "q", last)?);
                }
                Ok(purged)
            })
            .await;
        let most = PURGED_AT_ONCE as u64;
        assert_eq!(purged.unwrap(), [most, most, 1, 0]);
    }
}
