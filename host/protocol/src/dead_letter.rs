//! Dead letters: messages that could not be run, in the queue beside their own, with the reason in their headers.
//!
//! Nothing of this is Celery's. A dead letter is the message as it came, so that taking the reason off again makes
//! it one that can be sent anew.

use jiff::Timestamp;
use serde_json::Value;

use crate::{Message, time};

/// Why, where and when a message died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// A short word to count by, such as `undecodable`.
    pub code: String,
    /// A sentence for people.
    pub reason: String,
    /// How often it was attempted.
    pub attempts: u32,
    /// Where it came from.
    pub queue: String,
    /// None if nobody wrote it down.
    pub at: Option<Timestamp>,
}

const CODE: &str = "x-rtask-death-code";
const REASON: &str = "x-rtask-death-reason";
const ATTEMPTS: &str = "x-rtask-death-attempts";
const QUEUE: &str = "x-rtask-death-queue";
const AT: &str = "x-rtask-death-at";
/// A reason is cut here (bytes).
const MAX_REASON: usize = 1_000;

impl Death {
    /// The letter: `message` with the reason. Its time to live is taken off, since a letter about a loss must not get
    /// lost.
    pub fn letter(&self, message: &Message) -> Message {
        let mut letter = revived(message.clone());
        letter.properties.expiration = None;
        let reason = &self.reason[..self.reason.floor_char_boundary(MAX_REASON)];
        let told = [
            (CODE, Value::from(self.code.as_str())),
            (REASON, Value::from(reason)),
            (ATTEMPTS, Value::from(self.attempts)),
            (QUEUE, Value::from(self.queue.as_str())),
        ];
        letter.headers.extend(told.map(|(name, value)| (name.to_owned(), value)));
        letter.headers.extend(self.at.map(|at| (AT.to_owned(), Value::from(time::format(at)))));
        letter
    }

    /// What a letter tells of its death; none if it is no letter of ours.
    pub fn of(letter: &Message) -> Option<Self> {
        let text = |name: &str| letter.headers.get(name).and_then(Value::as_str);
        let attempts = letter.headers.get(ATTEMPTS).and_then(Value::as_u64);
        Some(Self {
            code: text(CODE)?.to_owned(),
            reason: text(REASON).unwrap_or_default().to_owned(),
            attempts: attempts.and_then(|attempts| u32::try_from(attempts).ok()).unwrap_or(0),
            queue: text(QUEUE)?.to_owned(),
            at: text(AT).and_then(|text| time::parse(text).ok()),
        })
    }
}

/// The message that a letter is about, as it may be sent again.
pub fn revived(mut letter: Message) -> Message {
    for name in [CODE, REASON, ATTEMPTS, QUEUE, AT] {
        letter.headers.remove(name);
    }
    letter
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Properties;

    fn message() -> Message {
        let mut message = Message { body: "{not json".into(), ..Message::default() };
        message.properties = Properties { expiration: Some("5".into()), ..Properties::persistent_json() };
        message.headers.insert("task".into(), "t".into());
        message
    }

    fn death() -> Death {
        let at = Some("2026-11-24T12:00:00Z".parse().unwrap());
        Death { code: "undecodable".into(), reason: "no".into(), attempts: 3, queue: "celery".into(), at }
    }

    #[test]
    fn a_letter_is_the_message_with_the_reason_and_without_an_end() {
        let letter = death().letter(&message());
        assert_eq!((&letter.body, &letter.properties.expiration), (&message().body, &None));
        assert_eq!((&letter.headers["task"], &letter.headers[QUEUE]), (&"t".into(), &"celery".into()));
        assert_eq!(Death::of(&letter), Some(death()));
    }

    #[test]
    fn a_reason_is_cut_between_two_characters() {
        let long = Death { reason: "ü".repeat(MAX_REASON), ..death() };
        assert_eq!(Death::of(&long.letter(&message())).unwrap().reason.len(), MAX_REASON);
    }

    #[test]
    fn a_message_that_is_revived_and_dies_again_tells_of_its_last_death() {
        let letter = death().letter(&message());
        let revived = revived(letter.clone());
        assert_eq!(revived.headers, message().headers);
        let again = Death { code: "rejected".into(), at: None, ..death() };
        assert_eq!(Death::of(&again.letter(&letter)), Some(again));
    }

    #[test]
    fn whoever_writes_such_headers_is_not_believed_more_than_they_say() {
        assert_eq!(Death::of(&message()), None);
        let mut odd = death().letter(&message());
        odd.headers.insert(ATTEMPTS.into(), "many".into());
        odd.headers.insert(AT.into(), "yesterday".into());
        let read = Death::of(&odd).unwrap();
        assert_eq!((read.attempts, read.at), (0, None));
        odd.headers.insert(CODE.into(), 1.into());
        assert_eq!(Death::of(&odd), None);
    }
}
