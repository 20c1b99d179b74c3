//! What a worker makes of a message: a [`Request`], or [`Poison`] with the reason.
//!
//! Past this file nothing reads raw headers.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    Accept, Body, Compression, Headers, Message, Serializer,
    body::BodyError,
    content::{self, ContentError, SerializerError},
    headers::Reader,
    legacy::Legacy,
    security::{self, CertificateStore, Untrusted},
};

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

/// How a message was laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Everything in the body, which is an object; or in the body and in headers.
    One,
    /// What is said of the task in headers, its arguments in the body.
    Two,
}

/// One task to run, with everything that the message said of it (`celery/worker/request.py`, `Request`;
/// `celery/app/task.py`, `Context`).
#[derive(Clone, Debug)]
pub struct Request {
    pub protocol: Protocol,
    pub id: String,
    pub task: String,
    pub retries: u32,
    pub root_id: String,
    pub parent_id: Option<String>,
    pub group: Option<String>,
    pub group_index: Option<i64>,
    pub eta: Option<Timestamp>,
    pub expires: Option<Timestamp>,
    pub time_limit: TimeLimit,
    /// None: the task's own setting decides, as for a plain `send_task`.
    pub ignore_result: Option<bool>,
    pub priority: u8,
    pub correlation_id: Option<String>,
    pub reply_to: Option<String>,
    /// A name to show instead of the task's.
    pub shadow: Option<String>,
    /// Who published it, such as `gen123@host`.
    pub origin: Option<String>,
    /// The language of its publisher.
    pub lang: Option<String>,
    pub argsrepr: Option<String>,
    pub kwargsrepr: Option<String>,
    pub stamped_headers: Vec<String>,
    /// By the names in `stamped_headers`.
    pub stamps: Map<String, Value>,
    /// How many tasks replaced each other under this id.
    pub replaced_task_nesting: u32,
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
    #[error("it has no `task` header, and its body is no task of protocol 1")]
    NotATask,
    #[error("header `{0}` is missing")]
    MissingHeader(&'static str),
    #[error("header `{name}` is not {expected}")]
    WrongHeader { name: &'static str, expected: &'static str },
    #[error("content type `{name}` is refused: {reason}")]
    ContentType { name: String, reason: String },
    #[error("content encoding `{0}` is not accepted; send utf-8")]
    ContentEncoding(String),
    #[error("compression `{0}` is not accepted; use gzip, bzip2 or zstd")]
    Compression(String),
    #[error("the body has {actual} bytes, more than the {limit} allowed")]
    TooLarge { actual: usize, limit: usize },
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
    #[error(transparent)]
    Body(#[from] BodyError),
}

impl Unreadable {
    /// Whether it is what the message was made with that was refused, rather than what it says.
    pub fn is_refused_content(&self) -> bool {
        match self {
            Self::ContentType { .. } | Self::ContentEncoding(_) | Self::Compression(_) => true,
            Self::NotATask
            | Self::MissingHeader(_)
            | Self::WrongHeader { .. }
            | Self::TooLarge { .. }
            | Self::Untrusted(_)
            | Self::Body(_) => false,
        }
    }

    /// A short word for the dead letter's header and for counting.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotATask => "not-a-task",
            Self::MissingHeader(_) | Self::WrongHeader { .. } => "bad-header",
            Self::ContentType { .. } | Self::ContentEncoding(_) | Self::Compression(_) => "refused-content",
            Self::TooLarge { .. } | Self::Body(BodyError::Content(ContentError::TooLarge { .. })) => "too-large",
            Self::Untrusted(_) => "bad-signature",
            Self::Body(_) => "undecodable",
        }
    }
}

impl From<ContentError> for Unreadable {
    fn from(error: ContentError) -> Self {
        Self::Body(BodyError::Content(error))
    }
}

