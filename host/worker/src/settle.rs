//! What becomes of a task after its run: decided by pure functions, done by [`apply`].

use std::fmt::Write as _;

use jiff::Timestamp;
use rtask_broker::{Delivery, Verdict, backoff::Backoff};
use rtask_protocol::{Exception, Poison, Record, Request, json, request::Unreadable};
use rtask_sandbox::{Exit, Limit};
use serde_json::Value;

use crate::{
    admit::{Reason, Refusal},
    dead_letter::{self, Death},
    worker::Worker,
};

/// Everything that is to happen, in the order of the fields.
#[derive(Debug)]
pub(crate) struct Settlement {
    pub dead_letter: Option<Death>,
    pub record: Option<Record>,
    pub verdict: Verdict,
}

/// What the task, the message and the worker's settings say of settling.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub ignore_result: bool,
    pub acks_late: bool,
    /// 1 for the first.
    pub attempt: u32,
    pub delivery_limit: u32,
}

/// A message, or what is left of it once it was acked before the run.
#[expect(clippy::large_enum_variant, reason = "there is one for each running task, and it lives in that task's future")]
pub(crate) enum Held {
    Unacked(Delivery),
    Acked,
}

impl Held {
    /// Celery's early ack. If the broker no longer knows the delivery, the task is delivered again, as it is
    /// for Celery.
    pub(crate) async fn ack_now(delivery: Delivery) -> Self {
        if let Err(error) = delivery.ack().await {
            tracing::warn!(%error, "an early ack was lost");
        }
        Self::Acked
    }
}

/// What is to become of a request that ran to `exit`.
pub(crate) fn plan(request: &Request, exit: Exit, policy: &Policy, now: Timestamp) -> Settlement {
    let failed = |exception: &Exception, traceback: Option<String>| Settlement {
        dead_letter: None,
        record: (!policy.ignore_result).then(|| Record::failure(&request.id, exception, traceback, now)),
        verdict: Verdict::Ack,
    };
    match exit {
        Exit::Returned(result) => match json::parse(result) {
            Ok(result) => Settlement {
                dead_letter: None,
                record: (!policy.ignore_result).then(|| Record::success(&request.id, result, now)),
                verdict: Verdict::Ack,
            },
            Err(error) => {
                let message = format!("the module returned what cannot be passed on: {error}");
                failed(&Exception::rtask("InvalidResult", message), None)
            }
        },
        Exit::Raised(raised) => failed(&exception(&raised), raised.traceback),
        Exit::Trapped { reason, backtrace, panicked } => {
            let traceback = traceback(panicked.as_ref(), &reason, backtrace.as_deref());
            let trapped = panicked.map_or_else(|| Exception::rtask("Trap", reason), |panicked| exception(&panicked));
            failed(&trapped, Some(traceback))
        }
        Exit::Exceeded(limit) => failed(&exceeded(limit), None),
        Exit::Rejected { reason: _, requeue: true } => {
            Settlement { dead_letter: None, record: None, verdict: Verdict::Requeue }
        }
        Exit::Rejected { reason, requeue: false } => Settlement {
            record: failed(&Exception::rejected(&reason, false), None).record,
            dead_letter: Some(Death { code: "rejected", reason, attempts: policy.attempt }),
            verdict: Verdict::Reject,
        },
        Exit::Ignored => Settlement { dead_letter: None, record: None, verdict: Verdict::Ack },
        Exit::Lost(reason) => lost(request, reason, policy, now),
    }
}

/// The runner died under the task: run it again, unless it was acked already or has had its attempts.
fn lost(request: &Request, reason: String, policy: &Policy, now: Timestamp) -> Settlement {
    if policy.acks_late && policy.attempt < policy.delivery_limit {
        return Settlement { dead_letter: None, record: None, verdict: Verdict::Requeue };
    }
    let dead_letter =
        policy.acks_late.then(|| Death { code: "worker-lost", reason: reason.clone(), attempts: policy.attempt });
    let failure = || Record::failure(&request.id, &Exception::worker_lost(reason), None, now);
    Settlement { dead_letter, record: (!policy.ignore_result).then(failure), verdict: Verdict::Ack }
}

