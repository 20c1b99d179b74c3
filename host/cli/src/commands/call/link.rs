//! What follows a task: signatures from names, or from JSON.

use std::str::FromStr;

use rtask_protocol::{Embed, signature::Signature};
use serde_json::{Map, Value, json, value::to_raw_value};

/// A signature as Celery writes it, complete.
#[derive(Clone, Debug)]
pub struct Link(Map<String, Value>);

impl FromStr for Link {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let given = match text.trim_start().starts_with('{') {
            true => serde_json::from_str(text).map_err(|error| format!("it is no signature in JSON: {error}"))?,
            false => Map::from_iter([("task".to_owned(), Value::from(text))]),
        };
        let mut whole = whole();
        whole.extend(given);
        Signature::parse(&Value::Object(whole.clone()).to_string()).map_err(|error| error.to_string())?;
        Ok(Self(whole))
    }
}

/// What every signature has (golden/01_amqp_task_messages/12_link_and_link_error.json).
fn whole() -> Map<String, Value> {
    let plain =
        json!({ "task": null, "args": [], "kwargs": {}, "options": {}, "subtask_type": null, "immutable": false });
    plain.as_object().cloned().unwrap_or_default()
}

pub fn embed(callbacks: &[Link], errbacks: &[Link]) -> Embed {
    let raw = |links: &[Link]| {
        let signatures: Vec<&Map<String, Value>> = links.iter().map(|link| &link.0).collect();
        (!links.is_empty()).then(|| to_raw_value(&signatures).expect("JSON values always serialise"))
    };
    Embed { callbacks: raw(callbacks), errbacks: raw(errbacks), ..Embed::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(text: &str) -> Value {
        Value::Object(text.parse::<Link>().unwrap_or_else(|error| panic!("{error}")).0)
    }

    #[test]
    fn a_name_or_a_part_of_a_signature_becomes_a_whole_one() {
        let plain = json!({"task": "tasks.on_err", "args": [], "kwargs": {}, "options": {}, "subtask_type": null,
                           "immutable": false});
        assert_eq!(link("tasks.on_err"), plain);
        let said = link(r#" {"task": "tasks.mul", "args": [10], "options": {"queue": "q"}, "immutable": true}"#);
        let expected = json!({"task": "tasks.mul", "args": [10], "kwargs": {}, "options": {"queue": "q"},
                              "subtask_type": null, "immutable": true});
        assert_eq!(said, expected);
    }

    #[test]
    fn what_no_worker_could_read_is_not_sent() {
        for text in [
            "",
            "{",
            "{}",
            r#"{"task": 1}"#,
            r#"{"task": "t", "args": {}}"#,
            r#"{"task": "t", "options": {"priority": "x"}}"#,
        ] {
            assert!(text.parse::<Link>().is_err(), "{text}");
        }
    }

    #[test]
    fn nothing_to_follow_is_null() {
        let nothing = embed(&[], &[]);
        assert!(nothing.callbacks.is_none() && nothing.errbacks.is_none());
        let links = ["a".parse::<Link>().unwrap(), "b".parse().unwrap()];
        let callbacks = embed(&links, &[]).callbacks.unwrap();
        assert_eq!(serde_json::from_str::<Value>(callbacks.get()).unwrap(), json!([link("a"), link("b")]));
    }
}
