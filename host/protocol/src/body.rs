//! The body of a protocol 2 message: `[args, kwargs, embed]`.
//!
//! Arguments stay slices of JSON on their way to the guest; only the embed, which the worker acts on, is read.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The three parts of a protocol 2 body (`celery/app/amqp.py`, `as_task_v2`).
#[derive(Debug)]
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
    /// The name of a part that says something; an empty list says nothing.
    pub fn first(&self) -> Option<&'static str> {
        let says = |part: &Option<Box<RawValue>>| part.as_deref().is_some_and(|part| !is_empty(part.get()));
        let parts = [
            ("callbacks", &self.callbacks),
            ("errbacks", &self.errbacks),
            ("chain", &self.chain),
            ("chord", &self.chord),
        ];
        parts.into_iter().find(|(_, part)| says(part)).map(|(name, _)| name)
    }
}

fn is_empty(json: &str) -> bool {
    json.chars().filter(|character| !character.is_whitespace()).eq("[]".chars())
}

/// Why a body is not one of protocol 2.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the body is not JSON: {0}")]
    NotJson(serde_json::Error),
    #[error("the body is not [args, kwargs, embed]: {0}")]
    WrongShape(serde_json::Error),
    #[error("args is not an array")]
    ArgsNotArray,
    #[error("kwargs is not an object")]
    KwargsNotObject,
}

impl Body {
    /// Split a body without building a tree of its arguments.
    ///
    /// Python's `json` writes `NaN` and `Infinity`, which are not JSON; such a body is refused, since no
    /// guest language could be handed it unchanged.
    ///
    /// # Errors
    /// See [`BodyError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, BodyError> {
        type Parts = (Box<RawValue>, Box<RawValue>, Embed);
        let (args, kwargs, embed): Parts = serde_json::from_slice(bytes).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => BodyError::WrongShape(error),
            _ => BodyError::NotJson(error),
        })?;
        if !args.get().starts_with('[') {
            return Err(BodyError::ArgsNotArray);
        }
        if !kwargs.get().starts_with('{') {
            return Err(BodyError::KwargsNotObject);
        }
        Ok(Self { args, kwargs, embed })
    }

    /// The bytes that Celery's client would publish.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(&(&self.args, &self.kwargs, &self.embed))
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
    fn what_is_no_body_is_refused_with_a_reason() {
        let rows = [
            ("{not json", "not [args, kwargs, embed]"),
            ("not json", "not JSON"),
            ("[[NaN], {}, {}]", "not JSON"),
            ("[[1], {}", "not JSON"),
            ("{}", "not [args, kwargs, embed]"),
            ("[[1], {}]", "not [args, kwargs, embed]"),
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
            let read = Body::decode(&body.encode()).unwrap();
            proptest::prop_assert_eq!(read.args.get(), body.args.get());
            proptest::prop_assert_eq!(read.kwargs.get(), body.kwargs.get());
        }
    }
}
