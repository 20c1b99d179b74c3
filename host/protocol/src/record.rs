//! What a result backend keeps of a task (`celery/backends/base.py`, `_get_result_meta`).

use std::collections::HashMap;

use jiff::Timestamp;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error},
    ser::SerializeMap,
};
use serde_json::{Map, Value, json, value::RawValue};

use crate::{Exception, Request, json};

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

/// One task's entry in the result backend.
#[derive(Clone, Debug)]
pub struct Record {
    pub status: State,
    pub result: Box<RawValue>,
    pub traceback: Option<String>,
    /// What [`Child`]ren make of it; null in a record that remote control wrote.
    pub children: Value,
    /// Celery's ISO 8601 text; none until the task is done.
    pub date_done: Option<String>,
    pub group_id: Option<String>,
    pub parent_id: Option<String>,
    /// None unless `result_extended` is set.
    pub extended: Option<Extended>,
    pub task_id: String,
}

/// What `result_extended` adds (golden/03_result_backend_redis, files 50 to 52).
#[derive(Clone, Debug)]
pub struct Extended {
    pub name: String,
    pub args: Box<RawValue>,
    pub kwargs: Box<RawValue>,
    /// Node name.
    pub worker: String,
    pub retries: u32,
    /// The routing key, which is the queue's name for most.
    pub queue: String,
    pub stamped_headers: Vec<String>,
    pub stamps: Map<String, Value>,
}

impl Extended {
    pub fn of(request: &Request, worker: &str, queue: &str) -> Self {
        Self {
            name: request.task.clone(),
            args: request.body.args.clone(),
            kwargs: request.body.kwargs.clone(),
            worker: worker.to_owned(),
            retries: request.retries,
            queue: queue.to_owned(),
            stamped_headers: request.stamped_headers.clone(),
            stamps: request.stamps.clone(),
        }
    }
}

/// A task, or a group of them, that another task sent (`celery/result.py`, `as_tuple`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Child {
    Task(String),
    Group { id: String, members: Vec<String> },
}

impl Child {
    /// `[[id, parent], members]`; neither ever has a parent here.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Task(id) => json!([[id, null], null]),
            Self::Group { id, members } => {
                let members: Vec<_> = members.iter().map(|id| json!([[id, null], null])).collect();
                json!([[id, null], members])
            }
        }
    }
}

impl Record {
    pub fn success(task_id: &str, result: Box<RawValue>, done: Timestamp) -> Self {
        Self::ended(State::Success, task_id, result, None, done)
    }

    pub fn failure(task_id: &str, exception: &Exception, traceback: Option<String>, done: Timestamp) -> Self {
        Self::ended(State::Failure, task_id, json::raw(exception), traceback, done)
    }

    /// `reason` is `revoked`, `terminated` or `expired`.
    pub fn revoked(task_id: &str, reason: &str, done: Timestamp) -> Self {
        Self::ended(State::Revoked, task_id, json::raw(&Exception::revoked(reason)), None, done)
    }

    /// The task will run again. Its own id is among its children, as Celery has it
    /// (golden/03_result_backend_redis/04_retry_then_success.json).
    pub fn retry(task_id: &str, cause: Option<&Exception>, traceback: Option<String>) -> Self {
        let retry = Self::unfinished(State::Retry, task_id, json::raw(&cause));
        Self { traceback, ..retry }.with_children(&[Child::Task(task_id.to_owned())])
    }

    /// `pid` and `hostname` are the worker's.
    pub fn started(task_id: &str, pid: u32, hostname: &str) -> Self {
        Self::unfinished(State::Started, task_id, json::raw(&json!({ "pid": pid, "hostname": hostname })))
    }

    /// A state that the task itself set, with its meta.
    pub fn custom(task_id: &str, state: String, meta: Box<RawValue>) -> Self {
        Self::unfinished(State::Custom(state), task_id, meta)
    }

    fn unfinished(status: State, task_id: &str, result: Box<RawValue>) -> Self {
        Self {
            status,
            result,
            traceback: None,
            children: Value::Array(Vec::new()),
            date_done: None,
            group_id: None,
            parent_id: None,
            extended: None,
            task_id: task_id.to_owned(),
        }
    }

