//! What a client publishes: a [`Call`] and the protocol 2 message that Celery's own client would make of it.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json, value::to_raw_value};

use crate::{Body, Embed, Headers, Message, Properties, TimeLimit, repr, time};

/// One call of a task by name (`celery/app/base.py`, `send_task`).
#[derive(Clone, Debug, Default)]
pub struct Call {
    pub task: String,
    pub id: String,
    pub args: Vec<Value>,
    pub kwargs: Map<String, Value>,
    pub eta: Option<Timestamp>,
    pub expires: Option<Timestamp>,
    pub time_limit: TimeLimit,
    /// None leaves the choice to the task's own setting.
    pub ignore_result: Option<bool>,
    pub priority: u8,
    /// Headers of the application's own.
    pub headers: Headers,
    /// Who publishes, such as `gen123@host`.
    pub origin: String,
}

impl Call {
    /// A call of `task` with a fresh id and no arguments.
    pub fn new(task: impl Into<String>) -> Self {
        Self { task: task.into(), id: uuid::Uuid::new_v4().to_string(), ..Self::default() }
    }

    /// The message as `now`'s Celery client would publish it.
    pub fn message(&self, now: Timestamp) -> Message {
        let own = json!({
            "lang": "rust",
            "task": self.task,
            "id": self.id,
            "shadow": null,
            "eta": self.eta.map(time::format),
            "expires": self.expires.map(time::format),
            "group": null,
            "group_index": null,
            "retries": 0,
            "timelimit": [seconds(self.time_limit.hard), seconds(self.time_limit.soft)],
            "root_id": self.id,
            "parent_id": null,
            "argsrepr": repr::args(&self.args),
            "kwargsrepr": repr::kwargs(&self.kwargs),
            "origin": self.origin,
            "ignore_result": self.ignore_result,
            "replaced_task_nesting": 0,
            "stamped_headers": null,
            "stamps": {},
        });
        let mut headers = self.headers.clone();
        headers.extend(own.as_object().expect("the literal above is an object").clone());
        let body = Body {
            args: to_raw_value(&self.args).expect("JSON values always serialise"),
            kwargs: to_raw_value(&self.kwargs).expect("JSON values always serialise"),
            embed: Embed::default(),
        };
        let properties = Properties {
            priority: Some(self.priority),
            correlation_id: Some(self.id.clone()),
            expiration: self.expires.and_then(|expires| milliseconds_until(expires, now)),
            ..Properties::persistent_json()
        };
        Message { headers, properties, body: body.encode().into() }
    }
}

/// Celery's clients send whole seconds as integers.
fn seconds(limit: Option<f64>) -> Value {
    match limit {
        None => Value::Null,
        Some(limit) if limit.fract() == 0.0 && limit < 9e15 => Value::from(limit as i64),
        Some(limit) => Value::from(limit),
    }
}

/// The AMQP `expiration` property; what is past expires at once. None for more milliseconds than RabbitMQ takes
/// (about 50 days): the header tells the worker all the same.
fn milliseconds_until(expires: Timestamp, now: Timestamp) -> Option<String> {
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
        let call = Call { args: vec![json!(2), json!(2)], ..Call::new("tasks.add") };
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
