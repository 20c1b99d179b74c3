//! Everything that can be set, in one typed value: defaults < `rtask.toml` < `RTASK_*` < flags.
//!
//! The names are Celery's wherever the meaning is. [`sources`] reads file and environment, the commands apply their
//! flags to what it returns, and [`units`] says how sizes and times are written in all three.

mod sources;
mod units;

use std::{
    num::{NonZeroU16, NonZeroU32, NonZeroUsize},
    path::PathBuf,
};

use rtask_broker::Retention;
use rtask_protocol::names::DEFAULT_QUEUE;
use rtask_sandbox::CompileLimits;
use rtask_worker::LONGEST_RUN;
use serde::{Deserialize, Serialize};

pub use sources::{Environment, SettingsError};
pub use units::{Names, Seconds, Size};
use units::{bounded, optional, value};

/// Broker, result backend and registry of those who name none.
const EMBEDDED: &str = "sqlite:.rtask/rtask.db";

/// Of one rtask process. A key of `rtask.toml` is a field's name; its environment variable is `RTASK_` and the name
/// in capitals, so that `limits.memory` is `RTASK_LIMITS_MEMORY`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    pub broker_url: Option<String>,
    pub result_backend: Option<String>,
    pub registry: Option<String>,
    /// For calls that name no queue, and for workers that name none.
    pub task_default_queue: String,
    /// What a worker consumes; the default queue if it is empty.
    pub task_queues: Names,
    /// How long results are kept; 0 for ever.
    pub result_expires: Seconds,
    #[serde(deserialize_with = "value")]
    pub task_acks_late: bool,
    #[serde(deserialize_with = "value")]
    pub task_track_started: bool,
    /// The hard limit of tasks and messages that set none; 0 for none.
    pub task_time_limit: Seconds,
    /// Deliveries of one message before it becomes a dead letter.
    #[serde(deserialize_with = "value")]
    pub delivery_limit: NonZeroU32,
    /// Tasks at the same time; without it, one a processor.
    #[serde(deserialize_with = "optional")]
    pub worker_concurrency: Option<NonZeroUsize>,
    /// Messages that a worker holds for each task that it can run at the same time.
    #[serde(deserialize_with = "value")]
    pub worker_prefetch_multiplier: NonZeroU16,
    /// Who a process that was started as root becomes; without it, `nobody`.
    pub worker_user: Option<String>,
    /// Where a worker keeps machine code between starts; without it, [`Settings::DEFAULT_CACHE`] if it can.
    pub worker_cache: Option<PathBuf>,
    pub limits: Limits,
}

/// What one task, or one module, may use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Of a task that asks for no other.
    pub memory: Size,
    /// The longest time limit that a task or a message may ask for; 0 for any.
    pub max_time: Seconds,
    /// The most memory that a task may ask for.
    pub max_memory: Size,
    /// A result's JSON.
    #[serde(deserialize_with = "bounded")]
    pub result: Size,
    /// Log lines and standard output of one run.
    pub log: Size,
    /// The body of a message: arguments and what is to follow.
    #[serde(deserialize_with = "bounded")]
    pub arguments: Size,
    /// A component that is deployed or compiled.
    #[serde(deserialize_with = "bounded")]
    pub component: Size,
    /// Whole seconds that compiling one may take.
    #[serde(deserialize_with = "value")]
    pub compile_time: NonZeroU32,
}

