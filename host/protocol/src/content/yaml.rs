//! YAML as PyYAML's safe loader understands it: version 1.1's plain scalars, no tags of any language's own
//! (`kombu/serialization.py`, `register_yaml`).

use std::{borrow::Cow, collections::HashMap, ops::Range};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::civil::{Date, DateTime};
use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::Value;

use super::{
    ContentError, Serializer,
    text::{JsonText, Scalar, bytes_of},
};

/// PyYAML looks no further for the colon behind a key.
const LONGEST_SIMPLE_KEY: usize = 1000;

/// JSON text of one document. An alias is a copy of what its anchor stands for, so the limit bounds both together.
pub(super) fn read(bytes: &[u8], limit: usize) -> Result<Vec<u8>, ContentError> {
    let text = std::str::from_utf8(bytes).map_err(|error| malformed(&error))?;
    let mut reader = Reader { json: JsonText::new(limit), open: Vec::new(), anchors: HashMap::new() };
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, _) = event.map_err(|error| malformed(&error))?;
        documents += usize::from(matches!(event, Event::DocumentStart(_)));
        if documents > 1 {
            return Err(malformed(&"more than one document"));
        }
        reader.event(event)?;
    }
    match reader.json.is_whole() {
        true => Ok(reader.json.finish()),
        false => Err(malformed(&"no value")),
    }
}

struct Reader {
    json: JsonText,
    /// Arrays and objects that have not ended: their anchors, and where they began.
    open: Vec<Begun>,
    /// Where anchored values stand in the text, by number.
    anchors: HashMap<usize, Range<usize>>,
}

struct Begun {
    anchor: usize,
    start: usize,
}

impl Reader {
    fn event(&mut self, event: Event<'_>) -> Result<(), ContentError> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {
                Ok(())
            }
            Event::SequenceStart(anchor, tag) => {
                known(tag.as_deref(), "seq")?;
                self.open.push(Begun { anchor, start: self.json.value_start() });
                self.json.open_array()
            }
            Event::MappingStart(anchor, tag) => {
                known(tag.as_deref(), "map")?;
                self.open.push(Begun { anchor, start: self.json.value_start() });
                self.json.open_object()
            }
            Event::SequenceEnd | Event::MappingEnd => {
                self.json.close()?;
                if let Some(Begun { anchor, start }) = self.open.pop() {
                    self.remember(anchor, start);
                }
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                let start = self.json.value_start();
                self.scalar(&text, style, tag.as_deref())?;
                self.remember(anchor, start);
                Ok(())
            }
            // An anchor that has not ended holds itself.
            Event::Alias(anchor) => match self.anchors.get(&anchor) {
                Some(range) => self.json.again(range.clone()),
                None => Err(ContentError::NotJson("a value within itself")),
            },
        }
    }

    fn remember(&mut self, anchor: usize, start: usize) {
        // 0 is no anchor.
        if anchor > 0 {
            self.anchors.insert(anchor, start..self.json.end());
        }
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<(), ContentError> {
        let json = &mut self.json;
        match tag.map(name) {
            None if style == ScalarStyle::Plain => plain(json, text),
            None | Some(Some("str")) => json.scalar(&Scalar::Text(text)),
            Some(Some("null" | "bool" | "int" | "float" | "timestamp")) => plain(json, text),
            Some(Some("binary")) => {
                let packed: String = text.split_whitespace().collect();
                let bytes = STANDARD.decode(packed).map_err(|error| malformed(&error))?;
                json.scalar(&Scalar::Bytes(&bytes))
            }
            Some(_) => Err(ContentError::NotJson("a YAML tag of its own")),
        }
    }
}

/// Of a tag of YAML's own; `!` alone says that a scalar is text.
fn name(tag: &Tag) -> Option<&str> {
    match (tag.is_yaml_core_schema(), tag.handle.as_str(), tag.suffix.as_str()) {
        (true, _, suffix) => Some(suffix),
        (false, "" | "!", "" | "!") => Some("str"),
        (false, ..) => None,
    }
}

fn known(tag: Option<&Tag>, expected: &str) -> Result<(), ContentError> {
    match tag.map(name) {
        None => Ok(()),
        Some(Some(name)) if name == expected => Ok(()),
        Some(_) => Err(ContentError::NotJson("a YAML tag of its own")),
    }
}

/// An unquoted scalar, as PyYAML's resolver sees it. Sexagesimal numbers (`1:30`), which Python never writes, stay text.
fn plain(json: &mut JsonText, text: &str) -> Result<(), ContentError> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return json.scalar(&Scalar::Null),
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => {
            return json.scalar(&Scalar::Bool(true));
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return json.scalar(&Scalar::Bool(false));
        }
        "<<" | "=" => return Err(ContentError::NotJson("a YAML merge key")),
        _ => {}
    }
    if let Some(digits) = integer(text) {
        return json.scalar(&Scalar::Integer(&digits));
    }
    if let Some(float) = float(text) {
        return json.scalar(&Scalar::Float(float));
    }
    match time(text) {
        Some((tag, value)) => json.scalar(&Scalar::Tagged(tag, &value)),
        None => json.scalar(&Scalar::Text(text)),
    }
}

