//! JSON text that is passed on as it is.

use std::fmt::Display;

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

/// How deeply a guest's values may be nested. Python's parser gives up at about a thousand, and takes the client's other
/// pending results down with it.
pub const MAX_DEPTH: usize = 100;

/// A parser's complaint is cut here (bytes).
const MAX_REASON: usize = 300;

/// Why a text is not passed on.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    #[error("it is not JSON: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("it is nested more than {MAX_DEPTH} deep")]
    TooDeep,
}

/// The text, if it is one JSON value that every client can read.
///
/// # Errors
/// See [`JsonError`].
pub fn parse(text: String) -> Result<Box<RawValue>, JsonError> {
    if is_deeper_than(text.as_bytes(), MAX_DEPTH) {
        return Err(JsonError::TooDeep);
    }
    Ok(RawValue::from_string(text)?)
}

/// Plain values as JSON text.
///
/// # Panics
/// For a map whose keys are no text; maps of anything else always serialise.
pub fn raw<T: Serialize + ?Sized>(value: &T) -> Box<RawValue> {
    to_raw_value(value).expect("plain values always serialise")
}

/// What a parser says of a text that a stranger wrote. It may quote the text, so it is cut.
pub(crate) fn reason(error: &dyn Display) -> String {
    let mut reason = error.to_string();
    if reason.len() > MAX_REASON {
        reason.truncate(reason.floor_char_boundary(MAX_REASON));
        reason.push_str("...");
    }
    reason
}

/// Counts brackets outside of strings; what is no JSON at all is left to the parser.
pub(crate) fn is_deeper_than(text: &[u8], most: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for &byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > most {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_every_client_can_read_is_passed_on() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(nested(MAX_DEPTH)).is_ok());
        assert!(matches!(parse(nested(MAX_DEPTH + 1)), Err(JsonError::TooDeep)));
        let text = format!(r#"["\"{}"]"#, "[".repeat(5000));
        assert!(parse(text).is_ok());
        for malformed in ["{no json", "", "NaN", "1 2"] {
            assert!(matches!(parse(malformed.to_owned()), Err(JsonError::Malformed(_))), "{malformed}");
        }
    }
}
