//! Raised exceptions as result backends keep them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The stored form of a raised exception; clients rebuild the class from the three.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exception {
    pub exc_type: String,
    /// The exception's arguments.
    pub exc_message: Vec<Value>,
    pub exc_module: Option<String>,
}

impl Exception {
    pub fn new(module: &str, kind: &str, arguments: Vec<Value>) -> Self {
        Self { exc_type: kind.to_owned(), exc_message: arguments, exc_module: Some(module.to_owned()) }
    }

    /// One of Python's own, such as `TypeError`.
    pub fn builtin(kind: &str, message: impl Into<String>) -> Self {
        Self::new("builtins", kind, vec![Value::from(message.into())])
    }

    /// One that only rtask raises. No Python module has this name, so that Celery's clients make a class of
    /// the type's name on the fly.
    pub fn rtask(kind: &str, message: impl Into<String>) -> Self {
        Self::new("rtask.exceptions", kind, vec![Value::from(message.into())])
    }

    pub fn not_registered(task: &str) -> Self {
        Self::celery("NotRegistered", vec![Value::from(task)])
    }

    /// `reason` is `revoked`, `terminated` or `expired`.
    pub fn revoked(reason: &str) -> Self {
        Self::celery("TaskRevokedError", vec![Value::from(reason)])
    }

    pub fn rejected(reason: &str, requeue: bool) -> Self {
        Self::celery("Reject", vec![Value::from(reason), Value::from(requeue)])
    }

    /// A task that wants another try and has had them all. `args` and `kwargs` as Python shows them.
    pub fn max_retries_exceeded(task: &str, id: &str, args: &str, kwargs: &str) -> Self {
        let message = format!("Can't retry {task}[{id}] args:{args} kwargs:{kwargs}");
        Self::celery("MaxRetriesExceededError", vec![Value::from(message)])
    }

    pub fn worker_lost(message: impl Into<String>) -> Self {
        Self::new("billiard.exceptions", "WorkerLostError", vec![Value::from(message.into())])
    }

    /// `seconds` is what the limit was, a whole number where it is one, as Celery stores it.
    pub fn time_limit_exceeded(seconds: f64) -> Self {
        Self::new("billiard.exceptions", "TimeLimitExceeded", vec![crate::time::seconds(seconds)])
    }

    /// Without arguments (golden/03_result_backend_redis/38_soft_time_limit.json).
    pub fn soft_time_limit_exceeded() -> Self {
        Self::new("billiard.exceptions", "SoftTimeLimitExceeded", Vec::new())
    }

    fn celery(kind: &str, arguments: Vec<Value>) -> Self {
        Self::new("celery.exceptions", kind, arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_whole_limit_is_stored_as_a_whole_number() {
        assert_eq!(Exception::time_limit_exceeded(1.0).exc_message, vec![json!(1)]);
        assert_eq!(Exception::time_limit_exceeded(0.5).exc_message, vec![json!(0.5)]);
    }

    #[test]
    fn exhausted_retries_read_as_celery_writes_them() {
        let exception = Exception::max_retries_exceeded("tasks.add", "1-2", "(2, 2)", "{}");
        assert_eq!(exception.exc_message, [json!("Can't retry tasks.add[1-2] args:(2, 2) kwargs:{}")]);
        assert_eq!(exception.exc_module.as_deref(), Some("celery.exceptions"));
    }
}
