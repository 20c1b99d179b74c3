//! The message of a task that is tried again (`celery/app/task.py`, `retry` and `signature_from_request`;
//! golden/03_result_backend_redis/04_retry_then_success.json).

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json, value::RawValue};

use crate::{
    Body, Headers, Message, Properties, Protocol, Request, Serializer, TimeLimit,
    call::milliseconds_until,
    content::Written,
    options::{Expires, Fields, MaxRetries, OptionError, Options},
    repr,
    security::Signer,
    time,
};

/// What RabbitMQ writes of a dead letter's way; it would take the retry for a message in circles. The count of a quorum
/// queue is the first message's own.
const OF_THE_BROKER: [&str; 8] = [
    "x-death",
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-last-death-exchange",
    "x-last-death-queue",
    "x-last-death-reason",
    "x-delivery-count",
];

/// What is to differ from the first message, in Celery's names.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// None is at once: the ETA of the first message is over.
    pub eta: Option<Timestamp>,
    /// None leaves it as it was; so below.
    pub expires: Option<Timestamp>,
    pub priority: Option<u8>,
    /// Where it goes. Not a part of the message.
    pub queue: Option<String>,
    /// A JSON array.
    pub args: Option<Box<RawValue>>,
    /// A JSON object.
    pub kwargs: Option<Box<RawValue>>,
    /// Each of them none leaves it as it was.
    pub time_limit: TimeLimit,
}

/// What a guest asks for with its retry.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Seconds; none where an ETA is named, or neither.
    pub countdown: Option<f64>,
    pub eta: Option<Timestamp>,
    pub max_retries: Option<MaxRetries>,
    pub expires: Option<Expires>,
    /// The rest.
    pub changes: Changes,
}

impl Asked {
    /// Read a JSON object: `retry-request.options` of sdk/wit/task.wit.
    ///
    /// # Errors
    /// For an option whose value makes no sense, with its name.
    pub fn parse(json: &str) -> Result<Self, OptionError> {
        let fields = serde_json::from_str::<BTreeMap<String, Box<RawValue>>>(json);
        let fields = Fields(fields.map_err(|_| OptionError::NotAnObject)?);
        let options = Options::of_fields(&fields)?;
        let changes = Changes {
            eta: None,
            expires: None,
            priority: options.priority,
            queue: options.queue,
            args: fields.parts("args", '[', "an array")?,
            kwargs: fields.parts("kwargs", '{', "an object")?,
            time_limit: options.time_limit,
        };
        let (countdown, eta) = (options.countdown, options.eta);
        Ok(Self { countdown, eta, max_retries: options.max_retries, expires: options.expires, changes })
    }
}

/// The message that runs `request`, which came as `original`, once more. Its body stays as it came, byte for byte and
/// with its signature, unless the arguments change; then it is JSON, signed if there is a signer.
pub fn message(
    original: &Message,
    request: &Request,
    changes: &Changes,
    signer: Option<&Signer>,
    now: Timestamp,
) -> Message {
    let expires = changes.expires.or(request.expires);
    let mut headers = request.custom_headers.clone();
    headers.retain(|name, _| !OF_THE_BROKER.contains(&name.as_str()));
    headers.extend(own_headers(request, changes, expires));
    let mut properties = Properties {
        priority: changes.priority.or(original.properties.priority),
        correlation_id: request.correlation_id.clone().or_else(|| Some(request.id.clone())),
        expiration: expires.and_then(|expires| milliseconds_until(expires, now)),
        ..original.properties.clone()
    };
    let same_body = request.protocol == Protocol::Two && changes.args.is_none() && changes.kwargs.is_none();
    let body = match same_body {
        true => {
            let compression = original.headers.get("compression").filter(|name| !name.is_null());
            headers.extend(compression.map(|name| ("compression".to_owned(), name.clone())));
            original.body.clone()
        }
        false => {
            let written = Written::new(changed_body(request, changes).encode(), Serializer::Json, signer);
            properties.content_type = Some(written.content_type.to_owned());
            properties.content_encoding = Some(written.content_encoding.to_owned());
            written.bytes.into()
        }
    };
    Message { headers, properties, body }
}

fn changed_body(request: &Request, changes: &Changes) -> Body {
    let Body { args, kwargs, embed } = request.body.clone();
    Body { args: changes.args.clone().unwrap_or(args), kwargs: changes.kwargs.clone().unwrap_or(kwargs), embed }
}

/// Celery's. The parent of a retry is the task itself.
fn own_headers(request: &Request, changes: &Changes, expires: Option<Timestamp>) -> Headers {
    let shown = |new: Option<&RawValue>, raw: fn(&RawValue) -> String, old: &Option<String>, part: &RawValue| match (
        new, old,
    ) {
        (Some(new), _) => raw(new),
        (None, Some(old)) => old.clone(),
        (None, None) => raw(part),
    };
    let (body, limit) = (&request.body, request.time_limit);
    let time_limit =
        TimeLimit { hard: changes.time_limit.hard.or(limit.hard), soft: changes.time_limit.soft.or(limit.soft) };
    let stamped_headers = Some(&request.stamped_headers).filter(|names| !names.is_empty());
    let own: [(&str, Value); 19] = [
        ("lang", request.lang.as_deref().unwrap_or("rust").into()),
        ("task", request.task.as_str().into()),
        ("id", request.id.as_str().into()),
        ("shadow", json!(request.shadow)),
        ("eta", json!(changes.eta.map(time::format))),
        ("expires", json!(expires.map(time::format))),
        ("group", json!(request.group)),
        ("group_index", json!(request.group_index)),
        ("retries", request.retries.saturating_add(1).into()),
        ("timelimit", time_limit.to_json()),
        ("root_id", request.root_id.as_str().into()),
        ("parent_id", request.id.as_str().into()),
        ("argsrepr", shown(changes.args.as_deref(), repr::raw_args, &request.argsrepr, &body.args).into()),
        ("kwargsrepr", shown(changes.kwargs.as_deref(), repr::raw_kwargs, &request.kwargsrepr, &body.kwargs).into()),
        ("origin", json!(request.origin)),
        ("ignore_result", json!(request.ignore_result)),
        ("replaced_task_nesting", request.replaced_task_nesting.into()),
        ("stamped_headers", json!(stamped_headers)),
        ("stamps", Value::Object(request.stamps.clone())),
    ];
    Map::from_iter(own.map(|(name, value)| (name.to_owned(), value)))
}
