//! How a task is to be called, in the names of Celery's `apply_async` (`celery/app/task.py`, `celery/app/base.py`): the
//! options of a signature, of a task that a guest sends, and of a retry.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, value::RawValue};

use crate::{
    Compression, ContentName, Headers, TimeLimit,
    request::{MAX_ID, MAX_NAME},
    time,
};

/// Options that are named here; all others are passed over, as Celery passes on what it does not know.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Seconds from the call.
    pub countdown: Option<f64>,
    pub eta: Option<Timestamp>,
    pub expires: Option<Expires>,
    pub priority: Option<u8>,
    pub queue: Option<String>,
    pub exchange: Option<String>,
    pub routing_key: Option<String>,
    pub time_limit: TimeLimit,
    /// Of the application's own.
    pub headers: Headers,
    pub task_id: Option<String>,
    pub group_id: Option<String>,
    pub group_index: Option<i64>,
    pub root_id: Option<String>,
    pub parent_id: Option<String>,
    pub reply_to: Option<String>,
    pub ignore_result: Option<bool>,
    pub serializer: Option<ContentName>,
    pub compression: Option<Compression>,
    pub shadow: Option<String>,
    pub retries: u32,
    pub max_retries: Option<MaxRetries>,
    pub replaced_task_nesting: u32,
    /// A message that need not outlive its broker.
    pub transient: bool,
    pub argsrepr: Option<String>,
    pub kwargsrepr: Option<String>,
    pub stamped_headers: Vec<String>,
    /// By the names in `stamped_headers`.
    pub stamps: Map<String, Value>,
    /// Signatures, as they came: one, or an array.
    pub link: Option<Box<RawValue>>,
    pub link_error: Option<Box<RawValue>>,
    pub chain: Option<Box<RawValue>>,
    pub chord: Option<Box<RawValue>>,
}

/// When a task is not to be run any more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Expires {
    At(Timestamp),
    /// Seconds from the call.
    In(f64),
}

/// How often a task is retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxRetries {
    /// Written as null.
    Endless,
    AtMost(u32),
}

/// Which option is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    #[error("the options are not a JSON object")]
    NotAnObject,
    #[error("option `{name}` is not {expected}")]
    Wrong { name: String, expected: String },
    #[error("option `{0}` is a time beyond the end of the calendar")]
    TooFar(&'static str),
}

impl Options {
    /// Read a JSON object.
    ///
    /// # Errors
    /// For an option whose value makes no sense, with its name.
    pub fn parse(json: &str) -> Result<Self, OptionError> {
        let fields = serde_json::from_str::<BTreeMap<String, Box<RawValue>>>(json);
        Self::of_fields(&Fields(fields.map_err(|_| OptionError::NotAnObject)?))
    }

    pub(crate) fn of_fields(fields: &Fields) -> Result<Self, OptionError> {
        let (stamped_headers, stamps) = fields.stamps()?;
        Ok(Self {
            countdown: fields.seconds("countdown")?,
            eta: fields.read("eta", "an ISO 8601 time", instant)?,
            expires: fields.read("expires", "a number of seconds, or an ISO 8601 time", expires)?,
            priority: fields.read("priority", "a whole number from 0 to 255", |value| {
                value.as_u64().and_then(|priority| u8::try_from(priority).ok())
            })?,
            queue: fields.name("queue", MAX_NAME)?,
            exchange: fields.name("exchange", MAX_NAME)?,
            routing_key: fields.name("routing_key", MAX_NAME)?,
            time_limit: TimeLimit { hard: fields.limit("time_limit")?, soft: fields.limit("soft_time_limit")? },
            headers: fields.read("headers", "an object", object)?.unwrap_or_default(),
            task_id: fields.name("task_id", MAX_ID)?.filter(|id| !id.is_empty()),
            group_id: fields.name("group_id", MAX_ID)?,
            group_index: fields.read("group_index", "a whole number", Value::as_i64)?,
            root_id: fields.name("root_id", MAX_ID)?,
            parent_id: fields.name("parent_id", MAX_ID)?,
            reply_to: fields.name("reply_to", MAX_NAME)?,
            ignore_result: fields.read("ignore_result", "true or false", Value::as_bool)?,
            serializer: fields.spelled("serializer")?,
            compression: fields.spelled("compression")?,
            shadow: fields.text("shadow")?,
            retries: fields.read("retries", "a count", count)?.unwrap_or(0),
            max_retries: fields.max_retries()?,
            replaced_task_nesting: fields.read("replaced_task_nesting", "a count", count)?.unwrap_or(0),
            transient: fields.read("delivery_mode", "1 or 2", transient)?.unwrap_or(false),
            argsrepr: fields.text("argsrepr")?,
            kwargsrepr: fields.text("kwargsrepr")?,
            stamped_headers,
            stamps,
            link: fields.raw("link"),
            link_error: fields.raw("link_error"),
            chain: fields.raw("chain"),
            chord: fields.raw("chord"),
        })
    }

