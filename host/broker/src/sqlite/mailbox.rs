//! Messages that are settled as they are handed out: remote control's broadcasts, and replies.
//!
//! A mailbox is no more than the number of the last broadcast that its listener has seen, so a listener that dies
//! leaves nothing behind. A reply queue goes with its consumer, or when its process has not been heard of for long.

use std::{sync::Arc, time::Duration};

use rtask_protocol::Message;
use rusqlite::{Row as Found, params};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    holder::Holder,
    publish::Row,
    receive::decode,
    store::{LOOK_EVERY, Store, Turn},
};
use crate::{BrokerError, Consumer, Delivery, backoff::Backoff};

/// How long a broadcast can be heard (Celery's mailboxes: `x-message-ttl` of 300 s; golden/04_remote_control).
const BROADCAST_LIFETIME: Duration = Duration::from_secs(300);
/// No more broadcasts are kept; the oldest go first.
const MAX_BROADCASTS: i64 = 10_000;
/// So many are read in one go, and so many may wait for their reader.
const READ: usize = 64;
/// The exchange from which Celery's mailboxes get their messages (`kombu/pidbox.py`).
const EXCHANGE: &str = "celery.pidbox";

/// Keep a message for all who listen now.
pub(super) fn broadcast(turn: &mut Turn<'_>, row: &Row) -> rusqlite::Result<()> {
    let longest = BROADCAST_LIFETIME.as_millis() as i64;
    let expires_at = turn.now + row.lifetime.map_or(longest, |lifetime| lifetime.min(longest));
    turn.connection
        .prepare_cached("INSERT INTO broadcasts (headers, properties, body, expires_at) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![row.headers, row.properties, &row.body[..], expires_at])?;
    turn.connection
        .prepare_cached("DELETE FROM broadcasts WHERE id <= ?1")?
        .execute([turn.connection.last_insert_rowid() - MAX_BROADCASTS])?;
    turn.wake_others();
    Ok(())
}

/// Hear what is broadcast from now on, as `node`.
pub(super) async fn listen(store: Arc<Store>, node: &str, closed: &CancellationToken) -> Result<Consumer, BrokerError> {
    let latest = "SELECT coalesce(max(id), 0) FROM broadcasts";
    let after = store.run(move |turn| turn.connection.query_row(latest, [], |row| row.get(0))).await?;
    let queue = format!("{node}.celery.pidbox").into();
    Ok(Reader { store, queue, source: Source::Broadcasts { after } }.start(closed))
}

/// Make a reply queue and read it.
pub(super) async fn replies(holder: Arc<Holder>, queue: &str) -> Result<Consumer, BrokerError> {
    let (store, closed, queue) = (holder.store.clone(), holder.closed.clone(), Arc::<str>::from(queue));
    let (name, id) = (queue.clone(), holder.id.clone());
    store.run(move |turn| declare_replies(turn, &name, &id)).await?;
    Ok(Reader { store, queue, source: Source::Replies { holder } }.start(&closed))
}

struct Reader {
    store: Arc<Store>,
    queue: Arc<str>,
    source: Source,
}

enum Source {
    /// Those that follow the broadcast of this number.
    Broadcasts { after: i64 },
    /// A queue of this holder's, whose lease says that somebody waits.
    Replies { holder: Arc<Holder> },
}

impl Reader {
    fn start(self, closed: &CancellationToken) -> Consumer {
        let (sender, deliveries) = mpsc::channel(READ);
        let cancelled = closed.child_token();
        let receiving = tokio::spawn(self.run(sender, cancelled.clone()));
        Consumer::new(deliveries, cancelled.drop_guard(), receiving)
    }

    async fn run(mut self, deliveries: mpsc::Sender<Delivery>, cancelled: CancellationToken) {
        cancelled.run_until_cancelled(self.feed(deliveries)).await;
        if let Source::Replies { .. } = self.source {
            let queue = self.queue;
            let gone = self.store.run(move |turn| delete_replies(turn, &queue)).await;
            if let Err(error) = gone {
                tracing::warn!(%error, "a reply queue stays until its lease is forgotten");
            }
        }
    }

    /// Until nobody takes them any more, or the file cannot be read for good.
    async fn feed(&mut self, deliveries: mpsc::Sender<Delivery>) {
        let mut changes = self.store.changes();
        let mut backoff = Backoff::default();
        loop {
            // Before looking, so that what comes while we look is noticed after it.
            changes.mark_unchanged();
            match self.read().await {
                Ok(messages) if messages.is_empty() => {
                    // Time-out or change: look again.
                    let _ = tokio::time::timeout(LOOK_EVERY, changes.changed()).await;
                }
                Ok(messages) => {
                    backoff = Backoff::default();
                    for message in messages {
                        if deliveries.send(self.delivery(message)).await.is_err() {
                            return;
                        }
                    }
                }
                Err(error) if error.is_permanent() => {
                    return tracing::error!(%error, queue = &*self.queue, "the consumer is given up");
                }
                Err(error) => {
                    tracing::warn!(%error, queue = &*self.queue, "reading again");
                    backoff.wait().await;
                }
            }
        }
    }

    fn delivery(&self, message: Message) -> Delivery {
        let delivery = Delivery::settled(message, self.queue.clone());
        match self.source {
            Source::Broadcasts { .. } => delivery.routed(EXCHANGE, ""),
            Source::Replies { .. } => delivery,
        }
    }

    async fn read(&mut self) -> Result<Vec<Message>, BrokerError> {
        let queue = self.queue.clone();
        match &mut self.source {
            Source::Broadcasts { after } => {
                let seen = *after;
                let (messages, latest) = self.store.run(move |turn| read_broadcasts(turn, seen, &queue)).await?;
                *after = latest;
                Ok(messages)
            }
            Source::Replies { holder } => {
                let id = holder.id.clone();
                self.store.run(move |turn| take_replies(turn, &queue, &id)).await
            }
        }
    }
}

/// The next broadcasts after `seen`, and the number of the last of them.
fn read_broadcasts(turn: &Turn<'_>, seen: i64, queue: &str) -> rusqlite::Result<(Vec<Message>, i64)> {
    let mut statement = turn.connection.prepare_cached(
        "SELECT headers, properties, body, id FROM broadcasts WHERE id > ?1 AND expires_at > ?2 ORDER BY id LIMIT ?3",
    )?;
    let mut rows = statement.query(params![seen, turn.now, READ as i64])?;
    let (mut messages, mut latest) = (Vec::new(), seen);
    while let Some(row) = rows.next()? {
        latest = row.get(3)?;
        messages.push(message(row, queue)?);
    }
    Ok((messages, latest))
}

/// The next replies, which are gone from the queue with that.
fn take_replies(turn: &Turn<'_>, queue: &str, holder: &str) -> rusqlite::Result<Vec<Message>> {
    // A process that slept for so long that it was forgotten goes on where it was.
    declare_replies(turn, queue, holder)?;
    let mut statement = turn.connection.prepare_cached(
        "DELETE FROM messages WHERE id IN
             (SELECT id FROM messages
              WHERE queue = ?1 AND claimed_by IS NULL AND visible_at IS NULL AND (expires_at IS NULL OR expires_at > ?2)
              ORDER BY priority DESC, id LIMIT ?3)
         RETURNING headers, properties, body, id",
    )?;
    let mut rows = statement.query(params![queue, turn.now, READ as i64])?;
    let mut messages = Vec::new();
    while let Some(row) = rows.next()? {
        messages.push((row.get::<_, i64>(3)?, message(row, queue)?));
    }
    // RETURNING promises no order; a task's states must come in theirs.
    messages.sort_by_key(|(id, _)| *id);
    Ok(messages.into_iter().map(|(_, message)| message).collect())
}

fn declare_replies(turn: &Turn<'_>, queue: &str, holder: &str) -> rusqlite::Result<()> {
    turn.connection
        .prepare_cached("INSERT OR IGNORE INTO queues (name, holder) VALUES (?1, ?2)")?
        .execute([queue, holder])
        .map(drop)
}

fn delete_replies(turn: &Turn<'_>, queue: &str) -> rusqlite::Result<()> {
    let replies = "DELETE FROM messages WHERE queue = ?1 AND claimed_by IS NULL AND visible_at IS NULL";
    turn.connection.execute(replies, [queue])?;
    turn.connection.execute("DELETE FROM queues WHERE name = ?1", [queue]).map(drop)
}

fn message(row: &Found<'_>, queue: &str) -> rusqlite::Result<Message> {
    Ok(Message {
        headers: decode(row.get_ref(0)?.as_str()?, queue),
        properties: decode(row.get_ref(1)?.as_str()?, queue),
        body: row.get::<_, Vec<u8>>(2)?.into(),
    })
}
