//! What holds for one run: the message's word, the task's options, and the worker's settings where neither says.

use std::time::Duration;

use rtask_protocol::Request;
use rtask_registry::manifest::{MaxRetries, TaskOptions};
use rtask_sandbox::Limits;

use crate::{Options, options::LONGEST_RUN};

/// Resolved once a run.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub acks_late: bool,
    pub acks_on_failure: bool,
    pub acks_on_timeout: bool,
    pub reject_on_worker_lost: bool,
    pub delivery_limit: u32,
    pub ignore_result: bool,
    /// Whether a failure is stored.
    pub store_errors: bool,
    pub track_started: bool,
    pub max_retries: MaxRetries,
    pub retry_delay: Duration,
    pub autoretry: AutoRetry,
    pub limits: Limits,
}

/// Which exceptions are retried without being asked, and when (`celery/app/autoretry.py`).
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct AutoRetry {
    pub on: Vec<String>,
    pub except: Vec<String>,
    /// Seconds; none waits for the task's own delay each time.
    pub backoff: Option<f64>,
    pub backoff_max: Duration,
    pub jitter: bool,
}

/// Celery's `retry_backoff_max`.
const BACKOFF_MAX: Duration = Duration::from_secs(600);

impl Rules {
    pub(crate) fn of(options: &Options, task: &TaskOptions, request: &Request, set: Option<SetTimeLimits>) -> Self {
        let defaults = &options.task;
        let ignore_result = request.ignore_result.or(task.ignore_result).unwrap_or(defaults.ignore_result);
        let store_errors = task.store_errors_even_if_ignored.unwrap_or(defaults.store_errors_even_if_ignored);
        Self {
            acks_late: task.acks_late.unwrap_or(defaults.acks_late),
            acks_on_failure: task.acks_on_failure.unwrap_or(defaults.acks_on_failure),
            acks_on_timeout: task.acks_on_timeout.unwrap_or(defaults.acks_on_timeout),
            reject_on_worker_lost: task.reject_on_worker_lost.unwrap_or(defaults.reject_on_worker_lost),
            delivery_limit: options.delivery_limit,
            ignore_result,
            store_errors: store_errors || !ignore_result,
            track_started: task.track_started.unwrap_or(defaults.track_started),
            max_retries: task.max_retries.unwrap_or(defaults.max_retries),
            retry_delay: task.default_retry_delay.map_or(defaults.retry_delay, seconds),
            autoretry: AutoRetry {
                on: task.autoretry_for.clone(),
                except: task.dont_autoretry_for.clone(),
                backoff: task.retry_backoff,
                backoff_max: task.retry_backoff_max.map_or(BACKOFF_MAX, seconds),
                jitter: task.retry_jitter.unwrap_or(true),
            },
            limits: limits(options, task, request, set),
        }
    }
}

/// What remote control has set for a task in place of what its module says (seconds; none is no limit).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SetTimeLimits {
    pub hard: Option<f64>,
    pub soft: Option<f64>,
}

/// The narrower of what the message and the task ask for, and the worker's own where neither does.
fn limits(options: &Options, task: &TaskOptions, request: &Request, set: Option<SetTimeLimits>) -> Limits {
    let own = set.unwrap_or(SetTimeLimits { hard: task.time_limit, soft: task.soft_time_limit });
    let narrower = |message: Option<f64>, own: Option<f64>| {
        [message, own].into_iter().flatten().reduce(f64::min).map(|limit| seconds(limit).min(LONGEST_RUN))
    };
    let asked = request.time_limit;
    let time = narrower(asked.hard, own.hard).map_or(options.limits.time, |named| named.min(options.max_time));
    let soft = narrower(asked.soft, own.soft).or(options.limits.soft_time);
    let memory = task.memory.unwrap_or(options.limits.memory).min(options.max_memory);
    Limits { time, soft_time: soft.filter(|soft| *soft < time), memory, ..options.limits.clone() }
}

/// From a number that a message or a manifest holds; what no clock can count is the longest run.
pub(crate) fn seconds(number: f64) -> Duration {
    Duration::try_from_secs_f64(number).unwrap_or(LONGEST_RUN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtask_protocol::{Call, TimeLimit};

    fn request(hard: Option<f64>, soft: Option<f64>) -> Request {
        let call = Call { time_limit: TimeLimit { hard, soft }, ..Call::new("t") };
        Request::decode(&call.message(jiff::Timestamp::UNIX_EPOCH), 1024).unwrap()
    }

    #[test]
    fn the_narrowest_named_time_limit_wins() {
        let options = Options::default();
        let rows = [
            (None, None, 300),
            (Some(1.0), None, 1),
            (None, Some(2.0), 2),
            (Some(9.0), Some(2.0), 2),
            (Some(900.0), None, 900),
            (Some(f64::MAX), None, 3600),
        ];
        for (message, task, expected) in rows {
            let task = TaskOptions { time_limit: task, ..TaskOptions::default() };
            let limits = limits(&options, &task, &request(message, None), None);
            assert_eq!(limits.time.as_secs(), expected);
        }
    }

    #[test]
    fn a_soft_limit_counts_only_below_the_hard_one() {
        let options = Options::default();
        let rows = [
            ((None, None), None, None, None),
            ((None, Some(2.0)), None, None, Some(2)),
            ((None, None), Some(3.0), None, Some(3)),
            ((None, Some(2.0)), Some(3.0), None, Some(2)),
            ((Some(2.0), Some(2.0)), None, None, None),
            ((Some(1.0), None), Some(3.0), None, None),
            ((None, None), Some(3.0), Some(SetTimeLimits { hard: Some(60.0), soft: Some(5.0) }), Some(5)),
            ((None, None), Some(3.0), Some(SetTimeLimits { hard: None, soft: None }), None),
        ];
        for ((hard, soft), own, set, expected) in rows {
            let task = TaskOptions { soft_time_limit: own, ..TaskOptions::default() };
            let limits = limits(&options, &task, &request(hard, soft), set);
            assert_eq!(limits.soft_time.map(|soft| soft.as_secs()), expected, "{hard:?} {soft:?} {own:?} {set:?}");
        }
    }

    #[test]
    fn a_task_may_ask_for_no_more_memory_than_the_worker_gives() {
        let options = Options { max_memory: 100 << 20, ..Options::default() };
        let rows = [(None, 64 << 20), (Some(1 << 20), 1 << 20), (Some(1 << 40), 100 << 20)];
        for (memory, expected) in rows {
            let task = TaskOptions { memory, ..TaskOptions::default() };
            assert_eq!(limits(&options, &task, &request(None, None), None).memory, expected);
        }
    }

    #[test]
    fn an_ignored_result_may_leave_its_errors() {
        let rows = [
            (None, None, None, (false, true)),
            (Some(true), None, None, (true, false)),
            (None, Some(true), None, (true, false)),
            (Some(false), Some(true), None, (false, true)),
            (Some(true), None, Some(true), (true, true)),
        ];
        for (message, task, errors, expected) in rows {
            let options =
                TaskOptions { ignore_result: task, store_errors_even_if_ignored: errors, ..TaskOptions::default() };
            let request = Request { ignore_result: message, ..request(None, None) };
            let rules = Rules::of(&Options::default(), &options, &request, None);
            assert_eq!((rules.ignore_result, rules.store_errors), expected);
        }
    }
}
