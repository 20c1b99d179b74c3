//! Whether a task that did not succeed runs again, and when: pure functions of the request, its rules and now
//! (`celery/app/task.py`, `Task.retry`; `celery/app/autoretry.py`).

use jiff::Timestamp;
use rtask_protocol::{
    Exception, Request, backoff,
    options::MaxRetries as Named,
    repr,
    retry::{Asked, Changes},
};
use rtask_registry::manifest::MaxRetries;

use crate::rules::{AutoRetry, Rules};

/// Run the task again.
#[derive(Debug)]
pub(crate) struct Again {
    /// Stored with the state RETRY.
    pub cause: Option<Exception>,
    pub changes: Changes,
}

/// What becomes of a task that asked to be retried.
#[derive(Debug)]
pub(crate) enum Answer {
    Again(Again),
    /// No retry is left, or what it asked for makes no sense: the task ends with this.
    NoMore(Exception),
}

/// A retry that the task asked for; `options` is what `retry-request` in sdk/wit/task.wit says.
pub(crate) fn asked(
    request: &Request,
    rules: &Rules,
    cause: Option<Exception>,
    options: &str,
    now: Timestamp,
) -> Answer {
    let senseless = |error| Answer::NoMore(Exception::builtin("ValueError", format!("a retry: {error}")));
    let asked = match Asked::parse(options) {
        Ok(asked) => asked,
        Err(error) => return senseless(error),
    };
    let limit = match asked.max_retries {
        None => rules.max_retries,
        Some(Named::AtMost(times)) => MaxRetries::Times(times),
        Some(Named::Endless) => MaxRetries::Unlimited,
    };
    if is_spent(request, limit) {
        return Answer::NoMore(cause.unwrap_or_else(|| spent(request)));
    }
    let eta = match (asked.countdown, asked.eta) {
        (Some(countdown), _) => after(now, countdown.max(0.0)),
        (None, Some(eta)) => eta,
        (None, None) => after(now, rules.retry_delay.as_secs_f64()),
    };
    let expires = match asked.expires.map(|expires| expires.resolve(now)).transpose() {
        Ok(expires) => expires,
        Err(error) => return senseless(error),
    };
    let changes = Changes { eta: (eta > now).then_some(eta), expires, ..asked.changes };
    Answer::Again(Again { cause, changes })
}

/// A retry that nobody asked for, of an exception that the task's options name.
pub(crate) fn automatic(
    request: &Request,
    rules: &Rules,
    exception: &Exception,
    jitter: f64,
    now: Timestamp,
) -> Option<Again> {
    let auto = &rules.autoretry;
    if !is_any(&auto.on, exception) || is_any(&auto.except, exception) || is_spent(request, rules.max_retries) {
        return None;
    }
    let delay = match *auto {
        AutoRetry { backoff: Some(factor), backoff_max, jitter: wanted, .. } => {
            backoff::retry_delay(request.retries, factor, backoff_max, wanted.then_some(jitter))
        }
        AutoRetry { backoff: None, .. } => rules.retry_delay,
    };
    let eta = after(now, delay.as_secs_f64());
    let changes = Changes { eta: (eta > now).then_some(eta), ..Changes::default() };
    Some(Again { cause: Some(exception.clone()), changes })
}

fn is_spent(request: &Request, limit: MaxRetries) -> bool {
    match limit {
        MaxRetries::Times(times) => request.retries >= times,
        MaxRetries::Unlimited => false,
    }
}

fn spent(request: &Request) -> Exception {
    let (args, kwargs) = (&request.body.args, &request.body.kwargs);
    Exception::max_retries_exceeded(&request.task, &request.id, &repr::raw_args(args), &repr::raw_kwargs(kwargs))
}

/// Whether one of `classes` names the exception: by its class, by module and class, or as `Exception`, which all are.
fn is_any(classes: &[String], exception: &Exception) -> bool {
    classes.iter().any(|class| match class.rsplit_once('.') {
        Some((module, name)) => name == exception.exc_type && Some(module) == exception.exc_module.as_deref(),
        None => class == "Exception" || *class == exception.exc_type,
    })
}

