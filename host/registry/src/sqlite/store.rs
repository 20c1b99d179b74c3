//! A connection to the file, used aside from the runtime's threads.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use tokio::task::spawn_blocking;

use super::schema;
use crate::RegistryError;

/// One transaction at a time; SQLite has one writer anyway.
#[derive(Clone)]
pub(super) struct Store {
    connection: Arc<Mutex<Connection>>,
    path: PathBuf,
}

/// What can go wrong within a transaction.
pub(super) enum Failure {
    Sqlite(rusqlite::Error),
    Registry(RegistryError),
}

impl Store {
    pub async fn open(path: PathBuf) -> Result<Self, RegistryError> {
        blocking(move || {
            let connection = schema::open(&path)?;
            Ok(Self { connection: Arc::new(Mutex::new(connection)), path })
        })
        .await
    }

    /// Do `work` in a transaction that sees the file as it is now, without what others write meanwhile.
    pub async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, RegistryError> {
        self.run(TransactionBehavior::Deferred, work).await
    }

    /// Do `work` in a transaction that no other writes beside; an error undoes it.
    pub async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, RegistryError> {
        self.run(TransactionBehavior::Immediate, work).await
    }

    async fn run<T: Send + 'static>(
        &self,
        behavior: TransactionBehavior,
        work: impl FnOnce(&Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, RegistryError> {
        let store = self.clone();
        blocking(move || {
            // A panic within a transaction has rolled it back.
            let mut connection = store.connection.lock().unwrap_or_else(PoisonError::into_inner);
            transact(&mut connection, behavior, work).map_err(|failure| explain(&store.path, failure))
        })
        .await
    }
}

fn transact<T>(
    connection: &mut Connection,
    behavior: TransactionBehavior,
    work: impl FnOnce(&Connection) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let transaction = connection.transaction_with_behavior(behavior)?;
    let answer = work(&transaction)?;
    transaction.commit()?;
    Ok(answer)
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// What an error of SQLite means to us.
pub(super) fn explain(path: &Path, failure: Failure) -> RegistryError {
    let error = match failure {
        Failure::Registry(error) => return error,
        Failure::Sqlite(error) => error,
    };
    match error.sqlite_error_code() {
        Some(ErrorCode::CannotOpen | ErrorCode::NotADatabase | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => {
            refused(path, error.to_string())
        }
        Some(ErrorCode::DatabaseCorrupt) => RegistryError::Unreadable { what: url(path), reason: error.to_string() },
        Some(_) | None => RegistryError::Failed { url: url(path), reason: error.to_string() },
    }
}

pub(super) fn refused(path: &Path, reason: String) -> RegistryError {
    RegistryError::Refused { url: url(path), reason }
}

pub(super) fn url(path: &Path) -> String {
    format!("sqlite:{}", path.display())
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self::Registry(error)
    }
}
