//! Asking for another run.

use std::time::Duration;

use serde::Serialize;

use crate::{
    Error,
    object::{self, Object},
};

/// Another run of this task: what [`Context::retry`](crate::Context::retry) begins, and a task returns as its error.
///
/// The host decides whether a retry is left. If none is, the task fails with the [`cause`](Self::cause), or with Celery's
/// `MaxRetriesExceededError`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a retry happens when the task returns it: `return Err(context.retry().into())`"]
pub struct Retry {
    /// `options` of the WIT's `retry-request`.
    options: Object,
    cause: Option<Error>,
}

impl Retry {
    pub(crate) fn new() -> Self {
        Self { options: Object::default(), cause: None }
    }

    /// Why: stored with the state RETRY, and raised when no retry is left.
    ///
    /// An error that says how the task ends by itself (a rejection, [`Error::ignore`], another retry) takes the place of
    /// this retry.
    #[track_caller]
    pub fn cause<E>(mut self, cause: E) -> Self
    where
        Error: From<E>,
    {
        self.cause = Some(Error::from(cause));
        self
    }

    /// Not before this has passed; the task's `default_retry_delay` otherwise.
    pub fn countdown(self, wait: Duration) -> Self {
        self.with("countdown", wait.as_secs_f64())
    }

    /// Not before this time, in ISO 8601.
    pub fn eta(self, time: impl Into<String>) -> Self {
        self.with("eta", time.into())
    }

    /// How often the task may be retried, in place of its option; for this decision only.
    pub fn max_retries(self, times: u32) -> Self {
        self.with("max_retries", times)
    }

    /// Let there be no end to retries; for this decision only.
    pub fn unlimited(self) -> Self {
        self.with("max_retries", ())
    }

    /// Do not begin after this has passed.
    pub fn expires(self, after: Duration) -> Self {
        self.with("expires", after.as_secs_f64())
    }

    pub fn priority(self, priority: u8) -> Self {
        self.with("priority", priority)
    }

    /// Go to this queue, and not back to the one that the task came from.
    pub fn queue(self, name: impl Into<String>) -> Self {
        self.with("queue", name.into())
    }

    /// Other positional arguments: a tuple, array or `Vec`; anything else is the one argument.
    #[track_caller]
    pub fn args(mut self, arguments: impl Serialize) -> Self {
        self.options.set("args", object::arguments(&arguments));
        self
    }

    /// Other keyword arguments: a map, or a struct of one's own.
    #[track_caller]
    pub fn kwargs(mut self, arguments: impl Serialize) -> Self {
        self.options.set("kwargs", object::keywords(&arguments).map(Into::into));
        self
    }

    pub fn time_limit(self, limit: Duration) -> Self {
        self.with("time_limit", limit.as_secs_f64())
    }

    pub fn soft_time_limit(self, limit: Duration) -> Self {
        self.with("soft_time_limit", limit.as_secs_f64())
    }

    #[track_caller]
    fn with(mut self, name: &str, value: impl Serialize) -> Self {
        self.options.set(name, object::value(name, &value));
        self
    }
}

impl From<Retry> for Error {
    fn from(retry: Retry) -> Self {
        match retry.options.finish() {
            Ok(options) => Self::retry(options, retry.cause),
            Err(fault) => fault,
        }
    }
}
