//! What a worker makes of a message: a [`Request`], or [`Poison`] with the reason.
//!
//! Past this file nothing reads raw headers.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Body, Headers, Message, body::BodyError, message::JSON, time};

/// A task name longer than this is nobody's (bytes).
pub const MAX_NAME: usize = 255;
/// Celery's ids are 36 characters; clients may choose their own up to this (bytes).
pub const MAX_ID: usize = 255;

/// Header `timelimit`, in Celery's order: `[hard, soft]`, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TimeLimit {
    pub hard: Option<f64>,
    pub soft: Option<f64>,
}

/// One task to run, with everything that the message said of it (`celery/worker/request.py`, `Request`).
#[derive(Debug)]
pub struct Request {
    pub id: String,
    pub task: String,
    pub retries: u32,
    pub root_id: String,
    pub parent_id: Option<String>,
    pub group: Option<String>,
    pub eta: Option<Timestamp>,
    pub expires: Option<Timestamp>,
    pub time_limit: TimeLimit,
    /// None: the task's own setting decides, as for a plain `send_task`.
    pub ignore_result: Option<bool>,
    pub priority: u8,
    pub reply_to: Option<String>,
    /// Headers that are not Celery's own.
    pub custom_headers: Headers,
    pub body: Body,
}

/// Why a message can never be run, and whose it was as far as that can be told.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Poison {
    pub reason: Unreadable,
    pub id: Option<String>,
}

/// The ways in which a message is no request.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("it has no `task` header, so it is no task message of protocol 2")]
    NotATask,
    #[error("header `{0}` is missing")]
    MissingHeader(&'static str),
    #[error("header `{name}` is not {expected}")]
    WrongHeader { name: &'static str, expected: &'static str },
    #[error("content type `{0}` is not accepted; send application/json")]
    ContentType(String),
    #[error("content encoding `{0}` is not accepted; send utf-8")]
    ContentEncoding(String),
    #[error("compression `{0}` is not accepted")]
    Compression(String),
    #[error("the body has {actual} bytes, more than the {limit} allowed")]
    TooLarge { actual: usize, limit: usize },
    #[error(transparent)]
    Body(#[from] BodyError),
}

impl Unreadable {
    /// A short word for the dead letter's header and for counting.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotATask => "not-a-task",
            Self::MissingHeader(_) | Self::WrongHeader { .. } => "bad-header",
            Self::ContentType(_) | Self::ContentEncoding(_) | Self::Compression(_) => "refused-content",
            Self::TooLarge { .. } => "too-large",
            Self::Body(_) => "undecodable",
        }
    }
}

impl Request {
    /// Read a protocol 2 message whose body has at most `max_body` bytes.
    ///
    /// # Errors
    /// [`Poison`], for a message that no worker could ever run.
    pub fn decode(message: &Message, max_body: usize) -> Result<Self, Poison> {
        let headers = Reader(&message.headers);
        let id = headers.text("id", MAX_ID).ok().flatten();
        read(message, headers, max_body).map_err(|reason| Poison { reason, id })
    }
}

fn read(message: &Message, headers: Reader<'_>, max_body: usize) -> Result<Request, Unreadable> {
    let properties = &message.properties;
    let task = headers.text("task", MAX_NAME)?.ok_or(Unreadable::NotATask)?;
    let id = headers.text("id", MAX_ID)?.filter(|id| !id.is_empty()).ok_or(Unreadable::MissingHeader("id"))?;
    refuse_content(message)?;
    if message.body.len() > max_body {
        return Err(Unreadable::TooLarge { actual: message.body.len(), limit: max_body });
    }
    Ok(Request {
        task,
        retries: headers.count("retries")?,
        root_id: headers.text("root_id", MAX_ID)?.unwrap_or_else(|| id.clone()),
        parent_id: headers.text("parent_id", MAX_ID)?,
        group: headers.text("group", MAX_ID)?,
        eta: headers.instant("eta")?,
        expires: headers.instant("expires")?,
        time_limit: headers.time_limit()?,
        ignore_result: headers.flag("ignore_result")?,
        priority: properties.priority.unwrap_or(0),
        reply_to: properties.reply_to.clone(),
        custom_headers: headers.custom(),
        body: Body::decode(&message.body)?,
        id,
    })
}

