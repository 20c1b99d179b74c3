//! How a task is to be run, in Celery's words.

use serde::{Deserialize, Deserializer, Serialize};

use super::present;

/// Celery's options of a task. What is none or empty is left to Celery's default, except for `acks_late` and
/// `reject_on_worker_lost`, which rtask defaults to true. `rules` holds the bounds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskOptions {
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub acks_late: Option<bool>,
    /// Whether a failure settles the message, if that is acknowledged late; else it is rejected.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub acks_on_failure: Option<bool>,
    /// Whether a hard time limit settles the message, if that is acknowledged late; else it goes back to its queue.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub acks_on_timeout: Option<bool>,
    /// Whether the message goes back to its queue when the process that ran it dies.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub reject_on_worker_lost: Option<bool>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub ignore_result: Option<bool>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub store_errors_even_if_ignored: Option<bool>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub track_started: Option<bool>,
    /// Seconds; finite, above 0 and at most [`super::MAX_SECONDS`].
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub time_limit: Option<f64>,
    /// Seconds, as [`Self::time_limit`], which it does not exceed.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub soft_time_limit: Option<f64>,
    /// Bytes; above 0.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<MaxRetries>,
    /// Seconds; finite, 0 or above and at most [`super::MAX_SECONDS`].
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub default_retry_delay: Option<f64>,
    /// Exceptions that are retried without being asked: a class (`ValueError`), a class in a module
    /// (`builtins.ValueError`), or `Exception` for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub autoretry_for: Vec<String>,
    /// Exceptions to except from [`Self::autoretry_for`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dont_autoretry_for: Vec<String>,
    /// The factor (seconds) of an exponential backoff between automatic retries; none is no backoff.
    #[serde(default, deserialize_with = "backoff", skip_serializing_if = "Option::is_none")]
    pub retry_backoff: Option<f64>,
    /// Seconds, as [`Self::default_retry_delay`].
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub retry_backoff_max: Option<f64>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub retry_jitter: Option<bool>,
    /// Runs in a time, such as `10/s`, `100/m` or `1/h`, and 0 for no limit: what `rtask_protocol::rate::Rate` reads.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<String>,
    /// Where the task is sent if its sender names no queue.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// With what priority it is sent if its sender gives none.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// Seconds after which it is not run any more if its sender says nothing else; as [`Self::time_limit`].
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub expires: Option<f64>,
}

/// How often a task may be retried: a number, or null for no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Option<u32>", into = "Option<u32>")]
pub enum MaxRetries {
    Times(u32),
    Unlimited,
}

impl TaskOptions {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl From<Option<u32>> for MaxRetries {
    fn from(times: Option<u32>) -> Self {
        times.map_or(Self::Unlimited, Self::Times)
    }
}

impl From<MaxRetries> for Option<u32> {
    fn from(limit: MaxRetries) -> Self {
        match limit {
            MaxRetries::Times(times) => Some(times),
            MaxRetries::Unlimited => None,
        }
    }
}

/// A factor, or whether to back off with the factor 1.
fn backoff<'de, D: Deserializer<'de>>(field: D) -> Result<Option<f64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected true, false or a number of seconds")]
    enum Backoff {
        Wanted(bool),
        Factor(f64),
    }
    Ok(match Backoff::deserialize(field)? {
        Backoff::Wanted(wanted) => wanted.then_some(1.0),
        Backoff::Factor(factor) => Some(factor),
    })
}