/// What is to become of a message that is no request. A failure is stored if it can be told whose it is.
pub(crate) fn poison(poison: &Poison, attempts: u32, now: Timestamp) -> Settlement {
    let kind = match poison.reason {
        Unreadable::ContentType(_) | Unreadable::ContentEncoding(_) | Unreadable::Compression(_) => "ContentDisallowed",
        Unreadable::NotATask
        | Unreadable::MissingHeader(_)
        | Unreadable::WrongHeader { .. }
        | Unreadable::TooLarge { .. }
        | Unreadable::Body(_) => "DecodeError",
    };
    let reason = poison.reason.to_string();
    let exception = Exception::new("kombu.exceptions", kind, vec![Value::from(reason.as_str())]);
    Settlement {
        record: poison.id.as_deref().map(|id| Record::failure(id, &exception, None, now)),
        dead_letter: Some(Death { code: poison.reason.code(), reason, attempts }),
        verdict: Verdict::Ack,
    }
}

/// What is to become of a request that is not to run.
pub(crate) fn dropped(request: &Request, reason: Reason, now: Timestamp) -> Settlement {
    let record = match reason {
        Reason::Expired if request.ignore_result != Some(true) => Some(Record::revoked(&request.id, "expired", now)),
        Reason::Expired | Reason::AlreadyDone => None,
    };
    Settlement { dead_letter: None, record, verdict: Verdict::Ack }
}

/// What is to become of a request that cannot run.
pub(crate) fn refused(request: &Request, refusal: &Refusal, attempts: u32, now: Timestamp) -> Settlement {
    let exception = match refusal {
        Refusal::NotRegistered => Exception::not_registered(&request.task),
        Refusal::TooManyAttempts { .. } => Exception::worker_lost(refusal.to_string()),
        Refusal::FollowUp(_) => Exception::rtask("FollowUpRefused", refusal.to_string()),
        Refusal::NotLoaded(_) => Exception::rtask("ModuleNotLoaded", refusal.to_string()),
    };
    // Celery stores NotRegistered even if nobody asked for a result (consumer.py, on_unknown_task).
    let wanted = request.ignore_result != Some(true) || *refusal == Refusal::NotRegistered;
    Settlement {
        dead_letter: Some(Death { code: refusal.code(), reason: refusal.to_string(), attempts }),
        record: wanted.then(|| Record::failure(&request.id, &exception, None, now)),
        verdict: Verdict::Ack,
    }
}

/// Longer names of classes and modules are nobody's (bytes).
const MAX_CLASS_NAME: usize = 255;
/// No `except Exception` catches these; raised by a client that rebuilds them, they would end it.
const UNCATCHABLE: [&str; 5] = ["BaseException", "SystemExit", "KeyboardInterrupt", "GeneratorExit", "CancelledError"];

/// A guest's exception. Arguments that are no JSON array become one argument, names that are none become Python's
/// most general one, and what would end a client becomes a class of rtask's own with the same name.
fn exception(raised: &rtask_sandbox::Exception) -> Exception {
    let named = json::parse(raised.arguments.clone()).ok();
    let arguments = named.and_then(|arguments| serde_json::from_str(arguments.get()).ok());
    let is_name = |name: &str| {
        let is_part = |character: char| character.is_alphanumeric() || matches!(character, '_' | '.' | ':');
        !name.is_empty() && name.len() <= MAX_CLASS_NAME && name.chars().all(is_part)
    };
    let module = raised.module.clone().filter(|module| is_name(module));
    Exception {
        exc_type: if is_name(&raised.kind) { raised.kind.clone() } else { "Exception".to_owned() },
        exc_message: arguments.unwrap_or_else(|| vec![Value::from(raised.arguments.as_str())]),
        exc_module: match UNCATCHABLE.contains(&raised.kind.as_str()) {
            true => Some("rtask.exceptions".to_owned()),
            false => module,
        },
    }
}

