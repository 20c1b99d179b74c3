//! Messages of protocol 1, whose body is one object with everything in it, and hybrids, which have headers besides
//! (`celery/worker/strategy.py`; golden/01_amqp_task_messages/61_protocol_1.json).

use std::collections::HashMap;

use serde_json::{Value, value::RawValue};

use crate::{Body, Embed, Headers, body::BodyError, headers::OWN, request::Unreadable};

/// A protocol 1 body, as protocol 2 would have it.
pub(crate) struct Legacy {
    pub headers: Headers,
    /// Apart, so that a task whose arguments are wrong is still known by its id.
    pub body: Result<Body, BodyError>,
}

impl Legacy {
    /// Whether a body is an object, which none of protocol 2 is.
    pub(crate) fn is(json: &[u8]) -> bool {
        json.trim_ascii_start().starts_with(b"{")
    }

    /// What the message's own headers say goes before what the body says. An object with neither a task nor arguments
    /// is no message of anybody's.
    pub(crate) fn decode(json: &[u8], headers: &Headers) -> Result<Self, Unreadable> {
        let mut fields: HashMap<String, Option<Box<RawValue>>> =
            serde_json::from_slice(json).map_err(BodyError::from)?;
        if !["task", "args", "kwargs"].iter().any(|name| fields.contains_key(*name)) {
            return Err(BodyError::WrongShape("it is an object without a task and arguments".to_owned()).into());
        }
        let mut read = Headers::new();
        for name in OWN {
            if let Some(Some(raw)) = fields.remove(name) {
                let value = serde_json::from_str(raw.get());
                let value = value.map_err(|_| Unreadable::WrongHeader { name, expected: "a plain value" })?;
                read.insert(name.to_owned(), value);
            }
        }
        if let Some(Some(taskset)) = fields.remove("taskset") {
            // The name that Celery 2 had for a group.
            read.entry("group").or_insert_with(|| serde_json::from_str(taskset.get()).unwrap_or(Value::Null));
        }
        read.extend(headers.clone());
        let mut part = |name: &str| fields.remove(name).flatten();
        let (callbacks, errbacks, chord) = (part("callbacks"), part("errbacks"), part("chord"));
        let embed = Embed { callbacks, errbacks, chain: None, chord };
        let body = Body::of_parts(part("args"), part("kwargs"), embed);
        Ok(Self { headers: read, body })
    }
}
