//! What the file holds, and whether it is ours.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OptionalExtension};

use crate::{BrokerError, Refusal};

/// Of the tables below. A file with a higher one was made by a newer rtask; one with a lower one is brought up to it.
const VERSION: i64 = STEPS.len() as i64;
/// How long a transaction waits for another process's.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The file also holds the registry's tables; each room keeps its own version.
const ROOM: &str = "broker";

/// What each version adds to the one before. A step that a released rtask has taken never changes.
///
/// Times are milliseconds since 1970. An id is never used twice, so that a stale claim can never settle another
/// message.
const STEPS: [&str; 2] = [
    "
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    priority INTEGER NOT NULL,
    headers TEXT NOT NULL,
    properties TEXT NOT NULL,
    body BLOB NOT NULL,
    expires_at INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0,
    claimed_by TEXT
) STRICT;
CREATE INDEX messages_waiting ON messages (queue, priority DESC, id) WHERE claimed_by IS NULL;
CREATE INDEX messages_claimed ON messages (claimed_by) WHERE claimed_by IS NOT NULL;
CREATE INDEX messages_expiring ON messages (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE leases (holder TEXT PRIMARY KEY, expires_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE results (
    task_id TEXT PRIMARY KEY,
    status TEXT NOT NULL,
    record TEXT NOT NULL,
    expires_at INTEGER
) STRICT;
CREATE INDEX results_expiring ON results (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE attempts (key TEXT PRIMARY KEY, count INTEGER NOT NULL, expires_at INTEGER NOT NULL) STRICT;
CREATE INDEX attempts_expiring ON attempts (expires_at);
",
    // Postponed messages are in no index that a claim looks into. The index of those that wait has all that a look
    // into a queue asks for, since in the table that lies behind the bodies. A message without a routing key came by
    // its queue's name; a queue without a holder stays.
    "
ALTER TABLE messages ADD COLUMN visible_at INTEGER;
ALTER TABLE messages ADD COLUMN exchange TEXT NOT NULL DEFAULT '';
ALTER TABLE messages ADD COLUMN routing_key TEXT;
DROP INDEX messages_waiting;
CREATE INDEX messages_waiting ON messages (queue, priority DESC, id, expires_at, claimed_by, visible_at)
    WHERE claimed_by IS NULL AND visible_at IS NULL;
CREATE INDEX messages_postponed ON messages (queue, visible_at) WHERE visible_at IS NOT NULL;
DROP INDEX messages_claimed;
CREATE INDEX messages_claimed ON messages (claimed_by, queue) WHERE claimed_by IS NOT NULL;

CREATE TABLE queues (name TEXT PRIMARY KEY, holder TEXT) STRICT, WITHOUT ROWID;
CREATE INDEX queues_held ON queues (holder) WHERE holder IS NOT NULL;
CREATE TABLE exchanges (name TEXT PRIMARY KEY, kind TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE bindings (
    exchange TEXT NOT NULL,
    routing_key TEXT NOT NULL,
    queue TEXT NOT NULL,
    arguments TEXT NOT NULL,
    PRIMARY KEY (exchange, routing_key, queue, arguments)
) STRICT, WITHOUT ROWID;
INSERT INTO queues (name) SELECT DISTINCT queue FROM messages;
INSERT INTO exchanges (name, kind) SELECT name, 'direct' FROM queues;
INSERT INTO bindings (exchange, routing_key, queue, arguments) SELECT name, name, name, '{}' FROM queues;
CREATE TABLE consumers (id INTEGER PRIMARY KEY, queue TEXT NOT NULL, holder TEXT NOT NULL) STRICT;
CREATE INDEX consumers_of_a_queue ON consumers (queue, holder);
CREATE INDEX consumers_of_a_holder ON consumers (holder);
CREATE TABLE broadcasts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    headers TEXT NOT NULL,
    properties TEXT NOT NULL,
    body BLOB NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX broadcasts_expiring ON broadcasts (expires_at);

CREATE TABLE revoked_tasks (id TEXT PRIMARY KEY, expires_at INTEGER NOT NULL) STRICT;
CREATE INDEX revoked_tasks_expiring ON revoked_tasks (expires_at);
CREATE TABLE revoked_stamps (
    header TEXT NOT NULL,
    value TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (header, value)
) STRICT;
CREATE INDEX revoked_stamps_expiring ON revoked_stamps (expires_at);
CREATE TABLE turns (key TEXT PRIMARY KEY, next_us INTEGER NOT NULL, expires_at INTEGER NOT NULL) STRICT;
CREATE INDEX turns_expiring ON turns (expires_at);
",
];

/// Open the file, made with its folder and the tables if they do not exist, for its owner alone.
pub(super) fn open(path: &Path) -> Result<Connection, BrokerError> {
    create(path).map_err(|error| refused(path, error.to_string()))?;
    trust(path).map_err(|reason| refused(path, reason))?;
    let explain = |error| explain(path, &error);
    let mut connection = Connection::open(path).map_err(explain)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(explain)?;
    connection.pragma_update(None, "journal_mode", "wal").map_err(explain)?;
    connection.pragma_update(None, "synchronous", "full").map_err(explain)?;
    match prepare(&mut connection).map_err(explain)? {
        VERSION => Ok(connection),
        version => Err(BrokerError::Damaged {
            what: path.display().to_string(),
            reason: format!("its tables are of version {version}, this rtask knows {VERSION}"),
        }),
    }
}

/// Whoever may write the file owns queues, results and modules.
fn trust(path: &Path) -> Result<(), String> {
    let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
    let user = rustix::process::geteuid();
    if !user.is_root() && metadata.uid() != user.as_raw() {
        return Err(format!("it belongs to user id {}, not to this process's {}", metadata.uid(), user.as_raw()));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err("others than its owner may write it; `chmod go-w` it, if nobody has".to_owned());
    }
    Ok(())
}

fn create(path: &Path) -> std::io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    // SQLite gives the files beside it the same permissions. A file that exists is not opened here: closing it again
    // would release every POSIX lock that another connection of this process holds on it (fcntl(2)).
    match fs::OpenOptions::new().create_new(true).append(true).mode(0o600).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        created => created.map(drop),
    }
}

/// Take the steps that the file lacks; answers its version.
fn prepare(connection: &mut Connection) -> rusqlite::Result<i64> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    transaction
        .execute_batch("CREATE TABLE IF NOT EXISTS rooms (room TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT")?;
    let found =
        transaction.query_row("SELECT version FROM rooms WHERE room = ?1", [ROOM], |row| row.get(0)).optional()?;
    let found = found.unwrap_or(0);
    if !(0..VERSION).contains(&found) {
        return Ok(found);
    }
    for step in &STEPS[found as usize..] {
        transaction.execute_batch(step)?;
    }
    transaction.execute("INSERT OR REPLACE INTO rooms (room, version) VALUES (?1, ?2)", (ROOM, VERSION))?;
    transaction.commit()?;
    Ok(VERSION)
}

