//! How a process notices that something was deployed: it looks at a counter in the file, often.
//!
//! `PRAGMA data_version` would tell less for the same effort, since the file also carries the broker's messages.

use std::{
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use rusqlite::Connection;
use tokio::sync::watch;

use super::{
    schema,
    store::{blocking, explain, url},
};
use crate::RegistryError;

const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Watches until it is dropped.
pub(super) struct Watch {
    changes: watch::Receiver<u64>,
    /// The thread ends when this is dropped.
    _until: mpsc::Sender<()>,
}

impl Watch {
    pub async fn start(path: PathBuf) -> Result<Self, RegistryError> {
        blocking(move || Self::start_blocking(&path)).await
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// With a connection of its own, so that a long transaction of this process does not blind it.
    fn start_blocking(path: &Path) -> Result<Self, RegistryError> {
        let connection = schema::open(path)?;
        let seen = revision(&connection).map_err(|error| explain(path, error.into()))?;
        let (sender, changes) = watch::channel(0);
        let (until, ended) = mpsc::channel();
        // A thread, and not a task, since it blocks on the disk and serves every runtime of the process.
        std::thread::Builder::new()
            .name("rtask-registry".to_owned())
            .spawn(move || watch(&connection, &sender, &ended, seen))
            .map_err(|error| RegistryError::Failed { url: url(path), reason: error.to_string() })?;
        Ok(Self { changes, _until: until })
    }
}

fn watch(connection: &Connection, changes: &watch::Sender<u64>, ended: &mpsc::Receiver<()>, seen: i64) {
    let mut seen = Some(seen);
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(LOOK_EVERY) {
        match revision(connection) {
            Ok(revision) if seen == Some(revision) => {}
            Ok(revision) => {
                seen = Some(revision);
                changes.send_modify(|count| *count += 1);
            }
            // Whoever follows the changes looks again once this has passed, rather than miss one.
            Err(error) => {
                tracing::debug!(%error, "the registry's changes cannot be seen at the moment");
                seen = None;
            }
        }
    }
}

fn revision(connection: &Connection) -> rusqlite::Result<i64> {
    connection.prepare_cached("SELECT revision FROM registry_revision")?.query_row([], |row| row.get(0))
}