    fn ended(status: State, task_id: &str, result: Box<RawValue>, traceback: Option<String>, done: Timestamp) -> Self {
        let date_done = Some(crate::time::format(done));
        Self { traceback, date_done, ..Self::unfinished(status, task_id, result) }
    }

    /// With the group and the parent that the request tells of, as Celery stores them in every state.
    pub fn of(self, request: &Request) -> Self {
        Self { group_id: request.group.clone(), parent_id: request.parent_id.clone(), ..self }
    }

    /// With more children.
    pub fn with_children(mut self, children: &[Child]) -> Self {
        let mut all = match self.children.take() {
            Value::Array(all) => all,
            _ => Vec::new(),
        };
        all.extend(children.iter().map(Child::to_json));
        Self { children: Value::Array(all), ..self }
    }

    pub fn with_extended(self, extended: Extended) -> Self {
        Self { extended: Some(extended), ..self }
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

/// In the order of Celery's JSON. Stamps stand beside the fields, which they never replace.
impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("status", &self.status)?;
        map.serialize_entry("result", &self.result)?;
        map.serialize_entry("traceback", &self.traceback)?;
        map.serialize_entry("children", &self.children)?;
        map.serialize_entry("date_done", &self.date_done)?;
        for (name, id) in [("group_id", &self.group_id), ("parent_id", &self.parent_id)] {
            if let Some(id) = id {
                map.serialize_entry(name, id)?;
            }
        }
        if let Some(extended) = &self.extended {
            map.serialize_entry("name", &extended.name)?;
            map.serialize_entry("args", &extended.args)?;
            map.serialize_entry("kwargs", &extended.kwargs)?;
            map.serialize_entry("worker", &extended.worker)?;
            map.serialize_entry("retries", &extended.retries)?;
            map.serialize_entry("queue", &extended.queue)?;
            if !extended.stamps.is_empty() {
                map.serialize_entry("stamped_headers", &extended.stamped_headers)?;
            }
            for (name, stamp) in extended.stamps.iter().filter(|(name, _)| !FIELDS.contains(&name.as_str())) {
                map.serialize_entry(name, stamp)?;
            }
        }
        map.serialize_entry("task_id", &self.task_id)?;
        map.end()
    }
}

const FIELDS: [&str; 15] = [
    "status",
    "result",
    "traceback",
    "children",
    "date_done",
    "group_id",
    "parent_id",
    "name",
    "args",
    "kwargs",
    "worker",
    "retries",
    "queue",
    "stamped_headers",
    "task_id",
];

/// From JSON alone. Fields that other programs added are passed over, and so is an extension that is not whole.
impl<'de> Deserialize<'de> for Record {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut fields = HashMap::<String, Box<RawValue>>::deserialize(deserializer)?;
        let extended = extended(&fields);
        Ok(Self {
            status: required(&mut fields, "status")?,
            result: fields.remove("result").unwrap_or_else(|| json::raw(&())),
            traceback: optional(&mut fields, "traceback")?,
            children: optional(&mut fields, "children")?.unwrap_or_default(),
            date_done: optional(&mut fields, "date_done")?,
            group_id: optional(&mut fields, "group_id")?,
            parent_id: optional(&mut fields, "parent_id")?,
            task_id: required(&mut fields, "task_id")?,
            extended,
        })
    }
}

fn required<T: DeserializeOwned, E: Error>(
    fields: &mut HashMap<String, Box<RawValue>>,
    name: &'static str,
) -> Result<T, E> {
    optional(fields, name)?.ok_or_else(|| E::missing_field(name))
}

fn optional<T: DeserializeOwned, E: Error>(
    fields: &mut HashMap<String, Box<RawValue>>,
    name: &'static str,
) -> Result<Option<T>, E> {
    let Some(field) = fields.remove(name) else {
        return Ok(None);
    };
    serde_json::from_str(field.get()).map_err(|error| E::custom(format_args!("{name}: {error}")))
}

