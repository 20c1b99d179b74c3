//! Python's `repr` of JSON values, for the headers `argsrepr` and `kwargsrepr` that people read in Flower, and for what
//! remote control answers.

use std::fmt::Write as _;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Value, value::RawValue};

/// Celery cuts these headers at this many characters (`argsrepr_maxsize`).
const LONGEST: usize = 1024;

/// `(2, 'two')`, as Python writes a tuple.
pub fn args(args: &[Value]) -> String {
    let mut text = String::from("(");
    for (index, item) in args.iter().enumerate() {
        text.push_str(if index > 0 { ", " } else { "" });
        write(&mut text, item);
    }
    text.push_str(if args.len() == 1 { ",)" } else { ")" });
    cut(text)
}

/// One value: `{'x': 2}`.
pub fn value(value: &Value) -> String {
    let mut text = String::new();
    write(&mut text, value);
    cut(text)
}

/// A JSON array as a tuple. Reads no further than is shown.
pub fn raw_args(args: &RawValue) -> String {
    raw(args, Brackets::Tuple)
}

/// A JSON object as a dict. Reads no further than is shown.
pub fn raw_kwargs(kwargs: &RawValue) -> String {
    raw(kwargs, Brackets::List)
}

fn raw(json: &RawValue, outermost: Brackets) -> String {
    let mut text = String::new();
    let mut parser = serde_json::Deserializer::from_str(json.get());
    // An error says that there is more than is shown, or that it is nested more deeply than anybody reads.
    if (Repr { text: &mut text, brackets: outermost }).deserialize(&mut parser).is_err() {
        text.push_str("...");
    }
    cut(text)
}

fn cut(mut text: String) -> String {
    if text.chars().nth(LONGEST).is_some()
        && let Some((end, _)) = text.char_indices().nth(LONGEST - 3)
    {
        text.truncate(end);
        text.push_str("...");
    }
    text
}

fn write(text: &mut String, value: &Value) {
    // Text that is cut off is no loss.
    let _ = Repr { text, brackets: Brackets::List }.deserialize(value);
}

/// How an array is shown.
#[derive(Clone, Copy)]
enum Brackets {
    Tuple,
    List,
}

/// Appends whatever is deserialised, and gives up beyond what is ever shown.
struct Repr<'a> {
    text: &'a mut String,
    brackets: Brackets,
}

impl Repr<'_> {
    fn put<E: Error>(self, shown: &str) -> Result<(), E> {
        self.text.push_str(shown);
        // A character has at most four bytes.
        match self.text.len() > LONGEST * 4 {
            true => Err(E::custom("long enough")),
            false => Ok(()),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Repr<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Repr<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.put("None")
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<(), E> {
        self.put(if flag { "True" } else { "False" })
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<(), E> {
        self.put(&number.to_string())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        self.put(&number.to_string())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<(), E> {
        self.put(&Value::from(number).to_string())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        let mut quoted = String::new();
        quote(&mut quoted, &text[..text.floor_char_boundary(LONGEST * 4)]);
        self.put(&quoted)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let (open, close, close_one) = match self.brackets {
            Brackets::Tuple => ("(", ")", ",)"),
            Brackets::List => ("[", "]", "]"),
        };
        self.text.push_str(open);
        let mut count = 0;
        loop {
            // The comma goes before an item that is there.
            let end = self.text.len();
            self.text.push_str(if count > 0 { ", " } else { "" });
            let item = Repr { text: &mut *self.text, brackets: Brackets::List };
            if items.next_element_seed(item)?.is_none() {
                self.text.truncate(end);
                break;
            }
            count += 1;
        }
        self.put(if count == 1 { close_one } else { close })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        self.text.push('{');
        let mut first = true;
        loop {
            let end = self.text.len();
            self.text.push_str(if first { "" } else { ", " });
            let key = Repr { text: &mut *self.text, brackets: Brackets::List };
            if entries.next_key_seed(key)?.is_none() {
                self.text.truncate(end);
                break;
            }
            self.text.push_str(": ");
            entries.next_value_seed(Repr { text: &mut *self.text, brackets: Brackets::List })?;
            first = false;
        }
        self.put("}")
    }
}

/// Python prefers single quotes unless only double ones avoid escapes.
fn quote(text: &mut String, string: &str) {
    let mark = if string.contains('\'') && !string.contains('"') { '"' } else { '\'' };
    text.push(mark);
    for character in string.chars() {
        match character {
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\\' => text.push_str("\\\\"),
            c if c == mark => {
                text.push('\\');
                text.push(c);
            }
            c if c.is_control() => {
                let _ = write!(text, "\\x{:02x}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text.push(mark);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn arguments_read_as_python_writes_them() {
        let rows = [
            (json!([]), "()"),
            (json!(["boom"]), "('boom',)"),
            (json!([2, null, true, 1.5]), "(2, None, True, 1.5)"),
            (json!([["it's", "a\nb"], {"k": "\u{7}"}]), "([\"it's\", 'a\\nb'], {'k': '\\x07'})"),
        ];
        for (value, expected) in rows {
            assert_eq!(args(value.as_array().unwrap()), expected);
        }
        assert_eq!(value(&json!({"x": 2, "y": []})), "{'x': 2, 'y': []}");
    }

    #[test]
    fn raw_arguments_read_the_same() {
        let raw = |json: &str| RawValue::from_string(json.to_owned()).unwrap();
        assert_eq!(raw_args(&raw(r#"[1, "\u00e9", null, 1.5, true]"#)), "(1, 'é', None, 1.5, True)");
        assert_eq!(raw_args(&raw(r#"[["boom"]]"#)), "(['boom'],)");
        assert_eq!(raw_args(&raw("[]")), "()");
        assert_eq!(raw_kwargs(&raw(r#"{"k": [1, 2], "a": {}}"#)), "{'k': [1, 2], 'a': {}}");
        let deep = format!("{}{}", "[".repeat(900), "]".repeat(900));
        assert!(raw_args(&raw(&deep)).ends_with("..."));
    }

    #[test]
    fn long_arguments_are_cut() {
        let long = json!(["ä".repeat(5000)]);
        for text in [
            args(long.as_array().unwrap()),
            raw_args(&crate::json::raw(&long)),
            raw_args(&crate::json::raw(&vec![0; 5000])),
        ] {
            assert_eq!(text.chars().count(), LONGEST);
            assert!(text.ends_with("..."));
        }
        assert_eq!(args(&[json!("a".repeat(1019))]).chars().count(), LONGEST);
        assert!(args(&[json!("a".repeat(1019))]).ends_with("a',)"));
    }
}