fn exceeded(limit: Limit) -> Exception {
    match limit {
        Limit::Time(limit) => Exception::time_limit_exceeded(limit.as_secs_f64()),
        Limit::Memory(bytes) => {
            Exception::rtask("MemoryLimitExceeded", format!("the task wanted more than {bytes} bytes of memory"))
        }
        Limit::Table(elements) => {
            Exception::rtask("TableLimitExceeded", format!("the task wanted more than {elements} table elements"))
        }
        Limit::Stack => Exception::rtask("StackLimitExceeded", "the task's calls were nested too deeply"),
        Limit::Result(bytes) => {
            Exception::rtask("ResultLimitExceeded", format!("the task's result has more than {bytes} bytes"))
        }
        Limit::States(count) => {
            Exception::rtask("StateLimitExceeded", format!("the task set its state more than {count} times"))
        }
        Limit::StatesSize(bytes) => {
            Exception::rtask("StateLimitExceeded", format!("the task's states have more than {bytes} bytes"))
        }
    }
}

fn traceback(panicked: Option<&rtask_sandbox::Exception>, reason: &str, backtrace: Option<&str>) -> String {
    let mut text = String::new();
    if let Some(place) = panicked.and_then(|panicked| panicked.traceback.as_deref()) {
        let _ = writeln!(text, "{place}");
    }
    let _ = writeln!(text, "{reason}");
    if let Some(backtrace) = backtrace {
        let _ = write!(text, "guest backtrace, innermost first:\n{backtrace}");
    }
    text
}

