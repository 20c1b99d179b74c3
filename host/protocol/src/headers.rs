//! Typed access to a message's headers, for [`crate::request`] alone.

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::{
    Headers,
    request::{TimeLimit, Unreadable},
    time,
};

/// Celery's own headers (`celery/app/amqp.py`, `as_task_v2`); all others belong to the application.
pub(crate) const OWN: [&str; 21] = [
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

/// Names of stamps that one message may carry.
const MAX_STAMPS: usize = 100;

/// JSON null is absence, as in Python's `headers.get`.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a>(pub &'a Headers);

impl Reader<'_> {
    fn get(&self, name: &'static str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&self, name: &'static str, longest: usize) -> Result<Option<String>, Unreadable> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.len() <= longest && !text.contains('\0') => Ok(Some(text.clone())),
            Some(Value::String(_)) => Err(Unreadable::WrongHeader { name, expected: "at most 255 bytes without NUL" }),
            Some(_) => Err(Unreadable::WrongHeader { name, expected: "text" }),
        }
    }

    /// Something for people; what is no text is not worth a refusal.
    pub(crate) fn remark(&self, name: &'static str) -> Option<String> {
        self.get(name)?.as_str().map(str::to_owned)
    }

    pub(crate) fn count(&self, name: &'static str) -> Result<u32, Unreadable> {
        let Some(value) = self.get(name) else {
            return Ok(0);
        };
        let count = value.as_u64().and_then(|count| u32::try_from(count).ok());
        count.ok_or(Unreadable::WrongHeader { name, expected: "a count" })
    }

    pub(crate) fn integer(&self, name: &'static str) -> Result<Option<i64>, Unreadable> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        value.as_i64().map(Some).ok_or(Unreadable::WrongHeader { name, expected: "an integer" })
    }

    pub(crate) fn flag(&self, name: &'static str) -> Result<Option<bool>, Unreadable> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        value.as_bool().map(Some).ok_or(Unreadable::WrongHeader { name, expected: "true or false" })
    }

    /// Some clients write an empty text where there is no time.
    pub(crate) fn instant(&self, name: &'static str) -> Result<Option<Timestamp>, Unreadable> {
        let Some(value) = self.get(name).filter(|value| value.as_str() != Some("")) else {
            return Ok(None);
        };
        let instant = value.as_str().and_then(|text| time::parse(text).ok());
        instant.map(Some).ok_or(Unreadable::WrongHeader { name, expected: "an ISO 8601 time" })
    }

    pub(crate) fn time_limit(&self) -> Result<TimeLimit, Unreadable> {
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

    /// The names of the stamps, and their values; a stamp without a name in `stamped_headers` is none
    /// (`celery/worker/request.py`, `Request.stamps`).
    pub(crate) fn stamps(&self) -> Result<(Vec<String>, Map<String, Value>), Unreadable> {
        const NAMES: Unreadable = Unreadable::WrongHeader { name: "stamped_headers", expected: "a list of names" };
        let names: Vec<String> = match self.get("stamped_headers") {
            None => Vec::new(),
            Some(Value::Array(names)) if names.len() <= MAX_STAMPS => {
                let names = names.iter().map(|name| name.as_str().map(str::to_owned));
                names.collect::<Option<_>>().ok_or(NAMES)?
            }
            Some(_) => return Err(NAMES),
        };
        let stamps = match self.get("stamps") {
            None => Map::new(),
            Some(Value::Object(stamps)) => {
                let named = names.iter().filter_map(|name| stamps.get_key_value(name));
                named.map(|(name, value)| (name.clone(), value.clone())).collect()
            }
            Some(_) => return Err(Unreadable::WrongHeader { name: "stamps", expected: "an object" }),
        };
        Ok((names, stamps))
    }

    pub(crate) fn custom(&self) -> Headers {
        let is_custom = |name: &str| !OWN.contains(&name);
        self.0.iter().filter(|(name, _)| is_custom(name)).map(|(k, v)| (k.clone(), v.clone())).collect()
    }
}
