//! JSON text, written value by value from another format, and read to be written in one.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::{ContentError, MAX_DEPTH};

/// Something without parts.
pub(super) enum Scalar<'a> {
    Null,
    Bool(bool),
    /// Digits with or without a minus.
    Integer(&'a str),
    Float(f64),
    Text(&'a str),
    Bytes(&'a [u8]),
    /// kombu's tag, and its value.
    Tagged(&'static str, &'a str),
}

/// JSON in the making: the caller says what comes, the punctuation comes by itself.
pub(super) struct JsonText {
    text: Vec<u8>,
    /// Bytes.
    limit: usize,
    open: Vec<Open>,
}

enum Open {
    Array { empty: bool },
    Object { empty: bool, next: Side },
}

enum Side {
    Key,
    Value,
}

enum Place {
    Value,
    Key,
}

impl JsonText {
    pub(super) fn new(limit: usize) -> Self {
        Self { text: Vec::new(), limit, open: Vec::new() }
    }

    pub(super) fn open_array(&mut self) -> Result<(), ContentError> {
        self.place_for_parts()?;
        self.push(b"[")?;
        self.nest(Open::Array { empty: true })
    }

    pub(super) fn open_object(&mut self) -> Result<(), ContentError> {
        self.place_for_parts()?;
        self.push(b"{")?;
        self.nest(Open::Object { empty: true, next: Side::Key })
    }

    /// Whatever was opened last.
    pub(super) fn close(&mut self) -> Result<(), ContentError> {
        match self.open.pop() {
            Some(Open::Array { .. }) => self.push(b"]"),
            Some(Open::Object { .. }) => self.push(b"}"),
            None => Ok(()),
        }
    }

    pub(super) fn scalar(&mut self, scalar: &Scalar<'_>) -> Result<(), ContentError> {
        match self.place()? {
            Place::Value => self.value(scalar),
            Place::Key => self.key(scalar),
        }
    }

    /// Where the value that comes next will begin.
    pub(super) fn value_start(&self) -> usize {
        let comma = match self.open.last() {
            None => false,
            Some(Open::Array { empty } | Open::Object { empty, next: Side::Key }) => !empty,
            Some(Open::Object { next: Side::Value, .. }) => true,
        };
        self.text.len() + usize::from(comma)
    }

    /// Where the text ends so far.
    pub(super) fn end(&self) -> usize {
        self.text.len()
    }

    /// A value that was written before, once more.
    pub(super) fn again(&mut self, range: std::ops::Range<usize>) -> Result<(), ContentError> {
        let is_text = self.text[range.clone()].starts_with(b"\"");
        let has_parts = self.text[range.clone()].starts_with(b"[") || self.text[range.clone()].starts_with(b"{");
        let quoted = match self.place()? {
            Place::Key if has_parts => return Err(ContentError::NotJson("a key that is no text")),
            Place::Key => !is_text,
            Place::Value => false,
        };
        let more = range.len() + 2;
        if self.text.len() + more > self.limit {
            return Err(ContentError::TooLarge { limit: self.limit });
        }
        let quote: &[u8] = if quoted { b"\"" } else { b"" };
        self.text.extend_from_slice(quote);
        self.text.extend_from_within(range);
        self.text.extend_from_slice(quote);
        Ok(())
    }

    pub(super) fn is_whole(&self) -> bool {
        self.open.is_empty() && !self.text.is_empty()
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.text
    }

    fn place_for_parts(&mut self) -> Result<(), ContentError> {
        match self.place()? {
            Place::Value => Ok(()),
            Place::Key => Err(ContentError::NotJson("a key that is no text")),
        }
    }

    /// Write what has to stand before the next value or key.
    fn place(&mut self) -> Result<Place, ContentError> {
        let (before, place): (&[u8], Place) = match self.open.last_mut() {
            None => (b"", Place::Value),
            Some(Open::Array { empty }) => (if std::mem::take(empty) { b"" } else { b"," }, Place::Value),
            Some(Open::Object { empty, next }) => match next {
                Side::Key => {
                    *next = Side::Value;
                    (if std::mem::take(empty) { b"" } else { b"," }, Place::Key)
                }
                Side::Value => {
                    *next = Side::Key;
                    (b":", Place::Value)
                }
            },
        };
        self.push(before)?;
        Ok(place)
    }

    fn nest(&mut self, open: Open) -> Result<(), ContentError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(ContentError::TooDeep);
        }
        self.open.push(open);
        Ok(())
    }

    fn value(&mut self, scalar: &Scalar<'_>) -> Result<(), ContentError> {
        match *scalar {
            Scalar::Null => self.push(b"null"),
            Scalar::Bool(true) => self.push(b"true"),
            Scalar::Bool(false) => self.push(b"false"),
            Scalar::Integer(digits) => self.push(digits.as_bytes()),
            Scalar::Float(float) if float.is_finite() => self.push(Value::from(float).to_string().as_bytes()),
            Scalar::Float(_) => Err(ContentError::NotJson("a number that is not finite")),
            Scalar::Text(text) => self.text(text),
            Scalar::Bytes(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => self.tagged("bytes", text),
                Err(_) => self.tagged("base64", &STANDARD.encode(bytes)),
            },
            Scalar::Tagged(tag, text) => self.tagged(tag, text),
        }
    }

    /// As Python's `json` writes keys that are no text; bytes are taken for text, which is what msgpack's old form meant.
    fn key(&mut self, scalar: &Scalar<'_>) -> Result<(), ContentError> {
        match *scalar {
            Scalar::Text(text) | Scalar::Tagged(_, text) => self.text(text),
            Scalar::Bytes(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => self.text(text),
                Err(_) => Err(ContentError::NotJson("a key that is no text")),
            },
            Scalar::Null | Scalar::Bool(_) | Scalar::Integer(_) | Scalar::Float(_) => {
                self.push(b"\"")?;
                self.value(scalar)?;
                self.push(b"\"")
            }
        }
    }

    fn tagged(&mut self, tag: &str, text: &str) -> Result<(), ContentError> {
        self.push(br#"{"__type__":"#)?;
        self.text(tag)?;
        self.push(br#","__value__":"#)?;
        self.text(text)?;
        self.push(b"}")
    }

    fn text(&mut self, text: &str) -> Result<(), ContentError> {
        // Before it is copied; escapes can make it longer still.
        if text.len() > self.limit {
            return Err(ContentError::TooLarge { limit: self.limit });
        }
        self.push(Value::from(text).to_string().as_bytes())
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), ContentError> {
        if self.text.len() + bytes.len() > self.limit {
            return Err(ContentError::TooLarge { limit: self.limit });
        }
        self.text.extend_from_slice(bytes);
        Ok(())
    }
}

/// What `json` says, as a tree.
pub(super) fn tree(json: &str) -> Result<Value, ContentError> {
    if has_wide_integer(json) {
        return Err(ContentError::WideInteger);
    }
    serde_json::from_str(json).map_err(|error| ContentError::Malformed {
        serializer: super::Serializer::Json,
        reason: crate::json::reason(&error),
    })
}

/// The bytes that kombu's JSON tags as such.
pub(super) fn bytes_of(object: &serde_json::Map<String, Value>) -> Option<Vec<u8>> {
    let text = match (object.len(), object.get("__value__")) {
        (2, Some(Value::String(text))) => text,
        _ => return None,
    };
    match object.get("__type__")?.as_str()? {
        "bytes" => Some(text.as_bytes().to_vec()),
        "base64" => STANDARD.decode(text).ok(),
        _ => None,
    }
}

/// Whether an integer stands in the text that a tree would turn into a float.
fn has_wide_integer(json: &str) -> bool {
    let (mut in_string, mut escaped, mut start) = (false, false, None);
    let number = |character: u8| character.is_ascii_digit() || matches!(character, b'-' | b'+' | b'.' | b'e' | b'E');
    for (index, byte) in json.bytes().chain([b' ']).enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            byte if number(byte) => {
                start.get_or_insert(index);
            }
            _ => {
                let digits = start.take().map_or("", |start| &json[start..index]);
                // The `e` of `true` and `false` is no number; an integer is all digits.
                let is_integer = digits.trim_start_matches('-').bytes().all(|digit| digit.is_ascii_digit());
                if is_integer && digits.len() > 18 && digits.parse::<u64>().is_err() && digits.parse::<i64>().is_err() {
                    return true;
                }
            }
        }
    }
    false
}