impl Request {
    /// Read a task message of protocol 2 or 1. Nothing is parsed before it is known to be small enough.
    ///
    /// # Errors
    /// [`Poison`], for a message that no worker could ever run.
    pub fn decode(message: &Message, accept: impl Into<Accept>) -> Result<Self, Poison> {
        let parts = parts(message, &accept.into()).map_err(|reason| {
            let id = Reader(&message.headers).text("id", MAX_ID).ok().flatten();
            Poison { reason, id }
        })?;
        let id = Reader(&parts.headers).text("id", MAX_ID).ok().flatten();
        read(message, parts).map_err(|reason| Poison { reason, id })
    }
}

/// A message's headers and body, as protocol 2 would have them.
struct Parts<'a> {
    protocol: Protocol,
    headers: Cow<'a, Headers>,
    body: Result<Body, BodyError>,
}

fn parts<'a>(message: &'a Message, accept: &Accept) -> Result<Parts<'a>, Unreadable> {
    let has_task = message.headers.get("task").is_some_and(|task| !task.is_null());
    let json = match content(message, accept) {
        Err(_) if !has_task => return Err(Unreadable::NotATask),
        json => json?,
    };
    match (Legacy::is(&json), has_task) {
        (true, _) => {
            let Legacy { headers, body } = match Legacy::decode(&json, &message.headers) {
                Err(_) if !has_task => return Err(Unreadable::NotATask),
                legacy => legacy?,
            };
            match headers.contains_key("task") {
                true => Ok(Parts { protocol: Protocol::One, headers: Cow::Owned(headers), body }),
                false => Err(Unreadable::NotATask),
            }
        }
        (false, true) => {
            let body = Body::decode(&json);
            Ok(Parts { protocol: Protocol::Two, headers: Cow::Borrowed(&message.headers), body })
        }
        (false, false) => Err(Unreadable::NotATask),
    }
}

fn read(message: &Message, parts: Parts<'_>) -> Result<Request, Unreadable> {
    let Parts { protocol, headers, body } = parts;
    let (headers, properties) = (Reader(&headers), &message.properties);
    let task = headers.text("task", MAX_NAME)?.ok_or(Unreadable::NotATask)?;
    let id = headers.text("id", MAX_ID)?.filter(|id| !id.is_empty()).ok_or(Unreadable::MissingHeader("id"))?;
    let (stamped_headers, stamps) = headers.stamps()?;
    Ok(Request {
        protocol,
        task,
        retries: headers.count("retries")?,
        root_id: headers.text("root_id", MAX_ID)?.filter(|id| !id.is_empty()).unwrap_or_else(|| id.clone()),
        parent_id: headers.text("parent_id", MAX_ID)?,
        group: headers.text("group", MAX_ID)?,
        group_index: headers.integer("group_index")?,
        eta: headers.instant("eta")?,
        expires: headers.instant("expires")?,
        time_limit: headers.time_limit()?,
        ignore_result: headers.flag("ignore_result")?,
        priority: properties.priority.unwrap_or(0),
        correlation_id: properties.correlation_id.clone(),
        // Celery writes an empty one where there is none.
        reply_to: properties.reply_to.clone().filter(|reply_to| !reply_to.is_empty()),
        shadow: headers.remark("shadow").filter(|shadow| !shadow.is_empty()),
        origin: headers.remark("origin"),
        lang: headers.remark("lang"),
        argsrepr: headers.remark("argsrepr"),
        kwargsrepr: headers.remark("kwargsrepr"),
        stamped_headers,
        stamps,
        replaced_task_nesting: headers.count("replaced_task_nesting")?,
        custom_headers: Reader(&message.headers).custom(),
        body: body?,
        id,
    })
}

