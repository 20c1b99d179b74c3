//! What becomes of a task after its run, or without one: pure functions. `apply` does it.

use jiff::Timestamp;
use rtask_broker::{Publication, Verdict};
use rtask_protocol::{Exception, Message, Poison, Record, json, record::Child};
use rtask_sandbox::{Exit, Limit};
use serde_json::{Value, value::RawValue};

use crate::{
    admit::{Reason, Refusal},
    dead_letter::Death,
    exceptions,
    follow::Parent,
    retry::{self, Again, Answer},
    rules::Rules,
};

/// Everything that is to happen, in the order of the fields.
#[derive(Debug, Default)]
pub(crate) struct Settlement {
    pub follow_ups: Vec<Publication>,
    pub dead_letter: Option<Death>,
    pub record: Option<Record>,
    pub verdict: Verdict,
}

/// A run that has come to its end, with all that matters for what follows.
pub(crate) struct Case<'a> {
    pub parent: Parent<'a>,
    pub message: &'a Message,
    /// The queue from which the message came.
    pub queue: &'a str,
    pub rules: &'a Rules,
    /// 1 for the first.
    pub attempt: u32,
    /// The tasks that it sent.
    pub children: Vec<Child>,
    /// At least 0 and below 1.
    pub jitter: f64,
    pub now: Timestamp,
}

/// What is to become of a request that ran to `exit`.
pub(crate) fn plan(case: Case<'_>, exit: Exit) -> Settlement {
    match exit {
        Exit::Returned(result) => match json::parse(result) {
            Ok(result) => succeeded(case, result),
            Err(error) => {
                let message = format!("the module returned what cannot be passed on: {error}");
                failed(case, Exception::rtask("InvalidResult", message), None)
            }
        },
        Exit::Raised(raised) => raised_to_the_end(case, exceptions::raised(&raised), raised.traceback),
        Exit::Retry { cause, options } => {
            let traceback = cause.as_ref().and_then(|cause| cause.traceback.clone());
            let cause = cause.as_ref().map(exceptions::raised);
            match retry::asked(case.parent.request, case.rules, cause, &options, case.now) {
                Answer::Again(again) => retried(case, again, traceback),
                Answer::NoMore(exception) => failed(case, exception, traceback),
            }
        }
        Exit::Trapped { reason, backtrace, panicked } => {
            let traceback = exceptions::traceback(panicked.as_ref(), &reason, backtrace.as_deref());
            match panicked {
                Some(panicked) => raised_to_the_end(case, exceptions::raised(&panicked), Some(traceback)),
                None => failed(case, Exception::rtask("Trap", reason), Some(traceback)),
            }
        }
        Exit::Exceeded(limit @ Limit::SoftTime(_)) => raised_to_the_end(case, exceptions::exceeded(limit), None),
        Exit::Exceeded(limit @ Limit::Time(_)) => timed_out(case, exceptions::exceeded(limit)),
        Exit::Exceeded(limit) => failed(case, exceptions::exceeded(limit), None),
        Exit::Rejected { reason: _, requeue: true } => {
            Settlement { verdict: Verdict::Requeue, ..Settlement::default() }
        }
        Exit::Rejected { reason, requeue: false } => {
            let death = Death { code: "rejected", reason: reason.clone(), attempts: case.attempt };
            let failed = failed(case, Exception::rejected(&reason, false), None);
            Settlement { dead_letter: Some(death), verdict: Verdict::Reject, ..failed }
        }
        Exit::Ignored => Settlement::default(),
        Exit::Cancelled => terminated(&case),
        Exit::Lost(reason) => lost(case, reason),
    }
}

fn succeeded(mut case: Case<'_>, result: Box<RawValue>) -> Settlement {
    let follow_ups = match case.parent.after_success(&result, case.now) {
        Ok((follow_ups, child)) => {
            case.children.extend(child);
            follow_ups
        }
        Err(error) => return failed(case, Exception::builtin("ValueError", format!("a callback: {error}")), None),
    };
    let record = (!case.rules.ignore_result).then(|| {
        let record = Record::success(&case.parent.request.id, result, case.now);
        case.parent.completed(record, case.queue, &case.children)
    });
    Settlement { follow_ups, record, ..Settlement::default() }
}