/// Do it, in the order that loses nothing: a crash between any two steps repeats the task or a step.
pub(crate) async fn apply(worker: &Worker, settlement: Settlement, held: Held) {
    let Settlement { dead_letter, record, mut verdict } = settlement;
    if let (Some(death), Held::Unacked(delivery)) = (&dead_letter, &held)
        && !bury(worker, delivery, death).await
    {
        // An operator's own dead-letter exchange is the last that can keep it.
        verdict = Verdict::Reject;
    }
    if let Some(record) = record {
        store(worker, &record).await;
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

/// False if the broker will never take it. A letter that is refused as it is, say for its size, is sent once more
/// without the headers that the message came with.
async fn bury(worker: &Worker, delivery: &Delivery, death: &Death) -> bool {
    let mut backoff = Backoff::default();
    let mut letter = dead_letter::publication(&delivery.message, &delivery.queue, death);
    let mut spare = Some(dead_letter::bare(&delivery.message, &delivery.queue, death));
    loop {
        match worker.ports.broker.publish(letter.clone()).await {
            Ok(()) => return true,
            Err(error) if error.is_permanent() => {
                tracing::error!(%error, queue = &*delivery.queue, "the broker refuses a dead letter");
                match spare.take() {
                    Some(bare) => letter = bare,
                    None => return false,
                }
                continue;
            }
            Err(error) => tracing::warn!(%error, "a dead letter could not be published; trying again"),
        }
        backoff.wait().await;
    }
}

/// A final state is a promise: it is tried until it is kept, and nothing is acked before.
async fn store(worker: &Worker, record: &Record) {
    let mut backoff = Backoff::default();
    while let Err(error) = worker.ports.backend.store(record).await {
        tracing::warn!(id = record.task_id, %error, "a result could not be stored; trying again");
        backoff.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use rtask_protocol::Call;
    use serde_json::json;

    const POLICY: Policy = Policy { ignore_result: false, acks_late: true, attempt: 1, delivery_limit: 5 };

    fn now() -> Timestamp {
        "2026-11-24T12:00:00Z".parse().unwrap()
    }

    fn request() -> Request {
        Request::decode(&Call::new("t").message(now()), 1024).unwrap()
    }

    fn raised(kind: &str, arguments: &str) -> rtask_sandbox::Exception {
        let module = Some("builtins".to_owned());
        rtask_sandbox::Exception { kind: kind.into(), module, arguments: arguments.into(), traceback: None }
    }

    /// The stored exception's type and arguments.
    fn stored(settlement: &Settlement) -> Option<(String, Vec<Value>)> {
        let exception = settlement.record.as_ref()?.exception()?;
        Some((exception.exc_type, exception.exc_message))
    }

    #[test]
    fn each_exit_is_settled_as_its_kind_demands() {
        let rejected = |requeue| Exit::Rejected { reason: "no".into(), requeue };
        let trapped = || Exit::Trapped { reason: "unreachable".into(), backtrace: None, panicked: None };
        let panicked = Exit::Trapped {
            reason: "unreachable".into(),
            backtrace: None,
            panicked: Some(raised("Panic", r#"["boom"]"#)),
        };
        let rows = [
            (Exit::Raised(raised("ValueError", r#"["no",1]"#)), Some(("ValueError", json!(["no", 1]))), Verdict::Ack),
            (Exit::Raised(raised("ValueError", "no json")), Some(("ValueError", json!(["no json"]))), Verdict::Ack),
            (Exit::Returned("no json".into()), None, Verdict::Ack),
            (trapped(), Some(("Trap", json!(["unreachable"]))), Verdict::Ack),
            (panicked, Some(("Panic", json!(["boom"]))), Verdict::Ack),
            (
                Exit::Exceeded(Limit::Time(Duration::from_secs(1))),
                Some(("TimeLimitExceeded", json!([1]))),
                Verdict::Ack,
            ),
            (rejected(false), Some(("Reject", json!(["no", false]))), Verdict::Reject),
            (rejected(true), None, Verdict::Requeue),
            (Exit::Ignored, None, Verdict::Ack),
            (Exit::Lost("signal 9".into()), None, Verdict::Requeue),
        ];
        for (exit, expected, verdict) in rows {
            let name = format!("{exit:?}");
            let invalid = matches!(exit, Exit::Returned(_));
            let settlement = plan(&request(), exit, &POLICY, now());
            if invalid {
                assert_eq!(stored(&settlement).unwrap().0, "InvalidResult");
            } else {
                let expected = expected.map(|(kind, arguments)| (kind.into(), arguments.as_array().unwrap().clone()));
                assert_eq!(stored(&settlement), expected, "{name}");
            }
            assert_eq!(settlement.verdict, verdict, "{name}");
        }
    }

    #[test]
    fn an_ignored_result_is_stored_neither_for_better_nor_for_worse() {
        let policy = Policy { ignore_result: true, ..POLICY };
        let last = Policy { attempt: 5, ..policy };
        for exit in [Exit::Returned("4".into()), Exit::Raised(raised("ValueError", "[]")), Exit::Lost("9".into())] {
            assert!(plan(&request(), exit, &last, now()).record.is_none());
        }
    }

    #[test]
    fn a_lost_task_runs_again_until_its_attempts_are_used_up() {
        let lost = |policy: &Policy| plan(&request(), Exit::Lost("signal 9".into()), policy, now());
        let last = lost(&Policy { attempt: 5, ..POLICY });
        assert_eq!((last.verdict, stored(&last).unwrap().0.as_str()), (Verdict::Ack, "WorkerLostError"));
        assert_eq!(last.dead_letter.unwrap().code, "worker-lost");
        let early = lost(&Policy { acks_late: false, ..POLICY });
        assert_eq!(stored(&early).unwrap().0, "WorkerLostError");
        assert!(early.dead_letter.is_none());
    }

    #[test]
    fn an_exception_cannot_end_the_client_that_rebuilds_it() {
        let rows = [
            ("SystemExit", "SystemExit", Some("rtask.exceptions")),
            ("KeyboardInterrupt", "KeyboardInterrupt", Some("rtask.exceptions")),
            ("ValueError", "ValueError", Some("builtins")),
            ("no name\u{1b}", "Exception", Some("builtins")),
            ("", "Exception", Some("builtins")),
        ];
        for (kind, expected, module) in rows {
            let exception = exception(&raised(kind, "[3]"));
            assert_eq!((exception.exc_type.as_str(), exception.exc_module.as_deref()), (expected, module), "{kind}");
        }
    }

    #[test]
    fn a_rejected_message_is_a_dead_letter() {
        let rejected = plan(&request(), Exit::Rejected { reason: "no".into(), requeue: false }, &POLICY, now());
        let death = Death { code: "rejected", reason: "no".into(), attempts: 1 };
        assert_eq!(rejected.dead_letter, Some(death));
    }
}
