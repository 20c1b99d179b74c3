//! Rate limits: when the next task of a name may start.
//!
//! Celery's token bucket has room for one token (`celery/worker/consumer/consumer.py`, `bucket_for_task`), so it is the
//! same to say when the next turn is. Turns that nobody took are not saved up.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rtask_broker::{SharedLedger, ledger::Allowance};
use rtask_protocol::rate::Rate;
use tokio::time::Instant;

use crate::Options;

/// Of one worker.
#[derive(Debug, Default)]
pub(crate) struct Rates(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// What remote control has set, by task name.
    set: HashMap<String, Rate>,
    /// The next turn, by task name.
    next: HashMap<String, Instant>,
}

impl Rates {
    /// The limit of a task from now on, whatever its module says.
    pub(crate) fn set(&self, task: &str, rate: Rate) {
        let mut state = self.state();
        state.set.insert(task.to_owned(), rate);
        // Turns that the old rate has handed out do not hold up those of the new one.
        state.next.remove(task);
    }

    /// Wait for a turn of `task`, whose module says `own`. True if there was anything to wait for.
    pub(crate) async fn wait(&self, options: &Options, ledger: &SharedLedger, task: &str, own: Option<Rate>) -> bool {
        if options.disable_rate_limits {
            return false;
        }
        let here = self.reserve(task, own.or(options.task.rate_limit), Instant::now());
        let everywhere = reserve_globally(options, ledger, task).await;
        let wait = here.max(everywhere);
        if wait.is_zero() {
            return false;
        }
        tokio::time::sleep(wait).await;
        true
    }

    /// How long to wait for the turn that is taken herewith.
    fn reserve(&self, task: &str, own: Option<Rate>, now: Instant) -> Duration {
        let mut state = self.state();
        let rate = state.set.get(task).copied().or(own);
        let Some(every) = rate.and_then(|rate| rate.every()) else {
            return Duration::ZERO;
        };
        let turn = state.next.get(task).map_or(now, |next| now.max(*next));
        state.next.insert(task.to_owned(), turn + every);
        turn - now
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A store that cannot be asked holds nobody up: too fast is better than not at all.
async fn reserve_globally(options: &Options, ledger: &SharedLedger, task: &str) -> Duration {
    let Some(every) = options.global_rate_limits.get(task).and_then(Rate::every) else {
        return Duration::ZERO;
    };
    let key = format!("{}/{task}", options.tenant);
    match ledger.reserve_turn(&key, Allowance { every }).await {
        Ok(wait) => wait,
        Err(error) => {
            tracing::warn!(task, %error, "a global rate limit could not be looked up; it is not applied");
            Duration::ZERO
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> Option<Rate> {
        Some(text.parse().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn turns_are_a_rate_apart_and_are_not_saved_up() {
        let (rates, start) = (Rates::default(), Instant::now());
        let wait = |at: u64| rates.reserve("t", rate("2/s"), start + Duration::from_millis(at)).as_millis();
        assert_eq!([wait(0), wait(0), wait(100)], [0, 500, 900]);
        assert_eq!([wait(60_000), wait(60_000)], [0, 500]);
        assert_eq!(rates.reserve("other", rate("2/s"), start), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn remote_control_sets_and_lifts_limits() {
        let (rates, now) = (Rates::default(), Instant::now());
        let second = |own| {
            rates.reserve("t", own, now);
            rates.reserve("t", own, now).is_zero()
        };
        assert!(second(None));
        rates.set("t", "1/h".parse().unwrap());
        assert!(!second(None));
        rates.set("t", "1000/s".parse().unwrap());
        assert_eq!(rates.reserve("t", None, now), Duration::ZERO, "the hours before are over");
        rates.set("t", Rate::UNLIMITED);
        assert!(second(rate("1/h")));
    }
}