/// An exception that the task let go, and that may be one that is retried without being asked.
fn raised_to_the_end(case: Case<'_>, exception: Exception, traceback: Option<String>) -> Settlement {
    match retry::automatic(case.parent.request, case.rules, &exception, case.jitter, case.now) {
        Some(again) => retried(case, again, traceback),
        None => failed(case, exception, traceback),
    }
}

fn retried(case: Case<'_>, Again { cause, changes }: Again, traceback: Option<String>) -> Settlement {
    let publication = case.parent.retry(case.message, case.queue, &changes, case.now);
    let record = case.rules.store_errors.then(|| {
        let record = Record::retry(&case.parent.request.id, cause.as_ref(), traceback);
        case.parent.completed(record, case.queue, &case.children)
    });
    Settlement { follow_ups: vec![publication], record, ..Settlement::default() }
}

fn failed(case: Case<'_>, exception: Exception, traceback: Option<String>) -> Settlement {
    let follow_ups = errbacks(&case.parent, &exception, traceback.as_deref(), case.now);
    let (dead_letter, verdict) = match case.rules.acks_on_failure || !case.rules.acks_late {
        true => (None, Verdict::Ack),
        false => {
            let reason = format!("the task failed with {}", exception.exc_type);
            (Some(Death { code: "failed", reason, attempts: case.attempt }), Verdict::Reject)
        }
    };
    let record = case.rules.store_errors.then(|| {
        let record = Record::failure(&case.parent.request.id, &exception, traceback, case.now);
        case.parent.completed(record, case.queue, &case.children)
    });
    Settlement { follow_ups, dead_letter, record, verdict }
}

/// An errback that cannot be called does not undo the failure, which is stored with or without it.
fn errbacks(parent: &Parent<'_>, exception: &Exception, traceback: Option<&str>, now: Timestamp) -> Vec<Publication> {
    parent.after_failure(exception, traceback, now).unwrap_or_else(|error| {
        tracing::error!(id = parent.request.id, %error, "the errbacks are not called");
        Vec::new()
    })
}

/// A task that may be tried again after its time limit goes back while it has attempts left, and is a dead letter then;
/// its state is a failure all the same (`celery/worker/request.py`, `on_timeout`).
fn timed_out(case: Case<'_>, exception: Exception) -> Settlement {
    let again = !case.rules.acks_on_timeout && case.rules.acks_late;
    let (attempts, limit) = (case.attempt, case.rules.delivery_limit);
    let failed = failed(case, exception, None);
    if !again {
        return failed;
    }
    if attempts < limit {
        return Settlement { follow_ups: Vec::new(), dead_letter: None, verdict: Verdict::Requeue, ..failed };
    }
    let reason = format!("the task ran into its time limit {attempts} times");
    Settlement { dead_letter: Some(Death { code: "time-limit", reason, attempts }), ..failed }
}

fn terminated(case: &Case<'_>) -> Settlement {
    let revoked = || Record::revoked(&case.parent.request.id, "terminated", case.now);
    let record = case.rules.store_errors.then(|| case.parent.completed(revoked(), case.queue, &case.children));
    Settlement { record, ..Settlement::default() }
}

/// The runner died under the task: run it again, unless it was acked already, does not want to be, or has had its
/// attempts.
fn lost(case: Case<'_>, reason: String) -> Settlement {
    let (rules, attempts) = (case.rules, case.attempt);
    let again = rules.acks_late && rules.reject_on_worker_lost;
    if again && attempts < rules.delivery_limit {
        return Settlement { verdict: Verdict::Requeue, ..Settlement::default() };
    }
    let failed = failed(case, Exception::worker_lost(reason.clone()), None);
    match again {
        true => Settlement { dead_letter: Some(Death { code: "worker-lost", reason, attempts }), ..failed },
        false => failed,
    }
}

/// What is to become of a message that is no request. A failure is stored if it can be told whose it is.
pub(crate) fn poison(poison: &Poison, attempts: u32, now: Timestamp) -> Settlement {
    let kind = match &poison.reason {
        reason if reason.is_refused_content() => "ContentDisallowed",
        _ => "DecodeError",
    };
    let reason = poison.reason.to_string();
    let exception = Exception::new("kombu.exceptions", kind, vec![Value::from(reason.as_str())]);
    Settlement {
        record: poison.id.as_deref().map(|id| Record::failure(id, &exception, None, now)),
        dead_letter: Some(Death { code: poison.reason.code(), reason, attempts }),
        ..Settlement::default()
    }
}