fn refuse_content(message: &Message) -> Result<(), Unreadable> {
    let properties = &message.properties;
    match properties.content_type.as_deref() {
        Some(JSON | "json") => {}
        other => return Err(Unreadable::ContentType(other.unwrap_or("none").to_owned())),
    }
    match properties.content_encoding.as_deref().map(str::to_ascii_lowercase).as_deref() {
        None | Some("utf-8" | "utf8" | "us-ascii" | "ascii") => {}
        Some(other) => return Err(Unreadable::ContentEncoding(other.to_owned())),
    }
    match message.headers.get("compression") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(name)) => Err(Unreadable::Compression(name.clone())),
        Some(_) => Err(Unreadable::WrongHeader { name: "compression", expected: "text" }),
    }
}

/// Celery's own headers (`celery/app/amqp.py`, `as_task_v2`); all others belong to the application.
const OWN: [&str; 21] = [
    "lang",
    "task",
    "id",
    "shadow",
    "eta",
    "expires",
    "group",
    "group_index",
    "retries",
    "timelimit",
    "root_id",
    "parent_id",
    "argsrepr",
    "kwargsrepr",
    "origin",
    "ignore_result",
    "replaced_task_nesting",
    "stamped_headers",
    "stamps",
    "compression",
    "meth",
];

/// Typed access to headers; JSON null is absence, as in Python's `headers.get`.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a Headers);

