//! Python's `repr` of JSON arguments, for the headers `argsrepr` and `kwargsrepr` that people read in Flower.

use serde_json::Value;

/// Celery cuts these headers at this many characters (`argsrepr_maxsize`).
const LONGEST: usize = 1024;

/// `(2, 'two')`, as Python writes a tuple.
pub fn args(args: &[Value]) -> String {
    let mut text = String::from("(");
    join(&mut text, args);
    text.push_str(if args.len() == 1 { ",)" } else { ")" });
    cut(text)
}

/// `{'x': 2}`, as Python writes a dict.
pub fn kwargs(kwargs: &serde_json::Map<String, Value>) -> String {
    let mut text = String::new();
    dict(&mut text, kwargs);
    cut(text)
}

fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(LONGEST - 3) {
        text.truncate(end);
        text.push_str("...");
    }
    text
}

fn write(text: &mut String, value: &Value) {
    match value {
        Value::Null => text.push_str("None"),
        Value::Bool(true) => text.push_str("True"),
        Value::Bool(false) => text.push_str("False"),
        Value::Number(number) => text.push_str(&number.to_string()),
        Value::String(string) => quote(text, string),
        Value::Array(items) => {
            text.push('[');
            join(text, items);
            text.push(']');
        }
        Value::Object(entries) => dict(text, entries),
    }
}

fn join(text: &mut String, items: &[Value]) {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            text.push_str(", ");
        }
        write(text, item);
    }
}

fn dict(text: &mut String, entries: &serde_json::Map<String, Value>) {
    text.push('{');
    for (index, (key, value)) in entries.iter().enumerate() {
        if index > 0 {
            text.push_str(", ");
        }
        quote(text, key);
        text.push_str(": ");
        write(text, value);
    }
    text.push('}');
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
            c if c.is_control() => text.push_str(&format!("\\x{:02x}", u32::from(c))),
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
        assert_eq!(kwargs(json!({"x": 2}).as_object().unwrap()), "{'x': 2}");
    }

    #[test]
    fn long_arguments_are_cut() {
        let text = args(&[json!("ä".repeat(5000))]);
        assert_eq!(text.chars().count(), LONGEST);
        assert!(text.ends_with("..."));
    }
}
