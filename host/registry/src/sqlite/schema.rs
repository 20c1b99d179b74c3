//! What the file holds of ours, and whether it is ours.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
    time::Duration,
};

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use super::store::{Failure, explain, refused, url};
use crate::RegistryError;

/// Of the tables below. A file with a higher one was made by a newer rtask.
const VERSION: i64 = 1;
/// How long a transaction waits for another process's.
const BUSY_TIMEOUT: Duration = Duration::from_secs(4);
/// The file also holds the broker's tables; each room keeps its own version.
const ROOM: &str = "registry";

/// Times are milliseconds since 1970; `version` is a [`crate::Version`] as JSON.
const TABLES: &str = "
CREATE TABLE registry_components (digest TEXT PRIMARY KEY, bytes BLOB NOT NULL) STRICT;
CREATE TABLE registry_versions (
    tenant TEXT NOT NULL,
    module TEXT NOT NULL,
    number INTEGER NOT NULL,
    version TEXT NOT NULL,
    PRIMARY KEY (tenant, module, number)
) STRICT;
CREATE TABLE registry_modules (
    tenant TEXT NOT NULL,
    module TEXT NOT NULL,
    current INTEGER NOT NULL,
    PRIMARY KEY (tenant, module)
) STRICT, WITHOUT ROWID;
CREATE TABLE registry_owners (
    tenant TEXT NOT NULL,
    task TEXT NOT NULL,
    module TEXT NOT NULL,
    PRIMARY KEY (tenant, task)
) STRICT, WITHOUT ROWID;
CREATE TABLE registry_workers (
    name TEXT PRIMARY KEY,
    status TEXT NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE registry_revision (revision INTEGER NOT NULL) STRICT;
INSERT INTO registry_revision (revision) VALUES (0);
";

/// Open the file, made with its folder and the tables if they do not exist, for its owner alone. Blocks.
pub(super) fn open(path: &Path) -> Result<Connection, RegistryError> {
    create(path).and_then(|()| trust(path)).map_err(|error| refused(path, error.to_string()))?;
    let explain = |failure: Failure| explain(path, failure);
    let mut connection = Connection::open(path).map_err(|error| explain(error.into()))?;
    configure(&connection, path).map_err(explain)?;
    match prepare(&mut connection).map_err(|error| explain(error.into()))? {
        VERSION => Ok(connection),
        version => Err(RegistryError::Unreadable {
            what: url(path),
            reason: format!("the registry's tables are of version {version}, this rtask knows {VERSION}"),
        }),
    }
}

fn create(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    // SQLite gives the files beside it the same permissions. A file that exists is not touched: to close it would
    // end the locks that other connections of this process have on it (fcntl, F_SETLK).
    match fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Whoever may write the file decides what code is run.
fn trust(path: &Path) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    let user = rustix::process::geteuid();
    if !user.is_root() && metadata.uid() != user.as_raw() {
        let (owner, us) = (metadata.uid(), user.as_raw());
        return Err(io::Error::other(format!("it belongs to user id {owner}, not to this process's {us}")));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(io::Error::other("others than its owner may write it; `chmod go-w` it, if nobody has"));
    }
    Ok(())
}

fn configure(connection: &Connection, path: &Path) -> Result<(), Failure> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    let journal: String = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    if journal != "wal" {
        let reason = format!("its file system has no shared memory (journal mode `{journal}`); use a local disk");
        return Err(refused(path, reason).into());
    }
    connection.pragma_update(None, "synchronous", "full")?;
    Ok(())
}

/// Make the tables unless they exist; answers their version.
fn prepare(connection: &mut Connection) -> rusqlite::Result<i64> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // The broker has the same table.
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
