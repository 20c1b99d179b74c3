//! The thread that owns a file's connection, and its group commit.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rusqlite::{Connection, params};
use tokio::sync::{mpsc, oneshot, watch};

use super::{bell::Bell, schema};
use crate::BrokerError;

/// So many operations may wait for the thread; further callers wait for a place.
const WAITING_OPERATIONS: usize = 1_024;
/// So many are committed together at most.
const BATCH: usize = 256;
/// Another process is heard of at once through the bell, and after this long if that failed.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often expired rows are deleted, and how many of a table at a time.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
const SWEEP_ROWS: i64 = 10_000;

/// The stores of this process, so that broker and backend of one file share a thread.
static STORES: LazyLock<Mutex<HashMap<PathBuf, Weak<Store>>>> = LazyLock::new(Mutex::default);

/// A handle on a file's thread, which ends after the last handle is gone.
pub(super) struct Store {
    operations: mpsc::Sender<Box<dyn Operation>>,
    bell: Arc<Bell>,
    path: PathBuf,
}

/// What an operation may use while its transaction is open.
pub(super) struct Turn<'a> {
    pub connection: &'a Connection,
    /// Milliseconds since 1970.
    pub now: i64,
    wake: bool,
}

impl Turn<'_> {
    /// Others wait for what is being done; wake them after the commit.
    pub fn wake_others(&mut self) {
        self.wake = true;
    }
}

impl Store {
    /// This process's store of a file. Blocks on the disk.
    pub fn open(path: &Path) -> Result<Arc<Self>, BrokerError> {
        let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
        stores.retain(|_, store| store.strong_count() > 0);
        let existing = |path: &Path| stores.get(&path.canonicalize().ok()?)?.upgrade();
        if let Some(store) = existing(path) {
            return Ok(store);
        }
        let store = Self::open_apart(path)?;
        // Exists by now.
        if let Ok(path) = path.canonicalize() {
            stores.insert(path, Arc::downgrade(&store));
        }
        Ok(store)
    }

    /// A store that nobody else in this process shares, as if it were another process's.
    pub fn open_apart(path: &Path) -> Result<Arc<Self>, BrokerError> {
        let connection = schema::open(path)?;
        let failed = |error: std::io::Error| BrokerError::Failed {
            url: format!("sqlite:{}", path.display()),
            reason: error.to_string(),
        };
        let bell = Arc::new(Bell::hang(path).map_err(failed)?);
        let (operations, waiting) = mpsc::channel(WAITING_OPERATIONS);
        let worker = Worker { connection, bell: bell.clone(), path: path.to_owned(), swept: None };
        std::thread::Builder::new()
            .name("rtask-store".to_owned())
            .spawn(move || worker.work(waiting))
            .map_err(failed)?;
        Ok(Arc::new(Self { operations, bell, path: path.to_owned() }))
    }

    /// Do `work` in a transaction that it may share with others' work; answers when that is on disk. If an
    /// operation fails, so do all of its transaction: the cause is the disk or another process, and theirs too.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Turn<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, BrokerError> {
        let (answer, answered) = oneshot::channel();
        let task = Task { work: Some(work), value: None, answer };
        self.operations.send(Box::new(task)).await.map_err(|_| self.closed())?;
        answered.await.map_err(|_| self.closed())?
    }

    /// As [`Self::run`], but without waiting, and without a word if there is no place: for what is undone by
    /// itself otherwise.
    pub fn run_unheard(&self, work: impl FnOnce(&mut Turn<'_>) -> rusqlite::Result<()> + Send + 'static) {
        let (answer, _) = oneshot::channel();
        let _ = self.operations.try_send(Box::new(Task { work: Some(work), value: None, answer }));
    }

    /// Changes whenever somebody, here or in another process, has committed what others wait for.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.bell.rung()
    }

    pub fn url(&self) -> String {
        format!("sqlite:{}", self.path.display())
    }

    fn closed(&self) -> BrokerError {
        BrokerError::Closed { url: self.url() }
    }
}

