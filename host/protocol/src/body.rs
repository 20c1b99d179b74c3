//! The body of a protocol 2 message: `[args, kwargs, embed]`.
//!
//! Arguments stay slices of JSON on their way to the guest; only the embed, which the worker acts on, is read.
//! Bodies of protocol 1 become this too ([`crate::request`]).

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{content::ContentError, json};

/// The three parts of a protocol 2 body (`celery/app/amqp.py`, `as_task_v2`).
#[derive(Clone, Debug)]
pub struct Body {
    /// A JSON array.
    pub args: Box<RawValue>,
    /// A JSON object.
    pub kwargs: Box<RawValue>,
    pub embed: Embed,
}

/// What is to follow a task; the signatures stay as they came.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Embed {
    pub callbacks: Option<Box<RawValue>>,
    pub errbacks: Option<Box<RawValue>>,
    pub chain: Option<Box<RawValue>>,
    pub chord: Option<Box<RawValue>>,
}

impl Embed {
    /// The name of the part that asks for more than callbacks and errbacks; an empty list asks for nothing.
    pub fn canvas(&self) -> Option<&'static str> {
        let says = |part: &Option<Box<RawValue>>| part.as_deref().is_some_and(|part| !is_empty(part.get()));
        let parts = [("chain", &self.chain), ("chord", &self.chord)];
        parts.into_iter().find(|(_, part)| says(part)).map(|(name, _)| name)
    }
}

/// An array of exactly three; a tuple's own deserialiser takes a fourth for a syntax error.
struct Parts(Option<Box<RawValue>>, Option<Box<RawValue>>, Option<Embed>);

impl<'de> Deserialize<'de> for Parts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(PartsVisitor)
    }
}

struct PartsVisitor;

impl<'de> Visitor<'de> for PartsVisitor {
    type Value = Parts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of three")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Parts, A::Error> {
        let missing = |count| A::Error::invalid_length(count, &self);
        let args = parts.next_element()?.ok_or_else(|| missing(0))?;
        let kwargs = parts.next_element()?.ok_or_else(|| missing(1))?;
        let embed = parts.next_element()?.ok_or_else(|| missing(2))?;
        match parts.next_element::<IgnoredAny>()? {
            None => Ok(Parts(args, kwargs, embed)),
            Some(_) => Err(missing(4)),
        }
    }
}

/// A signature by itself becomes an array of one (Celery's `maybe_list`).
pub(crate) fn list(part: Box<RawValue>) -> Box<RawValue> {
    if part.get().starts_with('[') { part } else { json::raw(&[part]) }
}

fn is_empty(json: &str) -> bool {
    json.chars().filter(|character| !character.is_whitespace()).eq("[]".chars())
}

/// Why a body is not one of protocol 2.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error("the body is not JSON: {0}")]
    NotJson(String),
    #[error("the body is not [args, kwargs, embed]: {0}")]
    WrongShape(String),
    #[error("args is not an array")]
    ArgsNotArray,
    #[error("kwargs is not an object")]
    KwargsNotObject,
}

impl From<serde_json::Error> for BodyError {
    fn from(error: serde_json::Error) -> Self {
        let reason = json::reason(&error);
        match error.classify() {
            serde_json::error::Category::Data => Self::WrongShape(reason),
            serde_json::error::Category::Io
            | serde_json::error::Category::Syntax
            | serde_json::error::Category::Eof => Self::NotJson(reason),
        }
    }
}

impl Body {
    /// Split a body without building a tree of its arguments. A null says as much as an empty part.
    ///
    /// Python's `json` writes `NaN` and `Infinity`, which are not JSON; such a body is refused, since no
    /// guest language could be handed it unchanged.
    ///
    /// # Errors
    /// See [`BodyError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, BodyError> {
        let Parts(args, kwargs, embed) = serde_json::from_slice(bytes)?;
        Self::of_parts(args, kwargs, embed.unwrap_or_default())
    }

    pub(crate) fn of_parts(
        args: Option<Box<RawValue>>,
        kwargs: Option<Box<RawValue>>,
        embed: Embed,
    ) -> Result<Self, BodyError> {
        let args = args.unwrap_or_else(|| json::raw(&[(); 0]));
        let kwargs = kwargs.unwrap_or_else(|| json::raw(&serde_json::Map::new()));
        if !args.get().starts_with('[') {
            return Err(BodyError::ArgsNotArray);
        }
        if !kwargs.get().starts_with('{') {
            return Err(BodyError::KwargsNotObject);
        }
        Ok(Self { args, kwargs, embed })
    }

    /// The JSON text that Celery's client would publish.
    pub fn encode(&self) -> String {
        serde_json::to_string(&(&self.args, &self.kwargs, &self.embed))
            .expect("raw JSON and optional raw JSON always serialise")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = r#"[[2, 2], {"k": 1}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]"#;

    #[test]
    fn arguments_pass_through_unparsed() {
        let body = Body::decode(GOLDEN.as_bytes()).unwrap();
        assert_eq!((body.args.get(), body.kwargs.get()), ("[2, 2]", r#"{"k": 1}"#));
        assert!(body.embed.chain.is_none());
    }

    #[test]
    fn a_reason_does_not_repeat_the_whole_body() {
        let body = format!("[[], {{}}, \"{}\"]", "x".repeat(100_000));
        assert!(Body::decode(body.as_bytes()).unwrap_err().to_string().len() < 500);
    }

    #[test]
    fn a_null_is_an_empty_part() {
        let body = Body::decode(b"[null, null, null]").unwrap();
        assert_eq!((body.args.get(), body.kwargs.get(), body.embed.canvas()), ("[]", "{}", None));
    }

    #[test]
    fn a_chain_is_seen_behind_callbacks() {
        let rows = [
            (r#"{"callbacks": [{"task": "t"}], "chain": [{"task": "t"}]}"#, Some("chain")),
            (r#"{"errbacks": [{"task": "t"}], "chord": {"task": "t"}}"#, Some("chord")),
            (r#"{"callbacks": [{"task": "t"}], "chain": [ ], "chord": null}"#, None),
        ];
        for (embed, expected) in rows {
            let body = Body::decode(format!("[[], {{}}, {embed}]").as_bytes()).unwrap();
            assert_eq!(body.embed.canvas(), expected, "{embed}");
        }
    }

    #[test]
    fn what_is_no_body_is_refused_with_a_reason() {
        let rows = [
            ("{not json", "not [args, kwargs, embed]"),
            ("not json", "not JSON"),
            ("[[NaN], {}, {}]", "not JSON"),
            ("[[1], {}", "not JSON"),
            ("{}", "not [args, kwargs, embed]"),
            ("[[1], {}]", "not [args, kwargs, embed]"),
            ("[[1], {}, {}, 4]", "not [args, kwargs, embed]"),
            (r#"["text", {}, {}]"#, "args is not an array"),
            ("[[], [], {}]", "kwargs is not an object"),
        ];
        for (body, reason) in rows {
            let error = Body::decode(body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{body}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = Body::decode(&bytes);
        }

        #[test]
        fn a_body_survives_the_round_trip(x: i64, text: String) {
            let args = serde_json::value::to_raw_value(&(x, &text)).unwrap();
            let kwargs = serde_json::value::to_raw_value(&serde_json::json!({ "text": text })).unwrap();
            let body = Body { args, kwargs, embed: Embed::default() };
            let read = Body::decode(body.encode().as_bytes()).unwrap();
            proptest::prop_assert_eq!(read.args.get(), body.args.get());
            proptest::prop_assert_eq!(read.kwargs.get(), body.kwargs.get());
        }
    }
}