/// What an error of SQLite means to us.
pub(super) fn explain(path: &Path, error: &rusqlite::Error) -> BrokerError {
    let (url, reason) = (format!("sqlite:{}", path.display()), error.to_string());
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => BrokerError::Damaged { what: url, reason },
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => refused(path, reason),
        // Our SQL does not fit the tables, so they are another program's.
        None if matches!(error, rusqlite::Error::SqlInputError { .. }) => BrokerError::Damaged { what: url, reason },
        _ => BrokerError::Failed { url, reason },
    }
}

fn refused(path: &Path, reason: String) -> BrokerError {
    BrokerError::Refused { url: format!("sqlite:{}", path.display()), refusal: Refusal::Permission, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_first_version_is_brought_up_with_all_that_it_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rtask.db");
        create(&path).unwrap();
        let old = Connection::open(&path).unwrap();
        old.execute_batch("CREATE TABLE rooms (room TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT").unwrap();
        old.execute_batch(STEPS[0]).unwrap();
        old.execute_batch(
            "INSERT INTO rooms VALUES ('broker', 1), ('registry', 7);
             INSERT INTO messages (queue, priority, headers, properties, body, attempts)
             VALUES ('q', 3, '{}', '{}', x'5b5d', 2);
             INSERT INTO results VALUES ('t', 'SUCCESS', '{}', NULL);",
        )
        .unwrap();
        drop(old);
        for _ in 0..2 {
            let connection = open(&path).unwrap();
            let one = |query: &str| connection.query_row(query, [], |row| row.get::<_, i64>(0)).unwrap();
            assert_eq!(one("SELECT version FROM rooms WHERE room = 'broker'"), 2);
            assert_eq!(one("SELECT version FROM rooms WHERE room = 'registry'"), 7);
            assert_eq!(one("SELECT attempts FROM messages WHERE queue = 'q' AND visible_at IS NULL"), 2);
            assert_eq!(one("SELECT count(*) FROM bindings JOIN exchanges ON exchange = name WHERE queue = 'q'"), 1);
            assert_eq!(one("SELECT count(*) FROM results"), 1);
        }
    }

    #[test]
    fn a_file_of_a_newer_version_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rtask.db");
        open(&path).unwrap().execute("UPDATE rooms SET version = version + 1", []).unwrap();
        let error = open(&path).expect_err("it was made by a newer rtask");
        assert!(matches!(error, BrokerError::Damaged { .. }), "{error}");
    }
}