/// One caller's work and where its answer goes.
trait Operation: Send {
    fn run(&mut self, turn: &mut Turn<'_>) -> rusqlite::Result<()>;
    fn answer(self: Box<Self>, committed: Result<(), BrokerError>);
}

struct Task<T, W> {
    work: Option<W>,
    value: Option<T>,
    answer: oneshot::Sender<Result<T, BrokerError>>,
}

impl<T, W> Operation for Task<T, W>
where
    T: Send,
    W: FnOnce(&mut Turn<'_>) -> rusqlite::Result<T> + Send,
{
    fn run(&mut self, turn: &mut Turn<'_>) -> rusqlite::Result<()> {
        if let Some(work) = self.work.take() {
            self.value = Some(work(turn)?);
        }
        Ok(())
    }

    fn answer(self: Box<Self>, committed: Result<(), BrokerError>) {
        let Task { value, answer, .. } = *self;
        let value = committed.map(|()| value.expect("a committed operation has run"));
        // A caller that has gone away drops the value, and with it what it claimed.
        let _ = answer.send(value);
    }
}

struct Worker {
    connection: Connection,
    bell: Arc<Bell>,
    path: PathBuf,
    swept: Option<Instant>,
}

impl Worker {
    fn work(mut self, mut waiting: mpsc::Receiver<Box<dyn Operation>>) {
        let mut batch = Vec::with_capacity(BATCH);
        while waiting.blocking_recv_many(&mut batch, BATCH) > 0 {
            let committed = self.commit(&mut batch).map_err(|error| schema::explain(&self.path, &error));
            let wake = matches!(committed, Ok(true));
            let committed = committed.map(drop);
            for operation in batch.drain(..) {
                operation.answer(committed.clone());
            }
            if wake {
                self.bell.ring();
            }
        }
    }

    /// Answers whether others are to be woken.
    fn commit(&mut self, batch: &mut [Box<dyn Operation>]) -> rusqlite::Result<bool> {
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let now = Timestamp::now().as_millisecond();
        if self.swept.is_none_or(|swept| swept.elapsed() >= SWEEP_EVERY) {
            sweep(&transaction, now)?;
            self.swept = Some(Instant::now());
        }
        let mut turn = Turn { connection: &transaction, now, wake: false };
        for operation in batch {
            operation.run(&mut turn)?;
        }
        let wake = turn.wake;
        transaction.commit()?;
        Ok(wake)
    }
}

/// Delete what has expired. Until then readers pass over it.
fn sweep(connection: &Connection, now: i64) -> rusqlite::Result<()> {
    for (table, condition) in [
        ("results", "TRUE"),
        ("attempts", "TRUE"),
        ("messages", "claimed_by IS NULL"),
        ("broadcasts", "TRUE"),
        ("revoked_tasks", "TRUE"),
        ("revoked_stamps", "TRUE"),
        ("turns", "TRUE"),
    ] {
        let swept = format!(
            "DELETE FROM {table} WHERE rowid IN
                 (SELECT rowid FROM {table} WHERE expires_at <= ?1 AND {condition} LIMIT ?2)"
        );
        connection.prepare_cached(&swept)?.execute(params![now, SWEEP_ROWS])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, future::join_all};

    use super::*;

    fn store() -> (tempfile::TempDir, Arc<Store>) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_apart(&folder.path().join("rtask.db")).unwrap();
        (folder, store)
    }

    #[tokio::test]
    async fn what_piles_up_is_committed_together() {
        let (_folder, store) = store();
        let changes = store.changes();
        let before = *changes.borrow();
        let (release, released) = std::sync::mpsc::channel::<()>();
        // Holds the thread while the others line up behind it.
        let first = store.run(move |_| {
            released.recv().unwrap();
            Ok(())
        });
        let rest = (0..100).map(|_| {
            store.run(|turn| {
                turn.wake_others();
                Ok(())
            })
        });
        let mut all: Vec<_> = std::iter::once(first.boxed()).chain(rest.map(FutureExt::boxed)).collect();
        for operation in &mut all {
            assert!(operation.now_or_never().is_none());
        }
        release.send(()).unwrap();
        join_all(all).await.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
        // Once here and once through the watch on the file, for at most two transactions.
        let rung = changes.borrow().wrapping_sub(before);
        assert!((1..=4).contains(&rung), "{rung}");
    }

    #[tokio::test]
    async fn a_failed_operation_leaves_nothing_and_the_next_one_works() {
        let (_folder, store) = store();
        let failed = store
            .run(|turn| {
                turn.connection.execute("INSERT INTO attempts VALUES ('k', 1, 1000000000000000)", [])?;
                turn.connection.execute("INSERT INTO no_such_table VALUES (1)", [])
            })
            .await;
        assert!(failed.is_err());
        let count: i64 = store
            .run(|turn| turn.connection.query_row("SELECT count(*) FROM attempts", [], |row| row.get(0)))
            .await
            .unwrap();
        assert_eq!(count, 0);
    }

    #[tokio::test]
    async fn what_has_expired_is_swept() {
        let (_folder, store) = store();
        let connection = Connection::open(&store.path).unwrap();
        connection
            .execute("INSERT INTO results VALUES ('old', 'SUCCESS', '{}', 1), ('new', 'SUCCESS', '{}', NULL)", [])
            .unwrap();
        sweep(&connection, 2).unwrap();
        let left: String = connection.query_row("SELECT task_id FROM results", [], |row| row.get(0)).unwrap();
        assert_eq!(left, "new");
    }

    #[test]
    fn one_file_has_one_store_in_a_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rtask.db");
        let (one, two) = (Store::open(&path).unwrap(), Store::open(&folder.path().join("./rtask.db")).unwrap());
        assert!(Arc::ptr_eq(&one, &two));
    }
}