    /// When the task is to be run, if not at once: a countdown goes before an ETA, and one of 0 is none.
    ///
    /// # Errors
    /// For a time that no calendar has.
    pub fn eta(&self, now: Timestamp) -> Result<Option<Timestamp>, OptionError> {
        match self.countdown.filter(|countdown| *countdown != 0.0) {
            Some(countdown) => later(now, countdown).map(Some).ok_or(OptionError::TooFar("countdown")),
            None => Ok(self.eta),
        }
    }

    /// # Errors
    /// For a time that no calendar has.
    pub fn expires(&self, now: Timestamp) -> Result<Option<Timestamp>, OptionError> {
        self.expires.map(|expires| expires.resolve(now)).transpose()
    }
}

impl Expires {
    /// # Errors
    /// For a time that no calendar has.
    pub fn resolve(self, now: Timestamp) -> Result<Timestamp, OptionError> {
        match self {
            Self::At(instant) => Ok(instant),
            Self::In(seconds) => later(now, seconds).ok_or(OptionError::TooFar("expires")),
        }
    }
}

fn later(now: Timestamp, seconds: f64) -> Option<Timestamp> {
    now.checked_add(SignedDuration::try_from_secs_f64(seconds).ok()?).ok()
}

/// A JSON object whose fields are read one by one; null is absence.
pub(crate) struct Fields(pub BTreeMap<String, Box<RawValue>>);

impl Fields {
    pub(crate) fn raw(&self, name: &str) -> Option<Box<RawValue>> {
        self.0.get(name).filter(|raw| raw.get() != "null").cloned()
    }

    /// An array or an object, which begins with `open`.
    pub(crate) fn parts(&self, name: &str, open: char, expected: &str) -> Result<Option<Box<RawValue>>, OptionError> {
        let raw = self.raw(name);
        match raw.as_ref().is_none_or(|raw| raw.get().starts_with(open)) {
            true => Ok(raw),
            false => Err(OptionError::Wrong { name: name.to_owned(), expected: expected.to_owned() }),
        }
    }

    fn read<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, OptionError> {
        let Some(raw) = self.0.get(name).filter(|raw| raw.get() != "null") else {
            return Ok(None);
        };
        let value = serde_json::from_str(raw.get()).ok();
        value
            .as_ref()
            .and_then(read)
            .map(Some)
            .ok_or_else(|| OptionError::Wrong { name: name.escape_debug().to_string(), expected: expected.to_owned() })
    }

    fn text(&self, name: &str) -> Result<Option<String>, OptionError> {
        self.read(name, "text", |value| value.as_str().map(str::to_owned))
    }

    fn name(&self, name: &str, longest: usize) -> Result<Option<String>, OptionError> {
        let expected = format!("text of at most {longest} bytes, without NUL");
        self.read(name, &expected, |value| {
            let text = value.as_str().filter(|text| text.len() <= longest && !text.contains('\0'));
            text.map(str::to_owned)
        })
    }

    fn seconds(&self, name: &str) -> Result<Option<f64>, OptionError> {
        self.read(name, "a number of seconds", Value::as_f64)
    }

    /// 0 is no limit, as for Celery.
    fn limit(&self, name: &str) -> Result<Option<f64>, OptionError> {
        let limit = self.read(name, "a number of seconds", |value| value.as_f64().filter(|limit| *limit >= 0.0))?;
        Ok(limit.filter(|limit| *limit > 0.0))
    }

    fn spelled<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, OptionError>
    where
        T::Err: std::fmt::Display,
    {
        let Some(spelling) = self.text(name)? else {
            return Ok(None);
        };
        spelling.parse().map(Some).map_err(|error: T::Err| OptionError::Wrong {
            name: name.to_owned(),
            expected: format!("possible: {error}"),
        })
    }

    fn max_retries(&self) -> Result<Option<MaxRetries>, OptionError> {
        match self.0.get("max_retries").map(|raw| raw.get()) {
            None => Ok(None),
            Some("null") => Ok(Some(MaxRetries::Endless)),
            Some(_) => Ok(self.read("max_retries", "a count, or null", count)?.map(MaxRetries::AtMost)),
        }
    }

    /// Stamps stand beside the other options, under the names in `stamped_headers`
    /// (golden/01_amqp_task_messages/31_stamps_visitor.json).
    fn stamps(&self) -> Result<(Vec<String>, Map<String, Value>), OptionError> {
        let names = self.read("stamped_headers", "a list of names", list_of::<String>)?.unwrap_or_default();
        let mut stamps = Map::new();
        for name in &names {
            if let Some(stamp) = self.read(name, "a plain value", |value| Some(value.clone()))? {
                stamps.insert(name.clone(), stamp);
            }
        }
        Ok((names, stamps))
    }
}

fn list_of<T: DeserializeOwned>(value: &Value) -> Option<Vec<T>> {
    serde_json::from_value(value.clone()).ok()
}

