//! Everything that can be set, in one typed value: defaults < `rtask.toml` < `RTASK_*` < flags.
//!
//! The names are Celery's wherever the meaning is. [`sources`] reads file and environment, the commands apply their
//! flags to what it returns, and [`units`] says how sizes and times are written in all three. What is made of them
//! for the rooms below is beside the settings that it is made of: [`queues`], [`routes`], [`content`],
//! [`security`], [`transport`] and [`limits`].

mod content;
mod limits;
mod pairs;
mod queues;
mod routes;
mod security;
mod sources;
mod transport;
mod units;

use std::{
    num::{NonZeroU8, NonZeroU32, NonZeroUsize},
    path::PathBuf,
};

use rtask_broker::Retention;
use rtask_protocol::{Compression, ContentName, names::DEFAULT_QUEUE, rate::Rate, security::Digest};
use serde::{Deserialize, Serialize};

use content::{AcceptedContent, RateLimits};
pub use limits::Limits;
pub use queues::ExchangeType;
use queues::{QueueType, TaskQueues};
use routes::TaskRoutes;
pub use security::Secret;
pub use sources::{Environment, SettingsError};
use transport::{BackendOptions, BrokerOptions, TlsFiles};
pub use units::{Names, Seconds, Size, Text};
use units::{optional, value};

/// Broker, result backend and registry of those who name none.
const EMBEDDED: &str = "sqlite:.rtask/rtask.db";