/// In JSON's spelling; decimal ones may be of any length.
fn integer(text: &str) -> Option<Cow<'_, str>> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let sign = if text.starts_with('-') { "-" } else { "" };
    if unsigned == "0" {
        return Some(Cow::Borrowed("0"));
    }
    if unsigned.starts_with(|first: char| matches!(first, '1'..='9')) {
        let is_decimal = unsigned.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
        return is_decimal.then(|| match text.contains(['_', '+']) {
            true => Cow::Owned(format!("{sign}{}", unsigned.replace('_', ""))),
            false => Cow::Borrowed(text),
        });
    }
    let (digits, radix) = match unsigned.strip_prefix('0')? {
        rest if rest.starts_with('x') => (&rest[1..], 16),
        rest if rest.starts_with('b') => (&rest[1..], 2),
        rest => (rest, 8),
    };
    let digits = digits.replace('_', "");
    // `from_str_radix` takes a sign of its own.
    let number =
        digits.bytes().all(|byte| byte.is_ascii_alphanumeric()).then(|| u64::from_str_radix(&digits, radix))?;
    number.ok().map(|number| Cow::Owned(format!("{sign}{number}")))
}

/// With a point, and with a sign before an exponent: `1e5` is text to PyYAML.
fn float(text: &str) -> Option<f64> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    match unsigned {
        ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN" => return Some(f64::NAN),
        _ => {}
    }
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = mantissa.split_once('.')?;
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    let has_digits = whole.starts_with(|first: char| first.is_ascii_digit())
        || (whole.is_empty() && fraction.starts_with(|first: char| first.is_ascii_digit()));
    let exponent_is_one = exponent.is_none_or(|exponent| {
        let digits = exponent.strip_prefix(['-', '+']);
        digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit()))
    });
    let is_float = has_digits && are_digits(whole) && are_digits(fraction) && exponent_is_one;
    is_float.then(|| text.replace('_', "").parse().ok()).flatten()
}

/// kombu's tag for a date or a time, and how Python's `isoformat` writes it.
fn time(text: &str) -> Option<(&'static str, String)> {
    if !text.starts_with(|first: char| first.is_ascii_digit()) || text.as_bytes().get(4) != Some(&b'-') {
        return None;
    }
    if let Some(date) = text.parse::<Date>().ok().filter(|_| text.len() == 10) {
        return Some(("date", date.to_string()));
    }
    let (date, clock) = text.split_once(['T', 't', ' '])?;
    let clock = clock.trim();
    let (clock, offset) = match clock.find(['Z', 'z', '+', '-']) {
        Some(at) => (clock[..at].trim_end(), Some(&clock[at..])),
        None => (clock, None),
    };
    let offset = match offset {
        None => String::new(),
        Some("Z" | "z") => "+00:00".to_owned(),
        Some(offset) if offset.len() == 6 && offset.as_bytes()[3] == b':' => offset.to_owned(),
        Some(_) => return None,
    };
    let instant: DateTime = format!("{date}T{clock}").parse().ok()?;
    let format = if instant.subsec_nanosecond() == 0 { "%Y-%m-%dT%H:%M:%S" } else { "%Y-%m-%dT%H:%M:%S.%6f" };
    Some(("datetime", format!("{}{offset}", instant.strftime(format))))
}

fn malformed(reason: &dyn std::fmt::Display) -> ContentError {
    ContentError::Malformed { serializer: Serializer::Yaml, reason: crate::json::reason(reason) }
}

/// YAML in its flow style, spelled so that readers of version 1.1 and 1.2 agree on it: every text is quoted, every
/// float has a point.
pub(super) fn write(value: &Value) -> String {
    let mut out = String::new();
    append(&mut out, value);
    out.push('\n');
    out
}

/// Depth is bounded by the parser that made the value.
fn append(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
        Value::Number(number) => out.push_str(&spell(number)),
        Value::String(text) => quote(out, text),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                append(out, item);
            }
            out.push(']');
        }
        Value::Object(object) => match bytes_of(object) {
            Some(bytes) => {
                out.push_str("!!binary \"");
                out.push_str(&STANDARD.encode(bytes));
                out.push('"');
            }
            None => mapping(out, object),
        },
    }
}

fn mapping(out: &mut String, object: &serde_json::Map<String, Value>) {
    out.push('{');
    for (index, (key, value)) in object.iter().enumerate() {
        out.push_str(if index > 0 { ", " } else { "" });
        let start = out.len();
        quote(out, key);
        if out.len() - start > LONGEST_SIMPLE_KEY {
            out.insert_str(start, "? ");
        }
        out.push_str(": ");
        append(out, value);
    }
    out.push('}');
}

fn spell(number: &serde_json::Number) -> String {
    let text = number.to_string();
    match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => {
            let point = if mantissa.contains('.') { "" } else { ".0" };
            let sign = if exponent.starts_with(['-', '+']) { "" } else { "+" };
            format!("{mantissa}{point}e{sign}{exponent}")
        }
        None => text,
    }
}