fn object(value: &Value) -> Option<Map<String, Value>> {
    value.as_object().cloned()
}

fn count(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|count| u32::try_from(count).ok())
}

fn transient(value: &Value) -> Option<bool> {
    match (value.as_u64(), value.as_str()) {
        (Some(1), _) | (_, Some("transient")) => Some(true),
        (Some(2), _) | (_, Some("persistent")) => Some(false),
        _ => None,
    }
}

/// Text, or kombu's tagged form of it.
fn instant(value: &Value) -> Option<Timestamp> {
    let text = match value.get("__type__").and_then(Value::as_str) {
        Some("datetime") => value.get("__value__")?,
        _ => value,
    };
    time::parse(text.as_str()?).ok()
}

fn expires(value: &Value) -> Option<Expires> {
    match value.as_f64() {
        Some(seconds) => Some(Expires::In(seconds)),
        None => instant(value).map(Expires::At),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Serializer;
    use serde_json::json;

    fn now() -> Timestamp {
        "2026-11-24T08:00:00Z".parse().unwrap()
    }

    #[test]
    fn options_go_by_celerys_names() {
        let options = json!({
            "countdown": 1.5, "expires": 60, "priority": 9, "queue": "q", "exchange": "e", "routing_key": "k",
            "time_limit": 10, "soft_time_limit": 5.5, "headers": {"a": 1}, "task_id": "t", "group_id": "g",
            "group_index": 2, "root_id": "r", "parent_id": "p", "reply_to": "me", "ignore_result": true,
            "serializer": "yaml", "compression": "gzip", "shadow": "s", "retries": 1, "max_retries": null,
            "replaced_task_nesting": 1, "delivery_mode": 1, "stamped_headers": ["many"], "many": ["a", "b"],
            "link": {"task": "x"}, "link_error": null, "retry_policy": {"max_retries": 3}, "unknown": [],
        });
        let options = Options::parse(&options.to_string()).unwrap();
        assert_eq!(options.eta(now()).unwrap(), Some("2026-11-24T08:00:01.5Z".parse().unwrap()));
        assert_eq!(options.expires(now()).unwrap(), Some("2026-11-24T08:01:00Z".parse().unwrap()));
        assert_eq!((options.priority, options.queue.as_deref()), (Some(9), Some("q")));
        assert_eq!(options.time_limit, TimeLimit { hard: Some(10.0), soft: Some(5.5) });
        assert_eq!(
            (options.serializer, options.compression),
            (Some(ContentName::Plain(Serializer::Yaml)), Some(Compression::Zlib))
        );
        assert_eq!((options.max_retries, options.transient), (Some(MaxRetries::Endless), true));
        assert_eq!(options.stamps["many"], json!(["a", "b"]));
        assert!(options.link.is_some() && options.link_error.is_none());
        let nothing = Options::parse(r#"{"countdown": 0, "time_limit": 0, "eta": null}"#).unwrap();
        assert_eq!(
            (nothing.eta(now()), nothing.time_limit, nothing.max_retries),
            (Ok(None), TimeLimit::default(), None)
        );
    }

    #[test]
    fn times_may_be_texts_or_tagged_as_kombu_tags_them() {
        let expected = "2026-11-24T09:00:00Z".parse().unwrap();
        for time in
            [json!("2026-11-24T09:00:00"), json!({"__type__": "datetime", "__value__": "2026-11-24T10:00:00+01:00"})]
        {
            let options = Options::parse(&json!({ "eta": time, "expires": time }).to_string()).unwrap();
            assert_eq!((options.eta, options.expires), (Some(expected), Some(Expires::At(expected))));
        }
    }

    #[test]
    fn a_wrong_option_is_named() {
        let rows = [
            ("countdown", json!("soon")),
            ("eta", json!(5)),
            ("eta", json!("tomorrow")),
            ("expires", json!(true)),
            ("priority", json!(256)),
            ("priority", json!(1.5)),
            ("queue", json!(["q"])),
            ("queue", json!("q".repeat(256))),
            ("time_limit", json!(-1)),
            ("headers", json!([])),
            ("task_id", json!("a\0b")),
            ("ignore_result", json!("yes")),
            ("serializer", json!("pickle")),
            ("compression", json!("lzma")),
            ("max_retries", json!(-1)),
            ("delivery_mode", json!(3)),
            ("stamped_headers", json!("one")),
        ];
        for (name, value) in rows {
            let error = Options::parse(&json!({ name: value }).to_string()).unwrap_err().to_string();
            assert!(error.contains(&format!("option `{name}` is not")), "{error}");
        }
        assert_eq!(Options::parse("[]").unwrap_err(), OptionError::NotAnObject);
        let far = Options::parse(r#"{"countdown": 1e300, "expires": 1e300}"#).unwrap();
        assert_eq!(far.eta(now()), Err(OptionError::TooFar("countdown")));
        assert_eq!(far.expires(now()), Err(OptionError::TooFar("expires")));
    }
}