/// Of one rtask process. A key of `rtask.toml` is a field's name; its environment variable is `RTASK_` and the name
/// in capitals, so that `limits.memory` is `RTASK_LIMITS_MEMORY`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    pub broker_url: Option<String>,
    pub broker_use_ssl: TlsFiles,
    pub broker_transport_options: BrokerOptions,
    pub result_backend: Option<String>,
    pub redis_backend_use_ssl: TlsFiles,
    pub result_backend_transport_options: BackendOptions,
    pub registry: Option<String>,

    /// For calls that name no queue, and for workers that name none.
    pub task_default_queue: String,
    /// What the default queue is bound to; without it, an exchange of the queue's name.
    pub task_default_exchange: Option<String>,
    pub task_default_exchange_type: ExchangeType,
    /// Without it, the queue's name.
    pub task_default_routing_key: Option<String>,
    pub task_default_queue_type: QueueType,
    #[serde(deserialize_with = "optional")]
    pub task_default_priority: Option<u8>,
    /// What is known of queues, and what a worker consumes; the default queue if it is empty.
    pub task_queues: TaskQueues,
    /// `x-max-priority` of classic queues that say nothing themselves.
    #[serde(deserialize_with = "optional")]
    pub task_queue_max_priority: Option<NonZeroU8>,
    /// Whether a queue that is not among `task_queues` may be named, and how it is made then.
    #[serde(deserialize_with = "value")]
    pub task_create_missing_queues: bool,
    pub task_create_missing_queue_type: QueueType,
    pub task_create_missing_queue_exchange_type: ExchangeType,
    pub task_routes: TaskRoutes,

    /// What messages may be made of.
    pub accept_content: AcceptedContent,
    /// What `rtask call` makes them of; with `auth`, all that is sent is signed.
    pub task_serializer: Text<ContentName>,
    pub task_compression: Option<Text<Compression>>,

    /// PEM files: the key that messages are signed with, and its certificate.
    pub security_key: Option<PathBuf>,
    #[serde(deserialize_with = "optional")]
    pub security_key_password: Option<Secret>,
    pub security_certificate: Option<PathBuf>,
    /// PEM files of those whose signatures are believed: a folder, or a pattern such as `/etc/rtask/certs/*.pem`.
    pub security_cert_store: Option<String>,
    pub security_digest: Text<Digest>,

    #[serde(deserialize_with = "value")]
    pub task_acks_late: bool,
    /// False rejects the message of a task that failed, and puts back that of one that ran into its time limit.
    #[serde(deserialize_with = "value")]
    pub task_acks_on_failure_or_timeout: bool,
    #[serde(deserialize_with = "optional")]
    pub task_acks_on_failure: Option<bool>,
    #[serde(deserialize_with = "optional")]
    pub task_acks_on_timeout: Option<bool>,
    #[serde(deserialize_with = "value")]
    pub task_reject_on_worker_lost: bool,
    #[serde(deserialize_with = "value")]
    pub task_ignore_result: bool,
    #[serde(deserialize_with = "value")]
    pub task_store_errors_even_if_ignored: bool,
    #[serde(deserialize_with = "value")]
    pub task_track_started: bool,
    /// Of each task in each worker.
    pub task_default_rate_limit: Option<Text<Rate>>,
    /// By task name: rates that all workers keep together.
    pub task_global_rate_limits: RateLimits,
    /// The hard limit of tasks and messages that set none; 0 for none.
    pub task_time_limit: Seconds,
    /// When they are told to come to an end; 0 for never.
    pub task_soft_time_limit: Seconds,
    /// Deliveries of one message before it becomes a dead letter.
    #[serde(deserialize_with = "value")]
    pub delivery_limit: NonZeroU32,

    /// How long results are kept; 0 for ever.
    pub result_expires: Seconds,
    /// Results tell of the task's name, arguments, worker and more.
    #[serde(deserialize_with = "value")]
    pub result_extended: bool,

    /// Tasks at the same time; without it, one a processor.
    #[serde(deserialize_with = "optional")]
    pub worker_concurrency: Option<NonZeroUsize>,
    /// Messages that a worker holds for each task that it can run at the same time; 0 for any number.
    #[serde(deserialize_with = "value")]
    pub worker_prefetch_multiplier: u16,
    /// Hold no more messages than tasks that can run.
    #[serde(deserialize_with = "value")]
    pub worker_disable_prefetch: bool,
    #[serde(deserialize_with = "value")]
    pub worker_disable_rate_limits: bool,
    /// Consume a queue of the worker's own, too.
    #[serde(deserialize_with = "value")]
    pub worker_direct: bool,
    /// An ETA further ahead is not waited for in the worker: its message goes back to the broker until then.
    pub worker_eta_horizon: Seconds,
    /// How long a cold shutdown waits for the tasks that run.
    pub worker_soft_shutdown_timeout: Seconds,
    /// Wait so long even if nothing runs.
    #[serde(deserialize_with = "value")]
    pub worker_enable_soft_shutdown_on_idle: bool,
    /// Who a process that was started as root becomes; without it, `nobody`.
    pub worker_user: Option<String>,
    /// Where a worker keeps machine code between starts; without it, [`Settings::DEFAULT_CACHE`] if it can.
    pub worker_cache: Option<PathBuf>,

    pub limits: Limits,
}

