//! Messages that nobody could run, put aside with the reason.

use rtask_broker::Publication;
use rtask_protocol::{Message, names};
use serde_json::Value;

/// Why a message is dead, told in headers beside the message's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Death {
    /// A short word to count by, such as `undecodable`.
    pub code: &'static str,
    /// A sentence for people.
    pub reason: String,
    pub attempts: u32,
}

/// A reason is cut here (bytes).
const MAX_REASON: usize = 1_000;

/// The message as it came, in the queue beside its own. Its time to live is taken off, since a letter about a
/// loss must not get lost.
pub(crate) fn publication(message: &Message, queue: &str, death: &Death) -> Publication {
    let mut message = message.clone();
    message.properties.expiration = None;
    let reason = &death.reason[..death.reason.floor_char_boundary(MAX_REASON)];
    let told = [
        ("x-rtask-death-code", Value::from(death.code)),
        ("x-rtask-death-reason", Value::from(reason)),
        ("x-rtask-death-attempts", Value::from(death.attempts)),
        ("x-rtask-death-queue", Value::from(queue)),
    ];
    message.headers.extend(told.map(|(name, value)| (name.to_owned(), value)));
    Publication { queue: names::dead_letter_queue(queue), message }
}

/// The same with no more of the message's headers than say whose it is.
pub(crate) fn bare(message: &Message, queue: &str, death: &Death) -> Publication {
    let mut bare = message.clone();
    bare.headers.retain(|name, _| matches!(name.as_str(), "id" | "task" | "lang"));
    publication(&bare, queue, death)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtask_protocol::Properties;

    #[test]
    fn a_dead_letter_is_the_message_with_the_reason_and_without_an_end() {
        let mut message = Message { body: "{not json".into(), ..Message::default() };
        message.properties = Properties { expiration: Some("5".into()), ..Properties::persistent_json() };
        message.headers.insert("task".into(), "t".into());
        let death = Death { code: "undecodable", reason: "x".repeat(5000), attempts: 1 };
        let Publication { queue, message: letter } = publication(&message, "celery", &death);
        assert_eq!(queue, "celery.dead");
        assert_eq!((letter.body, letter.properties.expiration), (message.body, None));
        assert_eq!((&letter.headers["task"], &letter.headers["x-rtask-death-queue"]), (&"t".into(), &"celery".into()));
        assert_eq!(letter.headers["x-rtask-death-reason"].as_str().unwrap().len(), MAX_REASON);
    }
}