fn extended(fields: &HashMap<String, Box<RawValue>>) -> Option<Extended> {
    fn read<T: DeserializeOwned>(fields: &HashMap<String, Box<RawValue>>, name: &str) -> Option<T> {
        serde_json::from_str(fields.get(name)?.get()).ok()
    }
    let stamped_headers: Vec<String> = read(fields, "stamped_headers").unwrap_or_default();
    let stamps = stamped_headers.iter().filter(|name| !FIELDS.contains(&name.as_str()));
    let stamps = stamps.filter_map(|name| Some((name.clone(), read(fields, name)?))).collect();
    Some(Extended {
        name: read(fields, "name")?,
        args: fields.get("args")?.clone(),
        kwargs: fields.get("kwargs")?.clone(),
        worker: read(fields, "worker")?,
        retries: read(fields, "retries")?,
        queue: read(fields, "queue")?,
        stamped_headers,
        stamps,
    })
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
    fn a_retry_is_not_done_and_has_itself_for_a_child() {
        let cause = Exception::builtin("RuntimeError", "try again");
        // golden/03_result_backend_redis/04_retry_then_success.json
        let expected = json!({"status": "RETRY", "traceback": "Traceback", "children": [[["t", null], null]],
            "result": {"exc_type": "RuntimeError", "exc_message": ["try again"], "exc_module": "builtins"},
            "date_done": null, "task_id": "t"});
        let record = Record::retry("t", Some(&cause), Some("Traceback".into()));
        assert_eq!(serde_json::from_str::<Value>(&record.encode()).unwrap(), expected);
        assert_eq!(Record::retry("t", None, None).result.get(), "null");
    }

    /// golden/03_result_backend_redis, files 17 and 33.
    #[test]
    fn children_are_nested_tuples() {
        let group = Child::Group { id: "g".into(), members: vec!["a".into(), "b".into()] };
        let result = RawValue::from_string("4".into()).unwrap();
        let record = Record::success("t", result, done()).with_children(&[Child::Task("c".into()), group]);
        let expected = json!([[["c", null], null], [["g", null], [[["a", null], null], [["b", null], null]]]]);
        assert_eq!(record.children, expected);
    }

    /// golden/03_result_backend_redis/52_result_extended_stamps.json, with a group and a parent besides.
    #[test]
    fn an_extended_record_is_celerys_byte_for_byte_and_reads_back() {
        let golden = concat!(
            r#"{"status":"SUCCESS","result":2,"traceback":null,"children":[],"#,
            r#""date_done":"2026-11-24T08:50:42.861827+00:00","group_id":"g","parent_id":"p","name":"tasks.add","#,
            r#""args":[1, 1],"kwargs":{},"worker":"w1@host1","retries":0,"queue":"celery","#,
            r#""stamped_headers":["my"],"my":"x","task_id":"t"}"#,
        );
        let record: Record = serde_json::from_str(golden).unwrap();
        assert_eq!(record.extended.as_ref().unwrap().stamps["my"], "x");
        assert_eq!(record.group_id.as_deref(), Some("g"));
        assert_eq!(record.encode(), golden);
    }

    #[test]
    fn a_stamp_replaces_no_field() {
        let golden = r#"{"status":"SUCCESS","result":2,"name":"t","args":[],"kwargs":{},"worker":"w","retries":0,
            "queue":"q","stamped_headers":["status"],"task_id":"t"}"#;
        let mut record: Record = serde_json::from_str(golden).unwrap();
        record.extended.as_mut().unwrap().stamps.insert("status".into(), json!("PENDING"));
        assert_eq!(serde_json::from_str::<Record>(&record.encode()).unwrap().status, State::Success);
    }

    #[test]
    fn records_of_other_programs_may_lack_much_and_have_more() {
        let record: Record =
            serde_json::from_str(r#"{"status":"REVOKED","children":null,"task_id":"t","odd":[]}"#).unwrap();
        assert_eq!((record.result.get(), record.children, record.extended.is_none()), ("null", Value::Null, true));
        assert!(serde_json::from_str::<Record>(r#"{"status":"SUCCESS"}"#).is_err());
        assert!(serde_json::from_str::<Record>(r#"{"status":5,"task_id":"t"}"#).is_err());
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
