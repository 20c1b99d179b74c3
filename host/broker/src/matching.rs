//! What a headers exchange compares, as RabbitMQ does it, for the brokers that have no exchanges of their own.

use rtask_protocol::Headers;
use serde_json::Value;

/// `x-match` is `all` unless given; only its `-with-x` forms look at other arguments that begin with `x-`. An
/// argument without a value asks only that the header be there.
pub(crate) fn headers_match(arguments: &Headers, headers: &Headers) -> bool {
    let how = arguments.get("x-match").and_then(Value::as_str).unwrap_or("all");
    let with_x = how.ends_with("-with-x");
    let mut compared = arguments.iter().filter(|(name, _)| *name != "x-match" && (with_x || !name.starts_with("x-")));
    let is_met = |(name, expected): (&String, &Value)| {
        headers.get(name).is_some_and(|found| expected.is_null() || expected == found)
    };
    match how {
        "any" | "any-with-x" => compared.any(is_met),
        _ => compared.all(is_met),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn headers_match_as_x_match_says() {
        let headers = json!({"format": "pdf", "pages": 3, "x-origin": "web"});
        let rows = [
            (json!({"format": "pdf", "pages": 3}), true),
            (json!({"format": "pdf", "pages": 4}), false),
            (json!({"x-match": "all", "format": "pdf", "missing": 1}), false),
            (json!({"x-match": "all", "format": "pdf", "x-origin": "mail"}), true),
            (json!({"x-match": "all-with-x", "format": "pdf", "x-origin": "mail"}), false),
            (json!({"x-match": "all-with-x", "format": "pdf", "x-origin": "web"}), true),
            (json!({"x-match": "any", "format": "zip", "pages": 3}), true),
            (json!({"x-match": "any", "format": "zip", "x-origin": "web"}), false),
            (json!({"x-match": "any-with-x", "format": "zip", "x-origin": "web"}), true),
            (json!({"x-match": "any"}), false),
            (json!({"x-match": "all", "pages": null}), true),
            (json!({"x-match": "all", "missing": null}), false),
            (json!({}), true),
        ];
        for (arguments, expected) in rows {
            let matches = headers_match(arguments.as_object().unwrap(), headers.as_object().unwrap());
            assert_eq!(matches, expected, "{arguments}");
        }
    }
}