/// In double quotes. What PyYAML's reader takes for unprintable is escaped.
fn quote(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            '\n' => out.push_str("\\n"),
            ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}' | '\u{10000}'.. => {
                // Line breaks of Unicode's own would be folded.
                match character {
                    '\u{2028}' => out.push_str("\\u2028"),
                    '\u{2029}' => out.push_str("\\u2029"),
                    character => out.push(character),
                }
            }
            character => out.push_str(&format!("\\u{:04x}", u32::from(character))),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(yaml: &str) -> Result<String, String> {
        read(yaml.as_bytes(), 4096).map(|json| String::from_utf8(json).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn scalars_are_resolved_as_pyyaml_resolves_them() {
        let rows = [
            ("~", "null"),
            ("yes", "true"),
            ("Off", "false"),
            ("'yes'", r#""yes""#),
            ("y", r#""y""#),
            ("-12", "-12"),
            ("+1_000", "1000"),
            ("0x1F", "31"),
            ("0b101", "5"),
            ("017", "15"),
            ("089", r#""089""#),
            ("0x+1", r#""0x+1""#),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            ("1.5", "1.5"),
            (".5", "0.5"),
            ("1.", "1.0"),
            ("1.0e+20", "1e+20"),
            ("1e5", r#""1e5""#),
            ("1.5e5", r#""1.5e5""#),
            (".", r#"".""#),
            ("1:30", r#""1:30""#),
            ("2026-11-24", r#"{"__type__":"date","__value__":"2026-11-24"}"#),
            ("2026-11-24 08:50:42.048607", r#"{"__type__":"datetime","__value__":"2026-11-24T08:50:42.048607"}"#),
            ("2026-11-24T08:50:42Z", r#"{"__type__":"datetime","__value__":"2026-11-24T08:50:42+00:00"}"#),
            ("2026-11-24 08:50:42+02:00", r#"{"__type__":"datetime","__value__":"2026-11-24T08:50:42+02:00"}"#),
            ("2026-11-99", r#""2026-11-99""#),
            ("!!str 12", r#""12""#),
            ("! 12", r#""12""#),
            ("!!binary aGk=", r#"{"__type__":"bytes","__value__":"hi"}"#),
            ("!!binary |\n  /w==\n", r#"{"__type__":"base64","__value__":"/w=="}"#),
            ("\"\\xE9\"", "\"é\""),
        ];
        for (yaml, expected) in rows {
            assert_eq!(json(yaml).as_deref(), Ok(expected), "{yaml}");
        }
    }

    #[test]
    fn aliases_are_copies() {
        assert_eq!(json("- &a [1, {x: 2}]\n- *a\n").unwrap(), r#"[[1,{"x":2}],[1,{"x":2}]]"#);
        assert_eq!(json("- &k key\n- {*k : 1}\n").unwrap(), r#"["key",{"key":1}]"#);
        assert_eq!(json("- &n 5\n- {*n : 1}\n").unwrap(), r#"[5,{"5":1}]"#);
        assert_eq!(json("{a: &x {b: c}, d: *x}").unwrap(), r#"{"a":{"b":"c"},"d":{"b":"c"}}"#);
    }

    #[test]
    fn a_billion_laughs_stop_at_the_limit() {
        let mut yaml = "- &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
        for level in 1..20 {
            let alias = format!("*a{}", level - 1);
            yaml.push_str(&format!("- &a{level} [{}]\n", vec![alias; 10].join(", ")));
        }
        assert!(json(&yaml).unwrap_err().contains("more than the 4096 bytes"));
    }

    #[test]
    fn what_json_has_no_word_for_is_refused() {
        let rows = [
            "!!python/object/apply:os.system [ls]",
            "!mine x",
            "!!set {a, b}",
            "&a [*a]",
            "{[1]: 2}",
            "- &a [1]\n- {*a : 1}",
            ".inf",
            ".nan",
            "- &a {x: 1}\n- {<<: *a}",
        ];
        for yaml in rows {
            assert!(json(yaml).unwrap_err().contains("which JSON cannot say"), "{yaml}");
        }
        for yaml in ["", "[1", "- a\n--- b\n", "a: b: c", "*nobody", "\"\\q\""] {
            assert!(json(yaml).unwrap_err().contains("not yaml"), "{yaml}");
        }
        assert!(json(&"[".repeat(100_000)).is_err());
        assert!(json(&"- ".repeat(100_000)).is_err());
    }

    #[test]
    fn long_keys_and_odd_characters_are_written_so_that_pyyaml_reads_them() {
        let long = "k".repeat(2000);
        let value = serde_json::json!({ &long: "\u{7f}\u{85}\u{feff}\u{2028}\u{1}", "f": 1e300, "b": 2.5 });
        let yaml = write(&value);
        assert!(yaml.contains("? \"k"));
        assert!(yaml.contains(r#""\u007f\u0085\ufeff\u2028\u0001""#));
        assert!(yaml.contains("1.0e+300"), "{yaml}");
        assert_eq!(serde_json::from_str::<Value>(&json(&yaml).unwrap()).unwrap(), value);
    }
}
