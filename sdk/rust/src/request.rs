//! What a run knows of itself: the object that `context.request` answers, with Celery's names.

use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::Context;

/// Null is as good as absent in all of it.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Request {
    #[serde(deserialize_with = "null_is_default")]
    id: String,
    #[serde(deserialize_with = "null_is_default")]
    task: String,
    #[serde(deserialize_with = "null_is_default")]
    retries: u32,
    max_retries: Option<u32>,
    root_id: Option<String>,
    parent_id: Option<String>,
    group: Option<String>,
    group_index: Option<u32>,
    eta: Option<String>,
    expires: Option<String>,
    /// Hard and soft, in seconds.
    timelimit: Option<(Option<f64>, Option<f64>)>,
    #[serde(deserialize_with = "null_is_default")]
    priority: u8,
    correlation_id: Option<String>,
    reply_to: Option<String>,
    origin: Option<String>,
    shadow: Option<String>,
    #[serde(deserialize_with = "null_is_default")]
    stamped_headers: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    stamps: Map<String, Value>,
    #[serde(deserialize_with = "null_is_default")]
    replaced_task_nesting: u32,
    #[serde(deserialize_with = "null_is_default")]
    ignore_result: bool,
    #[serde(deserialize_with = "null_is_default")]
    delivery_info: DeliveryInfo,
    #[serde(deserialize_with = "null_is_default")]
    hostname: String,
    #[serde(deserialize_with = "null_is_default")]
    headers: Map<String, Value>,
    #[serde(deserialize_with = "null_is_default")]
    module: String,
    #[serde(deserialize_with = "null_is_default")]
    version: u32,
}

/// How the message came to the worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct DeliveryInfo {
    /// Empty for the broker's default exchange.
    #[serde(deserialize_with = "null_is_default")]
    pub exchange: String,
    #[serde(deserialize_with = "null_is_default")]
    pub routing_key: String,
    pub priority: Option<u8>,
    /// Whether the broker delivered it before.
    #[serde(deserialize_with = "null_is_default")]
    pub redelivered: bool,
}

fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// What the run knows of itself.
impl Context {
    /// The task's id, by which its result is found.
    pub fn id(&self) -> &str {
        &self.known().id
    }

    /// The name that was called, such as `hello.add`.
    pub fn task(&self) -> &str {
        &self.known().task
    }

    /// How often this task was retried before; 0 in its first run.
    pub fn retries(&self) -> u32 {
        self.known().retries
    }

    /// How often it may be retried; none for no end.
    pub fn max_retries(&self) -> Option<u32> {
        self.known().max_retries
    }

    /// The id of the first task of the workflow, which may be this one.
    pub fn root_id(&self) -> Option<&str> {
        self.known().root_id.as_deref()
    }

    /// The id of the task that sent this one.
    pub fn parent_id(&self) -> Option<&str> {
        self.known().parent_id.as_deref()
    }

    /// The id of the group that the task is part of.
    pub fn group(&self) -> Option<&str> {
        self.known().group.as_deref()
    }

    /// The task's place in its group, from 0.
    pub fn group_index(&self) -> Option<u32> {
        self.known().group_index
    }

    /// Not before when the task was to run, in ISO 8601.
    pub fn eta(&self) -> Option<&str> {
        self.known().eta.as_deref()
    }

    /// When the task would not have been run any more, in ISO 8601.
    pub fn expires(&self) -> Option<&str> {
        self.known().expires.as_deref()
    }

    /// How long a run may take until it is ended; see [`remaining`](Self::remaining) for what is left of it.
    pub fn time_limit(&self) -> Option<Duration> {
        self.known().timelimit.and_then(|(hard, _)| seconds(hard))
    }

    /// How long a run may take until it is told to come to an end; see [`soft_remaining`](Self::soft_remaining).
    pub fn soft_time_limit(&self) -> Option<Duration> {
        self.known().timelimit.and_then(|(_, soft)| seconds(soft))
    }

    /// The message's priority.
    pub fn priority(&self) -> u8 {
        self.known().priority
    }

    /// What ties the message to its reply: the task's id, unless the sender chose another.
    pub fn correlation_id(&self) -> Option<&str> {
        self.known().correlation_id.as_deref()
    }

    /// The queue in which the sender awaits the result, with the result backend `rpc://`.
    pub fn reply_to(&self) -> Option<&str> {
        self.known().reply_to.as_deref()
    }

    /// Who sent it, such as `gen17@host`.
    pub fn origin(&self) -> Option<&str> {
        self.known().origin.as_deref()
    }

    /// The name under which logs and monitors show the task, if it is another.
    pub fn shadow(&self) -> Option<&str> {
        self.known().shadow.as_deref()
    }

    /// The names of the stamps.
    pub fn stamped_headers(&self) -> &[String] {
        &self.known().stamped_headers
    }

    /// What the task was stamped with, by which a workflow can be found and revoked.
    pub fn stamps(&self) -> &Map<String, Value> {
        &self.known().stamps
    }

    /// How often the task took the place of another.
    pub fn replaced_task_nesting(&self) -> u32 {
        self.known().replaced_task_nesting
    }

    /// Whether the result will not be stored.
    pub fn ignore_result(&self) -> bool {
        self.known().ignore_result
    }

    /// How the message came to the worker.
    pub fn delivery_info(&self) -> &DeliveryInfo {
        &self.known().delivery_info
    }

    /// The worker's node name, such as `celery@host`.
    pub fn hostname(&self) -> &str {
        &self.known().hostname
    }

    /// The message's headers that are not Celery's own.
    pub fn headers(&self) -> &Map<String, Value> {
        &self.known().headers
    }

    /// The name under which this module is deployed.
    pub fn module(&self) -> &str {
        &self.known().module
    }

    /// The deployed version of this module: 1 for its first.
    pub fn version(&self) -> u32 {
        self.known().version
    }
}

fn seconds(limit: Option<f64>) -> Option<Duration> {
    limit.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
}