/// The rooms below know what is good for them.
impl Default for Settings {
    fn default() -> Self {
        let worker = rtask_worker::Options::default();
        Self {
            broker_url: None,
            broker_use_ssl: TlsFiles::default(),
            broker_transport_options: BrokerOptions::default(),
            result_backend: None,
            redis_backend_use_ssl: TlsFiles::default(),
            result_backend_transport_options: BackendOptions::default(),
            registry: None,

            task_default_queue: DEFAULT_QUEUE.to_owned(),
            task_default_exchange: None,
            task_default_exchange_type: ExchangeType::default(),
            task_default_routing_key: None,
            task_default_queue_type: QueueType::default(),
            task_default_priority: None,
            task_queues: TaskQueues::default(),
            task_queue_max_priority: None,
            task_create_missing_queues: true,
            task_create_missing_queue_type: QueueType::default(),
            task_create_missing_queue_exchange_type: ExchangeType::default(),
            task_routes: TaskRoutes::default(),

            accept_content: AcceptedContent::default(),
            task_serializer: Text::default(),
            task_compression: None,

            security_key: None,
            security_key_password: None,
            security_certificate: None,
            security_cert_store: None,
            security_digest: Text::default(),

            task_acks_late: worker.task.acks_late,
            task_acks_on_failure_or_timeout: true,
            task_acks_on_failure: None,
            task_acks_on_timeout: None,
            task_reject_on_worker_lost: worker.task.reject_on_worker_lost,
            task_ignore_result: worker.task.ignore_result,
            task_store_errors_even_if_ignored: worker.task.store_errors_even_if_ignored,
            task_track_started: worker.task.track_started,
            task_default_rate_limit: None,
            task_global_rate_limits: RateLimits::default(),
            task_time_limit: worker.limits.time.into(),
            task_soft_time_limit: worker.limits.soft_time.unwrap_or_default().into(),
            delivery_limit: NonZeroU32::new(worker.delivery_limit).unwrap_or(NonZeroU32::MIN),

            result_expires: Retention::default().expires.unwrap_or_default().into(),
            result_extended: worker.result_extended,

            worker_concurrency: None,
            worker_prefetch_multiplier: worker.prefetch_multiplier,
            worker_disable_prefetch: worker.disable_prefetch,
            worker_disable_rate_limits: worker.disable_rate_limits,
            worker_direct: false,
            worker_eta_horizon: worker.eta_horizon.into(),
            worker_soft_shutdown_timeout: Seconds::default(),
            worker_enable_soft_shutdown_on_idle: false,
            worker_user: None,
            worker_cache: None,

            limits: Limits::default(),
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
    /// When none is named, and the broker is a server of which nobody said that it is to keep results.
    pub fn backend(&self) -> Result<&str, SettingsError> {
        match (&self.result_backend, self.broker()) {
            (Some(backend), _) => Ok(backend),
            (None, broker) if broker.starts_with("sqlite:") => Ok(broker),
            (None, _) => Err(SettingsError::NoResultBackend),
        }
    }

    /// # Errors
    /// As [`Self::backend`], which it follows when it is not named itself and results are kept somewhere.
    pub fn registry(&self) -> Result<&str, SettingsError> {
        match (&self.registry, self.backend()) {
            (Some(registry), _) => Ok(registry),
            (None, Ok(backend)) if is_rpc(backend) => Err(SettingsError::NoRegistry(backend.to_owned())),
            (None, backend) => backend,
        }
    }

    /// Where workers keep what they must remember together: beside the results, or, where those travel as messages,
    /// beside the modules.
    ///
    /// # Errors
    /// As [`Self::registry`].
    pub fn ledger(&self) -> Result<&str, SettingsError> {
        match self.backend()? {
            backend if is_rpc(backend) => self.registry(),
            backend => Ok(backend),
        }
    }

    /// Whether results are sent to whoever sent the task, and kept nowhere.
    pub fn results_travel(&self) -> bool {
        self.result_backend.as_deref().is_some_and(is_rpc)
    }

    pub fn retention(&self) -> Retention {
        Retention { expires: self.result_expires.limit() }
    }
}

fn is_rpc(url: &str) -> bool {
    url.starts_with("rpc:")
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
    fn results_that_travel_as_messages_leave_the_rest_to_the_registry() {
        let alone = settings(Some("amqp://h/"), Some("rpc://"), None);
        assert!(matches!(alone.registry(), Err(SettingsError::NoRegistry(_))));
        assert!(matches!(alone.ledger(), Err(SettingsError::NoRegistry(_))));
        let with = settings(Some("amqp://h/"), Some("rpc://"), Some("redis://h/1"));
        assert_eq!((with.backend().unwrap(), with.ledger().unwrap()), ("rpc://", "redis://h/1"));
        let apart = settings(Some("amqp://h/"), Some("redis://h/0"), Some("redis://h/1"));
        assert_eq!((apart.registry().unwrap(), apart.ledger().unwrap()), ("redis://h/1", "redis://h/0"));
    }
}
