//! What the file holds, and whether it is ours.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OptionalExtension};

use crate::{BrokerError, Refusal};

/// Of the tables below. A file with a higher one was made by a newer rtask.
const VERSION: i64 = 1;
/// How long a transaction waits for another process's.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The file also holds the registry's tables; each room keeps its own version.
const ROOM: &str = "broker";

/// Times are milliseconds since 1970. An id is never used twice, so that a stale claim can never settle another
/// message.
const TABLES: &str = "
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
";

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

/// Make the tables unless they exist; answers their version.
fn prepare(connection: &mut Connection) -> rusqlite::Result<i64> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    transaction
        .execute_batch("CREATE TABLE IF NOT EXISTS rooms (room TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT")?;
    let found =
        transaction.query_row("SELECT version FROM rooms WHERE room = ?1", [ROOM], |row| row.get(0)).optional()?;
    if found.is_none() {
        transaction.execute_batch(TABLES)?;
        transaction.execute("INSERT INTO rooms (room, version) VALUES (?1, ?2)", (ROOM, VERSION))?;
    }
    transaction.commit()?;
    Ok(found.unwrap_or(VERSION))
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
