//! Messages that nobody could run, put aside with the reason.

use jiff::Timestamp;
use rtask_broker::Publication;
use rtask_protocol::{Message, dead_letter, names};

/// Why a message is dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Death {
    /// A short word to count by, such as `undecodable`.
    pub code: &'static str,
    /// A sentence for people.
    pub reason: String,
    pub attempts: u32,
}

/// The message as it came, in the queue beside its own.
pub(crate) fn publication(message: &Message, queue: &str, death: &Death) -> Publication {
    let death = dead_letter::Death {
        code: death.code.to_owned(),
        reason: death.reason.clone(),
        attempts: death.attempts,
        queue: queue.to_owned(),
        at: Some(Timestamp::now()),
    };
    Publication::to_queue(names::dead_letter_queue(queue), death.letter(message))
}

/// The same with no more of the message's headers than say whose it is, where they are what they should be: whatever else
/// stands there may be the very thing that the broker refuses.
pub(crate) fn bare(message: &Message, queue: &str, death: &Death) -> Publication {
    let mut bare = message.clone();
    bare.headers.retain(|name, value| matches!(name.as_str(), "id" | "task" | "lang") && value.is_string());
    publication(&bare, queue, death)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_bare_letter_keeps_no_header_that_a_broker_could_refuse() {
        let headers = json!({ "id": [[[]]], "task": "t", "lang": {}, "x-mine": [[[]]] });
        let message = Message { headers: headers.as_object().unwrap().clone(), body: "x".into(), ..Message::default() };
        let death = Death { code: "undecodable", reason: "no".to_owned(), attempts: 1 };
        let letter = bare(&message, "celery", &death).message;
        let names = letter.headers.keys().map(String::as_str);
        let kept: Vec<_> = names.filter(|name| !name.starts_with("x-rtask-death-")).collect();
        assert_eq!((kept, letter.body), (vec!["task"], message.body));
    }
}
