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

/// The same with no more of the message's headers than say whose it is.
pub(crate) fn bare(message: &Message, queue: &str, death: &Death) -> Publication {
    let mut bare = message.clone();
    bare.headers.retain(|name, _| matches!(name.as_str(), "id" | "task" | "lang"));
    publication(&bare, queue, death)
}
