//! Text from tasks, made fit for a person's terminal: nothing in it moves the cursor, colours, hides or reorders.

use std::fmt::Write as _;

/// One line: line breaks are escaped too.
pub fn line(text: &str) -> String {
    escape(text, is_hidden)
}

/// Several lines, such as a backtrace.
pub fn lines(text: &str) -> String {
    escape(text, |character| is_hidden(character) && !matches!(character, '\n' | '\t'))
}

/// JSON, on one line and still the same value. Below U+0020 it can hold only white space between its parts; what
/// is above stands in strings, where JSON has an escape for it.
pub fn json(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\r' | '\t' => shown.push(' '),
            hidden if is_hidden(hidden) => {
                for unit in hidden.encode_utf16(&mut [0; 2]) {
                    // Writing to a string cannot fail.
                    let _ = write!(shown, "\\u{unit:04x}");
                }
            }
            plain => shown.push(plain),
        }
    }
    shown
}

fn escape(text: &str, hidden: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if hidden(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Control characters (Unicode's Cc), and the marks by which text changes its direction.
fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_unescaped() {
        let rows = [
            ("plain, and ümläut", "plain, and ümläut"),
            ("\x1b[2Jgone", r"\u{1b}[2Jgone"),
            ("a\nb", r"a\nb"),
            ("\u{9b}31m", r"\u{9b}31m"),
            ("\u{202e}txt.exe", r"\u{202e}txt.exe"),
        ];
        for (text, expected) in rows {
            assert_eq!(line(text), expected);
        }
        assert_eq!(lines("a\n\tb\x1b"), "a\n\tb\\u{1b}");
    }

    #[test]
    fn json_stays_the_same_value() {
        let text = "{\"a\":\n \"\u{9b}x\u{202e}\", \"b\": 1e400}";
        let shown = json(text);
        assert_eq!(shown, r#"{"a":  "\u009bx\u202e", "b": 1e400}"#);
        let a = |text: &str| {
            let text = text.replace("1e400", "1");
            serde_json::from_str::<serde_json::Value>(&text).unwrap()
        };
        assert_eq!(a(&shown), a(text));
    }
}