impl Reader<'_> {
    fn get(&self, name: &'static str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn text(&self, name: &'static str, longest: usize) -> Result<Option<String>, Unreadable> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.len() <= longest && !text.contains('\0') => Ok(Some(text.clone())),
            Some(Value::String(_)) => Err(Unreadable::WrongHeader { name, expected: "at most 255 bytes without NUL" }),
            Some(_) => Err(Unreadable::WrongHeader { name, expected: "text" }),
        }
    }

    fn count(&self, name: &'static str) -> Result<u32, Unreadable> {
        let Some(value) = self.get(name) else {
            return Ok(0);
        };
        let count = value.as_u64().and_then(|count| u32::try_from(count).ok());
        count.ok_or(Unreadable::WrongHeader { name, expected: "a count" })
    }

    fn flag(&self, name: &'static str) -> Result<Option<bool>, Unreadable> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        value.as_bool().map(Some).ok_or(Unreadable::WrongHeader { name, expected: "true or false" })
    }

    fn instant(&self, name: &'static str) -> Result<Option<Timestamp>, Unreadable> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let instant = value.as_str().and_then(|text| time::parse(text).ok());
        instant.map(Some).ok_or(Unreadable::WrongHeader { name, expected: "an ISO 8601 time" })
    }

    fn time_limit(&self) -> Result<TimeLimit, Unreadable> {
        const WRONG: Unreadable = Unreadable::WrongHeader { name: "timelimit", expected: "[hard, soft] in seconds" };
        let seconds = |value: &Value| match value {
            Value::Null => Ok(None),
            value => match value.as_f64() {
                Some(seconds) if seconds > 0.0 => Ok(Some(seconds)),
                // Celery takes 0 for "no limit" (billiard skips a falsy timeout).
                Some(0.0) => Ok(None),
                _ => Err(WRONG),
            },
        };
        match self.get("timelimit") {
            None => Ok(TimeLimit::default()),
            Some(Value::Array(pair)) if pair.len() == 2 => {
                Ok(TimeLimit { hard: seconds(&pair[0])?, soft: seconds(&pair[1])? })
            }
            Some(_) => Err(WRONG),
        }
    }

    fn custom(&self) -> Headers {
        let is_custom = |name: &str| !OWN.contains(&name);
        self.0.iter().filter(|(name, _)| is_custom(name)).map(|(k, v)| (k.clone(), v.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Properties;
    use serde_json::json;

    const LIMIT: usize = 1024;

    /// golden/01_amqp_task_messages/01_plain_send_task.json
    fn golden() -> Message {
        let headers = json!({
            "lang": "py", "task": "tasks.add", "id": "a8836383-0e3a-4696-9ca1-7a84770e6e61", "shadow": null,
            "eta": null, "expires": null, "group": null, "group_index": null, "retries": 0,
            "timelimit": [null, null], "root_id": "a8836383-0e3a-4696-9ca1-7a84770e6e61", "parent_id": null,
            "argsrepr": "(2, 2)", "kwargsrepr": "{}", "origin": "gen1@host", "ignore_result": null,
            "replaced_task_nesting": 0, "stamped_headers": null, "stamps": {}
        });
        Message {
            headers: headers.as_object().unwrap().clone(),
            properties: Properties::persistent_json(),
            body: r#"[[2, 2], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]"#.into(),
        }
    }

    fn with(name: &str, value: Value) -> Message {
        let mut message = golden();
        message.headers.insert(name.to_owned(), value);
        message
    }

    #[test]
    fn a_message_of_celery_is_a_request() {
        let request = Request::decode(&golden(), LIMIT).unwrap();
        assert_eq!(request.task, "tasks.add");
        assert_eq!(request.root_id, request.id);
        assert_eq!(request.ignore_result, None);
        assert_eq!(request.time_limit, TimeLimit::default());
        assert_eq!(request.body.args.get(), "[2, 2]");
        assert!(request.custom_headers.is_empty());
    }

    #[test]
    fn headers_are_typed() {
        let request = Request::decode(&with("timelimit", json!([1, null])), LIMIT).unwrap();
        assert_eq!(request.time_limit, TimeLimit { hard: Some(1.0), soft: None });
        let request = Request::decode(&with("eta", json!("2030-01-02T03:04:05+02:00")), LIMIT).unwrap();
        assert_eq!(request.eta, Some("2030-01-02T01:04:05Z".parse().unwrap()));
        let request = Request::decode(&with("my_header", json!("x")), LIMIT).unwrap();
        assert_eq!(request.custom_headers["my_header"], "x");
    }

    #[test]
    fn what_no_worker_could_run_is_poison_with_a_reason() {
        let rows = [
            ("task", json!(null), "not-a-task"),
            ("task", json!(1), "bad-header"),
            ("id", json!(null), "bad-header"),
            ("id", json!("x".repeat(300)), "bad-header"),
            ("retries", json!(-1), "bad-header"),
            ("eta", json!("tomorrow"), "bad-header"),
            ("timelimit", json!("1"), "bad-header"),
            ("timelimit", json!([-1, null]), "bad-header"),
            ("ignore_result", json!("yes"), "bad-header"),
            ("compression", json!("application/x-gzip"), "refused-content"),
        ];
        for (name, value, code) in rows {
            let poison = Request::decode(&with(name, value.clone()), LIMIT).unwrap_err();
            assert_eq!(poison.reason.code(), code, "{name}: {value}");
        }
    }

    #[test]
    fn poison_keeps_the_id_so_that_nobody_waits_for_ever() {
        let mut message = golden();
        message.body = "{not json".into();
        let poison = Request::decode(&message, LIMIT).unwrap_err();
        assert_eq!(poison.reason.code(), "undecodable");
        assert_eq!(poison.id.as_deref(), Some("a8836383-0e3a-4696-9ca1-7a84770e6e61"));
    }

    #[test]
    fn pickle_and_oversized_bodies_are_refused_unread() {
        let mut message = golden();
        message.properties.content_type = Some("application/x-python-serialize".into());
        assert_eq!(Request::decode(&message, LIMIT).unwrap_err().reason.code(), "refused-content");
        assert_eq!(Request::decode(&golden(), 10).unwrap_err().reason.code(), "too-large");
    }

    proptest::proptest! {
        #[test]
        fn no_header_value_panics(name in "task|id|eta|retries|timelimit|group|compression", text: String, n: i64) {
            for value in [json!(text), json!(n), json!([n, text]), json!({ "x": n })] {
                let _ = Request::decode(&with(&name, value), LIMIT);
            }
        }
    }
}