/// The end of the calendar for what lies beyond it.
fn after(now: Timestamp, seconds: f64) -> Timestamp {
    let delay = jiff::SignedDuration::try_from_secs_f64(seconds).ok();
    delay.and_then(|delay| now.checked_add(delay).ok()).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use rtask_protocol::Call;
    use rtask_registry::manifest::TaskOptions;
    use serde_json::json;

    use crate::Options;

    fn now() -> Timestamp {
        "2026-11-24T12:00:00Z".parse().unwrap()
    }

    fn request(retries: u32) -> Request {
        let mut message = Call { id: "i".into(), ..Call::new("t") }.message(now());
        message.headers.insert("retries".into(), json!(retries));
        Request::decode(&message, 1024).unwrap()
    }

    fn rules(task: TaskOptions) -> Rules {
        Rules::of(&Options::default(), &task, &request(0), None)
    }

    fn value_error() -> Exception {
        Exception::builtin("ValueError", "no")
    }

    /// Seconds until a retry, or the exception that ends the task.
    fn outcome(answer: Answer) -> Result<f64, String> {
        match answer {
            Answer::Again(again) => Ok(again.changes.eta.map_or(0.0, |eta| eta.duration_since(now()).as_secs_f64())),
            Answer::NoMore(exception) => Err(exception.exc_type),
        }
    }

    #[test]
    fn a_task_is_retried_when_it_asks_until_no_retry_is_left() {
        let rows = [
            (0, json!({}), Ok(180.0)),
            (0, json!({"countdown": 2.5}), Ok(2.5)),
            (0, json!({"countdown": 0}), Ok(0.0)),
            (0, json!({"countdown": -1}), Ok(0.0)),
            (0, json!({"eta": "2026-11-24T12:00:10Z"}), Ok(10.0)),
            (0, json!({"eta": "2026-11-24T11:00:00Z"}), Ok(0.0)),
            (2, json!({"countdown": 1}), Ok(1.0)),
            (3, json!({"countdown": 1}), Err("MaxRetriesExceededError")),
            (3, json!({"countdown": 1, "max_retries": 4}), Ok(1.0)),
            (9, json!({"countdown": 1, "max_retries": null}), Ok(1.0)),
            (0, json!({"max_retries": 0}), Err("MaxRetriesExceededError")),
            (0, json!({"countdown": "soon"}), Err("ValueError")),
            (0, json!([]), Err("ValueError")),
        ];
        for (retries, options, expected) in rows {
            let answer = asked(&request(retries), &rules(TaskOptions::default()), None, &options.to_string(), now());
            assert_eq!(outcome(answer), expected.map_err(str::to_owned), "{retries} {options}");
        }
    }

    #[test]
    fn the_last_retry_ends_with_its_cause() {
        let answer = asked(&request(3), &rules(TaskOptions::default()), Some(value_error()), "{}", now());
        assert_eq!(outcome(answer), Err("ValueError".to_owned()));
    }

    #[test]
    fn exceptions_that_are_named_are_retried_without_being_asked() {
        let rows: [(&[&str], &[&str], bool); 7] = [
            (&[], &[], false),
            (&["ValueError"], &[], true),
            (&["builtins.ValueError"], &[], true),
            (&["other.ValueError"], &[], false),
            (&["KeyError", "Exception"], &[], true),
            (&["Exception"], &["ValueError"], false),
            (&["Exception"], &["KeyError"], true),
        ];
        for (on, except, expected) in rows {
            let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
            let task =
                TaskOptions { autoretry_for: names(on), dont_autoretry_for: names(except), ..TaskOptions::default() };
            let again = automatic(&request(0), &rules(task), &value_error(), 0.0, now());
            assert_eq!(again.is_some(), expected, "{on:?} {except:?}");
        }
    }

    #[test]
    fn automatic_retries_back_off() {
        let task = TaskOptions {
            autoretry_for: vec!["ValueError".into()],
            retry_backoff: Some(2.0),
            retry_backoff_max: Some(5.0),
            retry_jitter: Some(false),
            ..TaskOptions::default()
        };
        let rules = rules(task);
        let wait = |retries| {
            let again = automatic(&request(retries), &rules, &value_error(), 0.9, now())?;
            again.changes.eta.map(|eta| eta.duration_since(now()).unsigned_abs())
        };
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!([wait(0), wait(1), wait(2), wait(3)], [seconds(2), seconds(4), seconds(5), None]);
    }
}
