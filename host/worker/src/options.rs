//! What a worker is told.

use std::time::Duration;

use rtask_broker::{SharedBackend, SharedBroker};
use rtask_registry::SharedRegistry;
use rtask_sandbox::{Limits, Sandbox};

/// A worker's settings, checked and complete.
#[derive(Clone, Debug)]
pub struct Options {
    /// Node name, such as `celery@host`.
    pub name: String,
    /// Whose modules are run.
    pub tenant: String,
    pub queues: Vec<String>,
    /// Tasks at the same time; at least 1.
    pub concurrency: usize,
    /// Messages held for each of these, of each queue (`worker_prefetch_multiplier`); at least 1.
    pub prefetch_multiplier: u16,
    /// Attempts at one message before it is a dead letter; at least 1.
    pub delivery_limit: u32,
    /// `task_acks_late`, for tasks that do not say themselves.
    pub acks_late: bool,
    /// `task_track_started`, likewise.
    pub track_started: bool,
    /// What a run may use where neither the task nor the message says otherwise.
    pub limits: Limits,
    /// The longest time limit that a task or a message may ask for.
    pub max_time: Duration,
    /// The most memory that a task may ask for, in bytes.
    pub max_memory: u64,
    /// Bytes of a message's body.
    pub max_body: usize,
}

impl Options {
    /// Names this process among workers that were given the same name.
    pub(crate) fn instance(&self) -> String {
        format!("{}/{}", self.name, std::process::id())
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "celery@localhost".to_owned(),
            tenant: rtask_registry::DEFAULT_TENANT.to_owned(),
            queues: vec![rtask_protocol::names::DEFAULT_QUEUE.to_owned()],
            concurrency: std::thread::available_parallelism().map_or(1, usize::from),
            prefetch_multiplier: 4,
            delivery_limit: 5,
            acks_late: true,
            track_started: false,
            limits: Limits::default(),
            max_time: Duration::from_secs(3600),
            max_memory: 1 << 30,
            max_body: 16 << 20,
        }
    }
}

/// What a worker works with.
#[derive(Clone)]
pub struct Ports {
    pub broker: SharedBroker,
    pub backend: SharedBackend,
    pub registry: SharedRegistry,
    pub sandbox: Sandbox,
}

/// How long a message waits for its module to become available here before it goes back for others to take.
pub(crate) const UNAVAILABLE_WAIT: Duration = Duration::from_secs(30);
/// How long a state that a task sets itself may take to be stored.
pub(crate) const STATE_STORE_TIME: Duration = Duration::from_secs(2);
/// How long a runner may be late with an exit before it is taken for stuck and killed.
pub(crate) const RUNNER_GRACE: Duration = Duration::from_secs(10);
/// Longer limits than a year are taken for a year; beyond lies the end of the clock.
pub const LONGEST_RUN: Duration = Duration::from_secs(31_536_000);