/// The body as JSON text.
fn content<'a>(message: &'a Message, accept: &Accept) -> Result<Cow<'a, [u8]>, Unreadable> {
    let (actual, limit) = (message.body.len(), accept.max_body);
    if actual > limit {
        return Err(Unreadable::TooLarge { actual, limit });
    }
    let compression = match message.headers.get("compression") {
        None | Some(Value::Null) => None,
        Some(Value::String(name)) => {
            Some(name.parse::<Compression>().map_err(|_| Unreadable::Compression(printable(name)))?)
        }
        Some(_) => return Err(Unreadable::WrongHeader { name: "compression", expected: "text" }),
    };
    match packing(message, accept)? {
        Packing::Plain(serializer) => Ok(content::unpack(&message.body, compression, serializer, limit)?),
        Packing::Signed(store) => {
            let sealed = content::decompress(&message.body, compression, limit)?;
            signed(&sealed, store, limit).map(Cow::Owned)
        }
    }
}

enum Packing<'a> {
    Plain(Serializer),
    Signed(&'a CertificateStore),
}

fn packing<'a>(message: &Message, accept: &'a Accept) -> Result<Packing<'a>, Unreadable> {
    let properties = &message.properties;
    let not_accepted = |name: &str| refused(name, "it is not in accept_content".to_owned());
    let serializer = match (properties.content_type.as_deref(), &accept.signed) {
        (Some(security::CONTENT_TYPE), Some(store)) => return Ok(Packing::Signed(store)),
        (Some(security::CONTENT_TYPE), None) => return Err(not_accepted(security::CONTENT_TYPE)),
        (Some(name), _) => serializer(name, properties.content_encoding.as_deref())?,
        (None, _) if matches!(message.body.trim_ascii_start().first(), Some(b'[' | b'{')) => {
            serializer(Serializer::Json.content_type(), properties.content_encoding.as_deref())?
        }
        (None, _) => return Err(refused("none", "the body does not look like JSON either".to_owned())),
    };
    match accept.content.contains(serializer) {
        true => Ok(Packing::Plain(serializer)),
        false if accept.is_signed_only() => {
            let reason = "accept_content takes only what is signed (auth)".to_owned();
            Err(refused(serializer.content_type(), reason))
        }
        false => Err(not_accepted(serializer.content_type())),
    }
}

/// The JSON text in a signed body. As for Celery, who may sign may also choose the serialiser.
pub(crate) fn signed(sealed: &[u8], store: &CertificateStore, limit: usize) -> Result<Vec<u8>, Unreadable> {
    let opened = store.open(sealed, Timestamp::now())?;
    let serializer = serializer(&opened.content_type, Some(&opened.content_encoding))?;
    Ok(content::unpack(&opened.body, None, serializer, limit)?.into_owned())
}

fn serializer(content_type: &str, content_encoding: Option<&str>) -> Result<Serializer, Unreadable> {
    let serializer = content_type.parse::<Serializer>().map_err(|error| {
        let reason = match error {
            SerializerError::Pickle => error.to_string(),
            SerializerError::Unknown(_) => "it is not known; send application/json".to_owned(),
        };
        refused(content_type, reason)
    })?;
    let encoding = content_encoding.map(str::to_ascii_lowercase);
    match (serializer, encoding.as_deref()) {
        (Serializer::Msgpack, _) | (_, None | Some("" | "utf-8" | "utf8" | "us-ascii" | "ascii" | "binary")) => {
            Ok(serializer)
        }
        (_, Some(other)) => Err(Unreadable::ContentEncoding(printable(other))),
    }
}

fn refused(content_type: &str, reason: String) -> Unreadable {
    Unreadable::ContentType { name: printable(content_type), reason }
}

/// Of a name that a stranger chose.
fn printable(name: &str) -> String {
    name.chars().take(MAX_NAME).flat_map(char::escape_debug).collect()
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
            ("compression", json!("application/x-lzma"), "refused-content"),
            ("compression", json!("application/x-gzip"), "undecodable"),
            ("group_index", json!("first"), "bad-header"),
            ("stamped_headers", json!("one"), "bad-header"),
            ("stamped_headers", json!([1]), "bad-header"),
            ("stamps", json!([]), "bad-header"),
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