/// What is to become of a request that is not to run.
pub(crate) fn dropped(parent: &Parent<'_>, reason: Reason, now: Timestamp) -> Settlement {
    let told = match reason {
        Reason::Expired => "expired",
        Reason::Revoked => "revoked",
        Reason::AlreadyDone => return Settlement::default(),
    };
    let record = parent.stores_errors().then(|| Record::revoked(&parent.request.id, told, now).of(parent.request));
    Settlement { record, ..Settlement::default() }
}

/// What is to become of a request that cannot run.
pub(crate) fn refused(parent: &Parent<'_>, refusal: &Refusal, attempts: u32, now: Timestamp) -> Settlement {
    let exception = match refusal {
        Refusal::NotRegistered => Exception::not_registered(&parent.request.task),
        Refusal::TooManyAttempts { .. } => Exception::worker_lost(refusal.to_string()),
        Refusal::FollowUp(_) | Refusal::BadFollowUp(_) => Exception::rtask("FollowUpRefused", refusal.to_string()),
        Refusal::NotLoaded(_) => Exception::rtask("ModuleNotLoaded", refusal.to_string()),
    };
    // Celery stores NotRegistered even if nobody asked for a result (consumer.py, on_unknown_task).
    let wanted = parent.stores_errors() || *refusal == Refusal::NotRegistered;
    Settlement {
        follow_ups: errbacks(parent, &exception, None, now),
        dead_letter: Some(Death { code: refusal.code(), reason: refusal.to_string(), attempts }),
        record: wanted.then(|| Record::failure(&parent.request.id, &exception, None, now).of(parent.request)),
        verdict: Verdict::Ack,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use rtask_broker::Target;
    use rtask_protocol::{Call, Request, State};
    use rtask_registry::manifest::TaskOptions;
    use serde_json::json;

    use crate::{
        Options,
        catalogue::{Catalogue, catalogue},
        follow::FollowUps,
    };

    fn now() -> Timestamp {
        "2026-11-24T12:00:00Z".parse().unwrap()
    }

    /// A message, and all that surrounds its run.
    struct Scene {
        message: Message,
        request: Request,
        follow_ups: FollowUps,
        catalogue: Catalogue,
        options: Options,
        rules: Rules,
        attempt: u32,
    }

    impl Scene {
        fn new(task: TaskOptions) -> Self {
            Self::of(Call::new("t"), task)
        }

        fn of(call: Call, task: TaskOptions) -> Self {
            let message = call.message(now());
            let request = Request::decode(&message, 4096).unwrap();
            let options = Options::default();
            let rules = Rules::of(&options, &task, &request, None);
            let follow_ups = FollowUps::parse(&request.body.embed).unwrap();
            Self { message, follow_ups, catalogue: catalogue().1, options, rules, attempt: 1, request }
        }

        fn parent(&self) -> Parent<'_> {
            Parent {
                request: &self.request,
                follow_ups: &self.follow_ups,
                catalogue: &self.catalogue,
                options: &self.options,
            }
        }

        fn ends(&self, exit: Exit) -> Settlement {
            let (parent, message, rules, attempt) = (self.parent(), &self.message, &self.rules, self.attempt);
            let case =
                Case { parent, message, queue: "q", rules, attempt, children: Vec::new(), jitter: 0.0, now: now() };
            plan(case, exit)
        }
    }

    fn raised(kind: &str, arguments: &str) -> rtask_sandbox::Exception {
        let module = Some("builtins".to_owned());
        rtask_sandbox::Exception { kind: kind.into(), module, arguments: arguments.into(), traceback: None }
    }

    fn lost() -> Exit {
        Exit::Lost("signal 9".into())
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
        let time = Limit::Time(Duration::from_secs(1));
        let rows = [
            (Exit::Raised(raised("ValueError", r#"["no",1]"#)), Some(("ValueError", json!(["no", 1]))), Verdict::Ack),
            (Exit::Raised(raised("ValueError", "no json")), Some(("ValueError", json!(["no json"]))), Verdict::Ack),
            (trapped(), Some(("Trap", json!(["unreachable"]))), Verdict::Ack),
            (panicked, Some(("Panic", json!(["boom"]))), Verdict::Ack),
            (Exit::Exceeded(time), Some(("TimeLimitExceeded", json!([1]))), Verdict::Ack),
            (rejected(false), Some(("Reject", json!(["no", false]))), Verdict::Reject),
            (rejected(true), None, Verdict::Requeue),
            (Exit::Ignored, None, Verdict::Ack),
            (Exit::Cancelled, Some(("TaskRevokedError", json!(["terminated"]))), Verdict::Ack),
            (lost(), None, Verdict::Requeue),
        ];
        for (exit, expected, verdict) in rows {
            let name = format!("{exit:?}");
            let settlement = Scene::new(TaskOptions::default()).ends(exit);
            let expected = expected.map(|(kind, arguments)| (kind.into(), arguments.as_array().unwrap().clone()));
            assert_eq!(stored(&settlement), expected, "{name}");
            assert_eq!(settlement.verdict, verdict, "{name}");
        }
    }

    #[test]
    fn a_result_that_nobody_could_read_is_a_failure() {
        let settlement = Scene::new(TaskOptions::default()).ends(Exit::Returned("no json".into()));
        assert_eq!(stored(&settlement).unwrap().0, "InvalidResult");
    }

    #[test]
    fn an_ignored_result_is_stored_neither_for_better_nor_for_worse_unless_errors_are_wanted() {
        let quiet = TaskOptions { ignore_result: Some(true), ..TaskOptions::default() };
        let scene = Scene { attempt: 5, ..Scene::new(quiet.clone()) };
        let raises = || Exit::Raised(raised("ValueError", "[]"));
        for exit in [Exit::Returned("4".into()), raises(), lost(), Exit::Cancelled] {
            assert!(scene.ends(exit).record.is_none());
        }
        let telling = Scene::new(TaskOptions { store_errors_even_if_ignored: Some(true), ..quiet });
        assert!(telling.ends(raises()).record.is_some());
        assert!(telling.ends(Exit::Returned("4".into())).record.is_none());
    }

    #[test]
    fn a_lost_task_runs_again_until_its_attempts_are_used_up() {
        let last = Scene { attempt: 5, ..Scene::new(TaskOptions::default()) }.ends(lost());
        assert_eq!((last.verdict, stored(&last).unwrap().0.as_str()), (Verdict::Ack, "WorkerLostError"));
        assert_eq!(last.dead_letter.unwrap().code, "worker-lost");
        let early = Scene::new(TaskOptions { acks_late: Some(false), ..TaskOptions::default() }).ends(lost());
        let once =
            Scene::new(TaskOptions { reject_on_worker_lost: Some(false), ..TaskOptions::default() }).ends(lost());
        for settlement in [early, once] {
            assert_eq!(stored(&settlement).unwrap().0, "WorkerLostError");
            assert!(settlement.dead_letter.is_none());
        }
    }

    #[test]
    fn what_is_not_to_be_acknowledged_is_rejected_or_goes_back() {
        let raises = || Exit::Raised(raised("ValueError", "[]"));
        let timeout = || Exit::Exceeded(Limit::Time(Duration::from_secs(1)));
        let on_failure = TaskOptions { acks_on_failure: Some(false), ..TaskOptions::default() };
        let on_timeout = TaskOptions { acks_on_timeout: Some(false), ..TaskOptions::default() };
        let early = TaskOptions { acks_late: Some(false), ..on_failure.clone() };
        let rows = [
            (on_failure.clone(), 1, raises(), Verdict::Reject, true),
            (early, 1, raises(), Verdict::Ack, false),
            (on_timeout.clone(), 1, timeout(), Verdict::Requeue, false),
            (on_timeout.clone(), 5, timeout(), Verdict::Ack, true),
            (on_timeout, 1, raises(), Verdict::Ack, false),
        ];
        for (task, attempt, exit, verdict, buried) in rows {
            let settlement = Scene { attempt, ..Scene::new(task.clone()) }.ends(exit);
            assert_eq!((settlement.verdict, settlement.dead_letter.is_some()), (verdict, buried), "{task:?}");
            assert_eq!(settlement.record.unwrap().status, State::Failure);
        }
    }

    #[test]
    fn a_retry_is_a_message_of_the_same_id_and_a_state() {
        let scene = Scene::new(TaskOptions::default());
        let options = r#"{"countdown": 5, "priority": 7}"#.to_owned();
        let settlement = scene.ends(Exit::Retry { cause: Some(raised("ValueError", "[]")), options });
        let [again] = settlement.follow_ups.as_slice() else { panic!("{settlement:?}") };
        let next = Request::decode(&again.message, 4096).unwrap();
        assert_eq!((next.id, next.retries, next.priority), (scene.request.id.clone(), 1, 7));
        assert_eq!(again.target, Target::Queue("q".into()));
        assert_eq!(settlement.record.unwrap().status, State::Retry);
        assert_eq!(settlement.verdict, Verdict::Ack);
    }

    #[test]
    fn callbacks_follow_success_and_errbacks_failure() {
        let mut call = Call::new("t");
        let signature = |task: &str| RawValue::from_string(format!(r#"[{{"task": "{task}"}}]"#)).unwrap();
        call.embed.callbacks = Some(signature("then"));
        call.embed.errbacks = Some(signature("oh"));
        let scene = Scene::of(call, TaskOptions::default());
        let follows = |settlement: &Settlement| -> Vec<(Value, String)> {
            let message = |publication: &Publication| {
                let request = Request::decode(&publication.message, 4096).unwrap();
                (json!(request.task), request.body.args.get().to_owned())
            };
            settlement.follow_ups.iter().map(message).collect()
        };
        let success = scene.ends(Exit::Returned("4".into()));
        assert_eq!(follows(&success), [(json!("then"), "[4]".to_owned())]);
        assert_eq!(success.record.unwrap().children.as_array().unwrap().len(), 1);
        let failure = scene.ends(Exit::Raised(raised("ValueError", "[]")));
        assert_eq!(follows(&failure), [(json!("oh"), format!(r#"["{}"]"#, scene.request.id))]);
        // It has not failed yet.
        assert!(follows(&scene.ends(lost())).is_empty());
    }

    #[test]
    fn a_small_message_cannot_make_the_worker_send_more_than_fits_into_it() {
        let mut call = Call::new("t");
        let links = format!("[{}]", [r#"{"task": "then"}"#; 1000].join(","));
        call.embed.callbacks = Some(RawValue::from_string(links).unwrap());
        let message = call.message(now());
        let request = Request::decode(&message, 1 << 20).unwrap();
        let scene =
            Scene { follow_ups: FollowUps::parse(&request.body.embed).unwrap(), ..Scene::new(TaskOptions::default()) };
        assert_eq!(scene.ends(Exit::Returned("4".into())).follow_ups.len(), 1000);
        let settlement = scene.ends(Exit::Returned(format!("\"{}\"", "x".repeat(1 << 20))));
        assert!(settlement.follow_ups.is_empty());
        assert_eq!(stored(&settlement).unwrap().0, "ValueError");
    }

    #[test]
    fn a_revoked_task_is_marked_unless_its_failures_are_ignored() {
        let rows = [(None, Some(State::Revoked)), (Some(false), Some(State::Revoked)), (Some(true), None)];
        for (ignore_result, expected) in rows {
            let scene = Scene::of(Call { ignore_result, ..Call::new("t") }, TaskOptions::default());
            let request = Request { parent_id: Some("p".into()), ..scene.request.clone() };
            let parent = Parent { request: &request, ..scene.parent() };
            let record = dropped(&parent, Reason::Revoked, now()).record;
            assert_eq!(record.as_ref().map(|record| record.status.clone()), expected);
            assert!(record.is_none_or(|record| record.parent_id.as_deref() == Some("p")));
        }
    }

    #[test]
    fn a_rejected_message_is_a_dead_letter() {
        let scene = Scene::new(TaskOptions::default());
        let rejected = scene.ends(Exit::Rejected { reason: "no".into(), requeue: false });
        assert_eq!(rejected.dead_letter, Some(Death { code: "rejected", reason: "no".into(), attempts: 1 }));
    }
}
