//! What a result backend keeps of a task (`celery/backends/base.py`, `_get_result_meta`).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

/// The states that Celery knows; a task may set others of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    Pending,
    Received,
    Started,
    Success,
    Failure,
    Retry,
    Revoked,
    Rejected,
    Ignored,
    /// A state that a task chose, such as `PROGRESS`.
    #[serde(untagged)]
    Custom(String),
}

impl State {
    /// Whether a client stops waiting: `READY_STATES` in `celery/states.py`.
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Success | Self::Failure | Self::Revoked)
    }

    pub fn name(&self) -> &str {
        match self {
            Self::Pending => "PENDING",
            Self::Received => "RECEIVED",
            Self::Started => "STARTED",
            Self::Success => "SUCCESS",
            Self::Failure => "FAILURE",
            Self::Retry => "RETRY",
            Self::Revoked => "REVOKED",
            Self::Rejected => "REJECTED",
            Self::Ignored => "IGNORED",
            Self::Custom(name) => name,
        }
    }
}

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
        Self::new("celery.exceptions", "NotRegistered", vec![Value::from(task)])
    }

    pub fn revoked(reason: &str) -> Self {
        Self::new("celery.exceptions", "TaskRevokedError", vec![Value::from(reason)])
    }

    pub fn rejected(reason: &str, requeue: bool) -> Self {
        Self::new("celery.exceptions", "Reject", vec![Value::from(reason), Value::from(requeue)])
    }

    pub fn worker_lost(message: impl Into<String>) -> Self {
        Self::new("billiard.exceptions", "WorkerLostError", vec![Value::from(message.into())])
    }

    /// `seconds` is what the limit was, a whole number where it is one, as Celery stores it.
    pub fn time_limit_exceeded(seconds: f64) -> Self {
        let whole = seconds.fract() == 0.0 && seconds < 9e15;
        let limit = if whole { Value::from(seconds as i64) } else { Value::from(seconds) };
        Self::new("billiard.exceptions", "TimeLimitExceeded", vec![limit])
    }
}

/// One task's entry in the result backend. The field order is that of Celery's JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub status: State,
    pub result: Box<RawValue>,
    pub traceback: Option<String>,
    #[serde(default)]
    pub children: Value,
    /// Celery's ISO 8601 text; none until the task is done.
    pub date_done: Option<String>,
    pub task_id: String,
}

impl Record {
    pub fn success(task_id: &str, result: Box<RawValue>, done: Timestamp) -> Self {
        Self::ended(State::Success, task_id, result, None, done)
    }

    pub fn failure(task_id: &str, exception: &Exception, traceback: Option<String>, done: Timestamp) -> Self {
        Self::ended(State::Failure, task_id, raw(exception), traceback, done)
    }

    pub fn revoked(task_id: &str, reason: &str, done: Timestamp) -> Self {
        Self::ended(State::Revoked, task_id, raw(&Exception::revoked(reason)), None, done)
    }

    /// `pid` and `hostname` are the worker's.
    pub fn started(task_id: &str, pid: u32, hostname: &str) -> Self {
        Self::unfinished(State::Started, task_id, raw(&serde_json::json!({ "pid": pid, "hostname": hostname })))
    }

    /// A state that the task itself set, with its meta.
    pub fn custom(task_id: &str, state: String, meta: Box<RawValue>) -> Self {
        Self::unfinished(State::Custom(state), task_id, meta)
    }

    fn unfinished(status: State, task_id: &str, result: Box<RawValue>) -> Self {
        let children = Value::Array(Vec::new());
        Self { status, result, traceback: None, children, date_done: None, task_id: task_id.to_owned() }
    }

    fn ended(status: State, task_id: &str, result: Box<RawValue>, traceback: Option<String>, done: Timestamp) -> Self {
        let date_done = Some(crate::time::format(done));
        Self { traceback, date_done, ..Self::unfinished(status, task_id, result) }
    }

    /// The bytes that go into the store.
    pub fn encode(&self) -> String {
        serde_json::to_string(self).expect("a record holds only JSON")
    }

    /// The exception of a record in a failed state; a record that another program wrote may lack one.
    pub fn exception(&self) -> Option<Exception> {
        serde_json::from_str(self.result.get()).ok()
    }
}

fn raw<T: Serialize>(value: &T) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("plain values always serialise")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn done() -> Timestamp {
        "2026-11-24T08:50:42.861827Z".parse().unwrap()
    }

    /// The shapes of golden/03_result_backend_redis, files 01, 02, 08, 35 and 39.
    #[test]
    fn records_are_those_of_celery() {
        let exception = Exception::builtin("ValueError", "boom");
        let rows = [
            (
                Record::success("t", RawValue::from_string("4".into()).unwrap(), done()),
                json!({"status": "SUCCESS", "result": 4, "traceback": null, "children": [],
                       "date_done": "2026-11-24T08:50:42.861827+00:00", "task_id": "t"}),
            ),
            (
                Record::failure("t", &exception, Some("Traceback".into()), done()),
                json!({"status": "FAILURE", "traceback": "Traceback", "children": [],
                       "result": {"exc_type": "ValueError", "exc_message": ["boom"], "exc_module": "builtins"},
                       "date_done": "2026-11-24T08:50:42.861827+00:00", "task_id": "t"}),
            ),
            (
                Record::started("t", 11111, "w1@host1"),
                json!({"status": "STARTED", "result": {"pid": 11111, "hostname": "w1@host1"},
                       "traceback": null, "children": [], "date_done": null, "task_id": "t"}),
            ),
            (
                Record::revoked("t", "expired", done()),
                json!({"status": "REVOKED", "traceback": null, "children": [], "task_id": "t",
                       "result": {"exc_type": "TaskRevokedError", "exc_message": ["expired"],
                                  "exc_module": "celery.exceptions"},
                       "date_done": "2026-11-24T08:50:42.861827+00:00"}),
            ),
        ];
        for (record, expected) in rows {
            let value: Value = serde_json::from_str(&record.encode()).unwrap();
            assert_eq!(value, expected);
        }
    }

    #[test]
    fn a_whole_limit_is_stored_as_a_whole_number() {
        assert_eq!(Exception::time_limit_exceeded(1.0).exc_message, vec![json!(1)]);
        assert_eq!(Exception::time_limit_exceeded(0.5).exc_message, vec![json!(0.5)]);
    }

    #[test]
    fn states_read_back_as_they_were_written() {
        for state in [State::Success, State::Pending, State::Custom("PROGRESS".into())] {
            let text = serde_json::to_string(&state).unwrap();
            assert_eq!(text, format!("\"{}\"", state.name()));
            assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
        }
    }
}
