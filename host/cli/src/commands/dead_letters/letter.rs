//! One dead letter, as people and programs read it.

use std::fmt;

use rtask_protocol::{
    Message,
    dead_letter::{self, Death},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::visible;

/// A message and what is known of its death.
#[derive(Clone, Debug)]
pub struct Letter {
    /// The task's id, or one that is made from the body for a message that has none.
    pub id: String,
    pub message: Message,
    /// The queue that it lies in.
    shelf: String,
    death: Option<Death>,
}

impl Letter {
    pub fn new(message: Message, shelf: &str) -> Self {
        let named = message.headers.get("id").and_then(Value::as_str).map(str::to_owned);
        let id = named.or_else(|| message.properties.correlation_id.clone()).filter(|id| !id.is_empty());
        Self {
            id: id.unwrap_or_else(|| Uuid::new_v5(&Uuid::NAMESPACE_OID, &message.body).to_string()),
            death: Death::of(&message),
            shelf: shelf.to_owned(),
            message,
        }
    }

    fn task(&self) -> Option<&str> {
        self.message.headers.get("task").and_then(Value::as_str)
    }

    /// Under ID, TASK, CODE, ATTEMPTS, QUEUE, DIED and REASON.
    pub fn row(&self) -> [String; 7] {
        let absent = || "-".to_owned();
        let death = self.death.as_ref();
        [
            self.id.clone(),
            self.task().map_or_else(absent, str::to_owned),
            death.map_or_else(absent, |death| death.code.clone()),
            death.map_or_else(absent, |death| death.attempts.to_string()),
            death.map_or_else(absent, |death| death.queue.clone()),
            died(death).unwrap_or_else(absent),
            death.map_or_else(absent, |death| death.reason.clone()),
        ]
    }

    pub fn summary(&self) -> Value {
        let death = self.death.as_ref();
        json!({
            "id": self.id,
            "task": self.task(),
            "code": death.map(|death| &death.code),
            "reason": death.map(|death| &death.reason),
            "attempts": death.map(|death| death.attempts),
            "queue": death.map(|death| &death.queue),
            "died": death.and_then(|death| death.at),
            "in": self.shelf,
        })
    }

    /// All of it. A body that is no text is told in hexadecimal digits.
    pub fn whole(&self) -> Value {
        let mut whole = self.summary();
        let message = dead_letter::revived(self.message.clone());
        whole["headers"] = Value::Object(message.headers);
        whole["properties"] = serde_json::to_value(&message.properties).unwrap_or_default();
        match std::str::from_utf8(&message.body) {
            Ok(text) => whole["body"] = text.into(),
            Err(_) => whole["body_hex"] = hex::encode(&message.body).into(),
        }
        whole
    }
}

fn died(death: Option<&Death>) -> Option<String> {
    let at = death.and_then(|death| death.at)?;
    Some(at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}

impl fmt::Display for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [id, task, code, attempts, queue, died, reason] = self.row();
        let names = ["id", "task", "code", "attempts", "queue", "died", "reason"];
        for (name, value) in names.iter().zip([id, task, code, attempts, queue, died, reason]) {
            writeln!(f, "{name:10}{}", visible::line(&value))?;
        }
        let message = dead_letter::revived(self.message.clone());
        writeln!(f, "headers")?;
        for (name, value) in &message.headers {
            writeln!(f, "  {}: {}", visible::line(name), visible::json(&value.to_string()))?;
        }
        writeln!(f, "properties")?;
        let properties = serde_json::to_value(&message.properties).unwrap_or_default();
        for (name, value) in properties.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
            writeln!(f, "  {name}: {}", visible::json(&value.to_string()))?;
        }
        writeln!(f, "body, {} bytes", message.body.len())?;
        match std::str::from_utf8(&message.body) {
            Ok(text) => write!(f, "{}", visible::lines(text)),
            Err(_) => write!(f, "{}", hex::encode(&message.body)),
        }
    }
}

#[cfg(test)]
mod tests {
    use rtask_protocol::Properties;

    use super::*;

    fn letter(body: &'static [u8]) -> Message {
        let mut message = Message { body: body.into(), ..Message::default() };
        message.headers.insert("task".into(), "t\u{1b}".into());
        message.headers.insert("id".into(), "i".into());
        let at = "2026-11-24T12:00:00Z".parse().ok();
        let death = Death { code: "rejected".into(), reason: "no".into(), attempts: 2, queue: "celery".into(), at };
        death.letter(&message)
    }

    #[test]
    fn a_letter_tells_of_its_death_and_nothing_reaches_the_terminal_unescaped() {
        let letter = Letter::new(letter(b"[[],\x1b {}, {}]"), "celery.dead");
        assert_eq!(letter.row()[2..6], ["rejected", "2", "celery", "2026-11-24 12:00:00 UTC"].map(str::to_owned));
        let shown = letter.to_string();
        assert!(!shown.contains('\u{1b}') && shown.contains("rejected") && !shown.contains("x-rtask"), "{shown}");
        let whole = letter.whole();
        assert_eq!((&whole["in"], &whole["died"]), (&json!("celery.dead"), &json!("2026-11-24T12:00:00Z")));
        assert_eq!((&whole["headers"]["id"], &whole["body"]), (&json!("i"), &json!("[[],\u{1b} {}, {}]")));
    }

    #[test]
    fn every_letter_has_an_id_to_ask_for_it_with() {
        let mut message = letter(b"\xff");
        message.headers.clear();
        message.properties = Properties { correlation_id: Some("c".into()), ..Properties::default() };
        assert_eq!(Letter::new(message.clone(), "q.dead").id, "c");
        message.properties.correlation_id = None;
        let anonymous = Letter::new(message, "q.dead");
        assert_eq!((anonymous.id.len(), &anonymous.whole()["body_hex"]), (36, &json!("ff")));
        assert_eq!(anonymous.row()[2], "-");
    }
}