/// The rooms below know what is good for them.
impl Default for Settings {
    fn default() -> Self {
        let worker = rtask_worker::Options::default();
        Self {
            broker_url: None,
            result_backend: None,
            registry: None,
            task_default_queue: DEFAULT_QUEUE.to_owned(),
            task_queues: Names::default(),
            result_expires: Retention::default().expires.unwrap_or_default().into(),
            task_acks_late: worker.acks_late,
            task_track_started: worker.track_started,
            task_time_limit: worker.limits.time.into(),
            delivery_limit: NonZeroU32::new(worker.delivery_limit).unwrap_or(NonZeroU32::MIN),
            worker_concurrency: None,
            worker_prefetch_multiplier: NonZeroU16::new(worker.prefetch_multiplier).unwrap_or(NonZeroU16::MIN),
            worker_user: None,
            worker_cache: None,
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let (worker, compile) = (rtask_worker::Options::default(), CompileLimits::default());
        let compile_seconds = u32::try_from(compile.time.as_secs()).unwrap_or(u32::MAX);
        Self {
            memory: Size(worker.limits.memory),
            max_time: worker.max_time.into(),
            max_memory: Size(worker.max_memory),
            result: Size(worker.limits.result),
            log: Size(worker.limits.log),
            arguments: Size(worker.max_body as u64),
            component: Size(compile.component),
            compile_time: NonZeroU32::new(compile_seconds).unwrap_or(NonZeroU32::MIN),
        }
    }
}

impl Settings {
    /// Beside the embedded store.
    pub const DEFAULT_CACHE: &str = ".rtask/cache";

    pub fn broker(&self) -> &str {
        self.broker_url.as_deref().unwrap_or(EMBEDDED)
    }

    /// # Errors
    /// When none is named, and the broker is a server that keeps no results.
    pub fn backend(&self) -> Result<&str, SettingsError> {
        match (&self.result_backend, self.broker()) {
            (Some(backend), _) => Ok(backend),
            (None, broker) if broker.starts_with("sqlite:") => Ok(broker),
            (None, _) => Err(SettingsError::NoResultBackend),
        }
    }

    /// # Errors
    /// As [`Self::backend`], which it follows when it is not named itself.
    pub fn registry(&self) -> Result<&str, SettingsError> {
        self.registry.as_deref().map_or_else(|| self.backend(), Ok)
    }

    pub fn retention(&self) -> Retention {
        Retention { expires: self.result_expires.limit() }
    }

    pub fn queues(&self) -> Vec<String> {
        match &self.task_queues.0 {
            named if named.is_empty() => vec![self.task_default_queue.clone()],
            named => named.clone(),
        }
    }

    /// Of a run of a task that sets none itself.
    pub fn run_limits(&self) -> rtask_sandbox::Limits {
        rtask_sandbox::Limits {
            time: self.task_time_limit.limit().unwrap_or(LONGEST_RUN),
            memory: self.limits.memory.0,
            result: self.limits.result.0,
            log: self.limits.log.0,
            ..rtask_sandbox::Limits::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(broker: Option<&str>, backend: Option<&str>, registry: Option<&str>) -> Settings {
        let own = |url: Option<&str>| url.map(str::to_owned);
        Settings {
            broker_url: own(broker),
            result_backend: own(backend),
            registry: own(registry),
            ..Settings::default()
        }
    }

    #[test]
    fn what_is_not_named_follows_what_is() {
        let (amqp, redis, file) = ("amqp://h/", "redis://h/0", "sqlite:/tmp/a.db");
        let rows = [
            ((None, None, None), (EMBEDDED, EMBEDDED, EMBEDDED)),
            ((Some(file), None, None), (file, file, file)),
            ((Some(file), Some(redis), None), (file, redis, redis)),
            ((Some(amqp), Some(redis), None), (amqp, redis, redis)),
            ((Some(amqp), Some(redis), Some(file)), (amqp, redis, file)),
            ((None, Some(redis), None), (EMBEDDED, redis, redis)),
        ];
        for ((broker, backend, registry), expected) in rows {
            let settings = settings(broker, backend, registry);
            let found = (settings.broker(), settings.backend().unwrap(), settings.registry().unwrap());
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_server_that_keeps_no_results_needs_a_result_backend() {
        let settings = settings(Some("amqp://h/"), None, Some("redis://h/0"));
        assert!(matches!(settings.backend(), Err(SettingsError::NoResultBackend)));
        // What is named needs nothing else.
        assert_eq!(settings.registry().unwrap(), "redis://h/0");
    }

    #[test]
    fn a_worker_consumes_the_default_queue_unless_it_names_others() {
        let mut settings = Settings { task_default_queue: "mine".to_owned(), ..Settings::default() };
        assert_eq!(settings.queues(), ["mine"]);
        settings.task_queues = "a,b".parse().unwrap();
        assert_eq!(settings.queues(), ["a", "b"]);
    }
}
