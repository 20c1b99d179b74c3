//! Whether an exchange hands a message to a queue, as AMQP 0-9-1 says (section 3.1.3) and RabbitMQ does.

use rtask_protocol::Headers;

use crate::{ExchangeKind, matching::headers_match};

/// How an exchange's kind is written in the file.
pub(super) fn kind_name(kind: ExchangeKind) -> &'static str {
    match kind {
        ExchangeKind::Direct => "direct",
        ExchangeKind::Topic => "topic",
        ExchangeKind::Fanout => "fanout",
        ExchangeKind::Headers => "headers",
    }
}

/// None for a text that no rtask has written.
pub(super) fn kind_named(name: &str) -> Option<ExchangeKind> {
    let kinds = [ExchangeKind::Direct, ExchangeKind::Topic, ExchangeKind::Fanout, ExchangeKind::Headers];
    kinds.into_iter().find(|&kind| kind_name(kind) == name)
}

/// Whether a binding by `key` and `arguments` takes a message with `routing_key` and `headers`.
pub(super) fn takes(kind: ExchangeKind, key: &str, arguments: &Headers, routing_key: &str, headers: &Headers) -> bool {
    match kind {
        ExchangeKind::Direct => key == routing_key,
        ExchangeKind::Topic => topic_matches(key, routing_key),
        ExchangeKind::Fanout => true,
        ExchangeKind::Headers => headers_match(arguments, headers),
    }
}

/// Words are parted by dots; `*` stands for one, `#` for any number. Takes words times words steps, whatever the
/// pattern.
fn topic_matches(pattern: &str, routing_key: &str) -> bool {
    let words: Vec<&str> = routing_key.split('.').collect();
    // Whether the pattern so far matches the first n words.
    let mut matched = vec![false; words.len() + 1];
    matched[0] = true;
    for part in pattern.split('.') {
        if part == "#" {
            let first = matched.iter().position(|&matched| matched).unwrap_or(matched.len());
            matched[first..].fill(true);
            continue;
        }
        for count in (0..words.len()).rev() {
            matched[count + 1] = matched[count] && (part == "*" || part == words[count]);
        }
        matched[0] = false;
    }
    matched[words.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_match_word_by_word() {
        let rows = [
            ("a.b", "a.b", true),
            ("a.b", "a.c", false),
            ("a.b", "a.b.c", false),
            ("*.b", "a.b", true),
            ("*.b", "b", false),
            ("*", "", true),
            ("a.*", "a", false),
            ("a.#", "a", true),
            ("a.#", "a.b.c", true),
            ("#", "", true),
            ("#", "a.b", true),
            ("#.c", "a.b.c", true),
            ("#.c", "c", true),
            ("#.c", "a.c.b", false),
            ("a.#.z", "a.z", true),
            ("a.#.z", "a.b.c.z", true),
            ("a.#.*.z", "a.z", false),
            ("a.#.*.z", "a.b.c.z", true),
            ("#.#", "a", true),
            ("a*", "ab", false),
            ("", "", true),
            ("", "a", false),
        ];
        for (pattern, key, expected) in rows {
            assert_eq!(topic_matches(pattern, key), expected, "`{pattern}` on `{key}`");
        }
    }

    #[test]
    fn a_pattern_made_to_be_slow_is_not() {
        let pattern = vec!["#"; 100].join(".a.");
        assert!(!topic_matches(&pattern, &vec!["a"; 98].join(".")));
        assert!(topic_matches(&pattern, &vec!["a"; 99].join(".")));
    }

    #[test]
    fn kinds_read_back_as_they_are_written() {
        for kind in [ExchangeKind::Direct, ExchangeKind::Topic, ExchangeKind::Fanout, ExchangeKind::Headers] {
            assert_eq!(kind_named(kind_name(kind)), Some(kind));
        }
        assert_eq!(kind_named("x-delayed"), None);
    }
}
