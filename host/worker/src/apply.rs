//! Doing what was decided of a task. Nowhere else is a message published, stored or settled at a task's end.

use std::borrow::Cow;

use jiff::Timestamp;
use rtask_broker::{BrokerError, Delivery, Publication, Target, Verdict, backoff::Backoff};
use rtask_protocol::{Exception, Message, Record, State};

use crate::{
    dead_letter::{self, Death},
    settle::Settlement,
    worker::Worker,
};

/// So often a message is offered to an exchange to which no queue is bound; its readers may only be starting anew.
const EXCHANGE_TRIES: u32 = 8;

/// A message, or what is left of it once it was acked before the run.
pub(crate) enum Held {
    Unacked(Delivery),
    Acked(Message),
}

impl Held {
    /// Celery's early ack. If the broker no longer knows the delivery, the task is delivered again, as it is
    /// for Celery.
    pub(crate) async fn ack_now(delivery: Delivery) -> Self {
        let message = delivery.message.clone();
        if let Err(error) = delivery.ack().await {
            tracing::warn!(%error, "an early ack was lost");
        }
        Self::Acked(message)
    }

    pub(crate) fn message(&self) -> &Message {
        match self {
            Self::Unacked(delivery) => &delivery.message,
            Self::Acked(message) => message,
        }
    }
}

/// Do it, in the order that loses nothing: a crash between any two steps repeats the task or a step.
pub(crate) async fn apply(worker: &Worker, settlement: Settlement, held: Held, reply_to: Option<&str>) {
    let Settlement { follow_ups, mut dead_letter, mut record, mut verdict } = settlement;
    // The next attempt may come to its end before this one goes on, and that end must not be overwritten.
    if let Some(retry) = record.as_ref().filter(|record| !record.status.is_ready()) {
        store(worker, retry, reply_to).await;
    }
    for follow_up in follow_ups {
        if let Err(error) = publish(worker, follow_up).await {
            tracing::error!(%error, "the broker refuses a follow-up for good");
            record = record.map(cut_short);
            dead_letter.get_or_insert_with(|| Death {
                code: "follow-up",
                reason: NOT_FOLLOWED.to_owned(),
                attempts: 1,
            });
        }
    }
    if let (Some(death), Held::Unacked(delivery)) = (&dead_letter, &held)
        && !bury(worker, delivery, death).await
    {
        // An operator's own dead-letter exchange is the last that can keep it.
        verdict = Verdict::Reject;
    }
    if let Some(record) = record.filter(|record| record.status.is_ready()) {
        store(worker, &record, reply_to).await;
    }
    let Held::Unacked(delivery) = held else { return };
    let settled = match verdict {
        Verdict::Ack => delivery.ack().await,
        Verdict::Reject => delivery.reject().await,
        Verdict::Requeue => delivery.requeue().await,
    };
    if let Err(error) = settled {
        tracing::debug!(%error, "a message was settled too late; the broker delivers it again");
    }
}

/// What clients are told. What the broker says may name servers, which are no business of theirs.
const NOT_FOLLOWED: &str = "the broker does not take what is to follow the task";

/// What is stored in place of `record` when something that should follow the task never will: nobody is to wait for it.
/// A failure stays what it is.
fn cut_short(record: Record) -> Record {
    if record.status == State::Failure {
        return record;
    }
    let told = Exception::new("kombu.exceptions", "OperationalError", vec![NOT_FOLLOWED.into()]);
    let Record { task_id, children, group_id, parent_id, extended, .. } = record;
    let failure = Record::failure(&task_id, &told, None, Timestamp::now());
    Record { children, group_id, parent_id, extended, ..failure }
}

/// Tried until it is kept, or until it is sure that it never will be.
async fn publish(worker: &Worker, publication: Publication) -> Result<(), BrokerError> {
    let mut backoff = Backoff::default();
    let mut unconfirmed = 0;
    loop {
        let error = match worker.ports.broker.publish(publication.clone()).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_permanent() => return Err(error),
            Err(error) => error,
        };
        // Queues are declared, so that what is for one finds it; who is bound to an exchange is up to others.
        if let (BrokerError::NotConfirmed { .. }, Target::Exchange { .. }) = (&error, &publication.target) {
            unconfirmed += 1;
            if unconfirmed >= EXCHANGE_TRIES {
                return Err(error);
            }
        }
        tracing::warn!(%error, "a message could not be published; trying again");
        backoff.wait().await;
    }
}

/// False if the broker will never take it. A letter that is refused as it is, say for its size, is sent once more
/// without the headers that the message came with.
async fn bury(worker: &Worker, delivery: &Delivery, death: &Death) -> bool {
    for letter in [dead_letter::publication, dead_letter::bare] {
        match publish(worker, letter(&delivery.message, &delivery.queue, death)).await {
            Ok(()) => return true,
            Err(error) => tracing::error!(%error, queue = &*delivery.queue, "the broker refuses a dead letter"),
        }
    }
    false
}

/// A final state is a promise: it is tried until it is kept, and nothing is acked before. One that no broker could carry,
/// as a message of `rpc://` may be, is told as a short failure; if that cannot be sent either, since `reply_to` is no
/// queue's name, it is given up.
async fn store(worker: &Worker, record: &Record, reply_to: Option<&str>) {
    let (mut backoff, mut record, mut is_short) = (Backoff::default(), Cow::Borrowed(record), false);
    while let Err(error) = worker.ports.backend.store(&record, reply_to).await {
        let id = &record.task_id;
        match error {
            BrokerError::Unsendable { .. } if is_short => {
                return tracing::error!(id, %error, "a result can never be sent; it is given up");
            }
            BrokerError::Unsendable { .. } => {
                tracing::error!(id, %error, "a result can never be sent; a failure is sent in its place");
                (record, is_short) = (Cow::Owned(unsendable(&record)), true);
            }
            error => {
                tracing::warn!(id, %error, "a result could not be stored; trying again");
                backoff.wait().await;
            }
        }
    }
}

fn unsendable(record: &Record) -> Record {
    let told = Exception::rtask("ResultLimitExceeded", "the broker does not carry the task's result");
    Record::failure(&record.task_id, &told, None, Timestamp::now())
}

#[cfg(test)]
mod tests {
    use rtask_protocol::{Child, json};

    use super::*;

    #[test]
    fn a_success_without_its_follow_up_is_a_failure_and_a_failure_stays_what_it_is() {
        let now = Timestamp::UNIX_EPOCH;
        let success = Record::success("i", json::raw(&4), now).with_children(&[Child::Task("c".to_owned())]);
        let success = Record { parent_id: Some("p".to_owned()), ..success };
        let cut = cut_short(success.clone());
        assert_eq!((&cut.status, &cut.task_id, &cut.children), (&State::Failure, &success.task_id, &success.children));
        assert_eq!(
            (cut.exception().unwrap().exc_type.as_str(), cut.parent_id),
            ("OperationalError", success.parent_id)
        );
        let failure = Record::failure("i", &Exception::builtin("ValueError", "no"), None, now);
        assert_eq!(cut_short(failure).exception().unwrap().exc_type, "ValueError");
    }
}
