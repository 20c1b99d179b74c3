//! What a worker is told.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rtask_broker::{Queue, Routes, SharedBackend, SharedBroker, SharedLedger};
use rtask_protocol::{rate::Rate, security::Signer};
use rtask_registry::{SharedRegistry, manifest::MaxRetries};
use rtask_sandbox::{Limits, Sandbox};
use tokio_util::sync::CancellationToken;

/// A worker's settings, checked and complete.
#[derive(Clone, Debug)]
pub struct Options {
    /// Node name, such as `celery@host`.
    pub name: String,
    /// Whose modules are run.
    pub tenant: String,
    pub queues: Vec<Queue>,
    /// Tasks at the same time; at least 1.
    pub concurrency: usize,
    /// Messages held for each of these, of each queue (`worker_prefetch_multiplier`); 0 for any number.
    pub prefetch_multiplier: u16,
    /// Hold no more messages than tasks that can run (`worker_disable_prefetch`).
    pub disable_prefetch: bool,
    /// Attempts at one message before it is a dead letter; at least 1.
    pub delivery_limit: u32,
    /// An ETA further ahead than this is not waited for here: its message goes back to the broker until then.
    pub eta_horizon: Duration,
    /// For tasks and messages that do not say themselves.
    pub task: TaskDefaults,
    /// What a run may use where neither the task nor the message says otherwise.
    pub limits: Limits,
    /// The longest time limit that a task or a message may ask for.
    pub max_time: Duration,
    /// The most memory that a task may ask for, in bytes.
    pub max_memory: u64,
    /// What messages may be made of (`accept_content`, and bytes of a body).
    pub accept: rtask_protocol::Accept,
    /// Who signs what the worker sends: follow-ups, tasks of tasks, changed retries and answers to remote control. Without
    /// it, nothing is signed but what came so and goes on unchanged.
    pub signer: Option<Arc<Signer>>,
    /// Rate limits are not applied (`worker_disable_rate_limits`).
    pub disable_rate_limits: bool,
    /// By task name: rates that all workers keep together, beside each one's own.
    pub global_rate_limits: BTreeMap<String, Rate>,
    /// Where tasks that a task sends go to.
    pub routes: Routes,
    /// Results tell of the task's name, arguments, worker and more (`result_extended`).
    pub result_extended: bool,
}

/// Celery's `task_*` settings: what a task's options fall back to.
#[derive(Clone, Debug)]
pub struct TaskDefaults {
    pub acks_late: bool,
    /// False rejects the message of a task that failed.
    pub acks_on_failure: bool,
    /// False puts back the message of a task that ran into its time limit.
    pub acks_on_timeout: bool,
    /// A task whose runner died is run again, up to the delivery limit.
    pub reject_on_worker_lost: bool,
    pub ignore_result: bool,
    pub store_errors_even_if_ignored: bool,
    pub track_started: bool,
    pub rate_limit: Option<Rate>,
    pub max_retries: MaxRetries,
    pub retry_delay: Duration,
}

impl Options {
    /// Names this process among workers that were given the same name.
    pub(crate) fn instance(&self) -> String {
        format!("{}/{}", self.name, std::process::id())
    }

    /// Deliveries of each queue that may be unsettled at once; 0 for any number.
    pub(crate) fn prefetch(&self) -> u16 {
        let multiplier = match self.disable_prefetch {
            true => 1,
            false => usize::from(self.prefetch_multiplier),
        };
        u16::try_from(self.concurrency.saturating_mul(multiplier)).unwrap_or(u16::MAX)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "celery@localhost".to_owned(),
            tenant: rtask_registry::DEFAULT_TENANT.to_owned(),
            queues: vec![Queue::named(rtask_protocol::names::DEFAULT_QUEUE)],
            concurrency: std::thread::available_parallelism().map_or(1, usize::from),
            prefetch_multiplier: 4,
            disable_prefetch: false,
            delivery_limit: 5,
            eta_horizon: Duration::from_secs(1),
            task: TaskDefaults::default(),
            limits: Limits::default(),
            max_time: Duration::from_secs(3600),
            max_memory: 1 << 30,
            accept: rtask_protocol::Accept::default(),
            signer: None,
            disable_rate_limits: false,
            global_rate_limits: BTreeMap::new(),
            routes: Routes::default(),
            result_extended: false,
        }
    }
}

impl Default for TaskDefaults {
    /// Celery's (`celery/app/defaults.py` and `celery/app/task.py`), but for `acks_late` and `reject_on_worker_lost`.
    fn default() -> Self {
        Self {
            acks_late: true,
            acks_on_failure: true,
            acks_on_timeout: true,
            reject_on_worker_lost: true,
            ignore_result: false,
            store_errors_even_if_ignored: false,
            track_started: false,
            rate_limit: None,
            max_retries: MaxRetries::Times(3),
            retry_delay: Duration::from_secs(180),
        }
    }
}

/// What a worker works with.
#[derive(Clone)]
pub struct Ports {
    pub broker: SharedBroker,
    pub backend: SharedBackend,
    pub ledger: SharedLedger,
    pub registry: SharedRegistry,
    pub sandbox: Sandbox,
}

/// How a worker is told to stop.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Take no more tasks, finish those that run.
    pub warm: CancellationToken,
    /// Stop those that run too; what was not acknowledged goes back to its queue.
    pub cold: CancellationToken,
}

/// How long a message waits for its module to become available here before it goes back for others to take.
pub(crate) const UNAVAILABLE_WAIT: Duration = Duration::from_secs(30);
/// How long a state that a task sets itself may take to be stored.
pub(crate) const STATE_STORE_TIME: Duration = Duration::from_secs(2);
/// How long a runner may be late with an exit before it is taken for stuck and killed.
pub(crate) const RUNNER_GRACE: Duration = Duration::from_secs(10);
/// How many revocations a worker that starts learns of (Celery's `CELERY_WORKER_REVOKES_MAX`).
pub(crate) const MAX_REVOKED: usize = 50_000;
/// Longer limits than a year are taken for a year; beyond lies the end of the clock.
pub const LONGEST_RUN: Duration = Duration::from_secs(31_536_000);
