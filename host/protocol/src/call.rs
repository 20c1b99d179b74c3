//! What a client publishes: a [`Call`] and the protocol 2 message that Celery's own client would make of it.

use std::{collections::BTreeMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::{Map, Value, json, value::RawValue};

use crate::{
    Body, Compression, Embed, Headers, Message, Properties, Serializer, TimeLimit, content::Written, json as text,
    repr, security::Signer, time,
};

/// A value as it stands in JSON: passed on to the task without a change.
pub type Argument = Box<RawValue>;

/// One call of a task by name (`celery/app/base.py`, `send_task`).
#[derive(Clone, Debug, Default)]
pub struct Call {
    pub task: String,
    pub id: String,
    pub args: Vec<Argument>,
    pub kwargs: BTreeMap<String, Argument>,
    pub eta: Option<Timestamp>,
    pub expires: Option<Timestamp>,
    pub time_limit: TimeLimit,
    /// None leaves the choice to the task's own setting.
    pub ignore_result: Option<bool>,
    /// None is 0, unless whoever routes the call knows another.
    pub priority: Option<u8>,
    /// Where it goes, as far as somebody said. Not a part of the message.
    pub queue: Option<String>,
    pub exchange: Option<String>,
    pub routing_key: Option<String>,
    /// Headers of the application's own.
    pub headers: Headers,
    /// Who publishes, such as `gen123@host`.
    pub origin: String,
    /// None for a call that nothing led to: it is its own root.
    pub root_id: Option<String>,
    pub parent_id: Option<String>,
    pub group_id: Option<String>,
    pub group_index: Option<i64>,
    pub retries: u32,
    /// None is the id.
    pub correlation_id: Option<String>,
    pub reply_to: Option<String>,
    pub serializer: Serializer,
    pub signing: Signing,
    pub compression: Option<Compression>,
    /// A name to show instead of the task's.
    pub shadow: Option<String>,
    pub replaced_task_nesting: u32,
    /// The message need not outlive its broker.
    pub transient: bool,
    /// What to show instead of the arguments.
    pub argsrepr: Option<String>,
    pub kwargsrepr: Option<String>,
    pub stamped_headers: Vec<String>,
    pub stamps: Map<String, Value>,
    /// What is to follow.
    pub embed: Embed,
}

/// Whether a call's body is signed.
#[derive(Clone, Debug, Default)]
pub enum Signing {
    #[default]
    No,
    /// Whoever described the call wants it to be; whoever sends it has to know by whom, since until then it is not.
    Wanted,
    By(Arc<Signer>),
}

impl Signing {
    fn signer(&self) -> Option<&Signer> {
        match self {
            Self::No | Self::Wanted => None,
            Self::By(signer) => Some(signer),
        }
    }
}

impl Call {
    /// A call of `task` with a fresh id and no arguments.
    pub fn new(task: impl Into<String>) -> Self {
        Self { task: task.into(), id: uuid::Uuid::new_v4().to_string(), ..Self::default() }
    }

    /// With these arguments by position.
    pub fn with_args<T: Serialize>(self, args: impl IntoIterator<Item = T>) -> Self {
        Self { args: args.into_iter().map(|argument| text::raw(&argument)).collect(), ..self }
    }

    /// With these arguments by name.
    pub fn with_kwargs<T: Serialize>(self, kwargs: impl IntoIterator<Item = (String, T)>) -> Self {
        Self { kwargs: kwargs.into_iter().map(|(name, argument)| (name, text::raw(&argument))).collect(), ..self }
    }

    /// The message as `now`'s Celery client would publish it. Arguments that the serialiser cannot say
    /// ([`Serializer::encode`]) are sent as JSON, which every worker accepts.
    pub fn message(&self, now: Timestamp) -> Message {
        let body = Body { args: text::raw(&self.args), kwargs: text::raw(&self.kwargs), embed: self.embed.clone() };
        let mut headers = self.headers.clone();
        headers.extend(self.own_headers(&body));
        let written = Written::new(body.encode(), self.serializer, self.signing.signer());
        let body = match self.compression {
            None => written.bytes,
            Some(compression) => {
                headers.insert("compression".to_owned(), compression.content_type().into());
                compression.compress(&written.bytes)
            }
        };
        let properties = Properties {
            content_type: Some(written.content_type.to_owned()),
            content_encoding: Some(written.content_encoding.to_owned()),
            delivery_mode: Some(if self.transient { 1 } else { 2 }),
            priority: Some(self.priority.unwrap_or(0)),
            correlation_id: Some(self.correlation_id.clone().unwrap_or_else(|| self.id.clone())),
            reply_to: self.reply_to.clone(),
            expiration: self.expires.and_then(|expires| milliseconds_until(expires, now)),
            ..Properties::default()
        };
        Message { headers, properties, body: body.into() }
    }

    /// Celery's (`celery/app/amqp.py`, `as_task_v2`).
    fn own_headers(&self, body: &Body) -> Headers {
        let shown =
            |given: &Option<String>, raw: fn(&RawValue) -> String, part| given.clone().unwrap_or_else(|| raw(part));
        // Of the names that are not there, Celery makes null.
        let stamped_headers = Some(&self.stamped_headers).filter(|names| !names.is_empty());
        let own = json!({
            "lang": "rust",
            "task": self.task,
            "id": self.id,
            "shadow": self.shadow,
            "eta": self.eta.map(time::format),
            "expires": self.expires.map(time::format),
            "group": self.group_id,
            "group_index": self.group_index,
            "retries": self.retries,
            "timelimit": self.time_limit.to_json(),
            "root_id": self.root_id.as_ref().unwrap_or(&self.id),
            "parent_id": self.parent_id,
            "argsrepr": shown(&self.argsrepr, repr::raw_args, &body.args),
            "kwargsrepr": shown(&self.kwargsrepr, repr::raw_kwargs, &body.kwargs),
            "origin": self.origin,
            "ignore_result": self.ignore_result,
            "replaced_task_nesting": self.replaced_task_nesting,
            "stamped_headers": stamped_headers,
            "stamps": self.stamps,
        });
        match own {
            Value::Object(own) => own,
            _ => Headers::new(),
        }
    }
}

impl TimeLimit {
    /// The header.
    pub(crate) fn to_json(self) -> Value {
        json!([self.hard.map(time::seconds), self.soft.map(time::seconds)])
    }
}

/// The AMQP `expiration` property; what is past expires at once. None for more milliseconds than RabbitMQ takes
/// (about 50 days): the header tells the worker all the same.
pub(crate) fn milliseconds_until(expires: Timestamp, now: Timestamp) -> Option<String> {
    let left = expires.duration_since(now).max(SignedDuration::ZERO);
    u32::try_from(left.as_millis()).ok().map(|left| left.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Request;

    fn now() -> Timestamp {
        "2026-11-24T08:37:16.726306Z".parse().unwrap()
    }

    #[test]
    fn a_call_has_the_headers_that_celery_sends() {
        let call = Call::new("tasks.add").with_args([2, 2]);
        let message = call.message(now());
        // golden/01_amqp_task_messages/01_plain_send_task.json
        let golden = [
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
        ];
        let mut names: Vec<_> = message.headers.keys().map(String::as_str).collect();
        let mut expected = golden.to_vec();
        names.sort_unstable();
        expected.sort_unstable();
        assert_eq!(names, expected);
        assert_eq!(message.headers["argsrepr"], "(2, 2)");
        let request = Request::decode(&message, 1024).unwrap();
        assert_eq!((request.task.as_str(), request.body.args.get()), ("tasks.add", "[2,2]"));
    }

    #[test]
    fn expires_is_told_to_the_worker_and_to_the_broker() {
        let expires = now() + SignedDuration::from_millis(60_500);
        let message = Call { expires: Some(expires), ..Call::new("t") }.message(now());
        assert_eq!(message.headers["expires"], "2026-11-24T08:38:17.226306+00:00");
        assert_eq!(message.properties.expiration.as_deref(), Some("60500"));
        let past = Call { expires: Some(now()), ..Call::new("t") }.message(expires);
        assert_eq!(past.properties.expiration.as_deref(), Some("0"));
        let far = Call { expires: Some(now() + SignedDuration::from_hours(24 * 60)), ..Call::new("t") }.message(now());
        assert_eq!((far.properties.expiration, far.headers["expires"].is_string()), (None, true));
    }

    #[test]
    fn custom_headers_never_replace_celerys() {
        let mut call = Call::new("t");
        call.headers.insert("task".into(), json!("other"));
        call.headers.insert("mine".into(), json!(1));
        let message = call.message(now());
        assert_eq!((&message.headers["task"], &message.headers["mine"]), (&json!("t"), &json!(1)));
    }
}
