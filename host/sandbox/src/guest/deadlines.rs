//! When a run is told to come to an end, and when it is ended.
//!
//! The hard limit ends it, whatever it does. From the soft limit on it is told, if it asks ([`Deadlines::sleep`],
//! [`Deadlines::soft_remaining`]); one that was told goes on until the hard limit, and one that was not is ended
//! [`GRACE`] after the soft one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::time::sleep_until;

use crate::{Limit, Limits};

/// How long after the soft limit a run has for asking.
const GRACE: Duration = Duration::from_secs(1);
/// Stands for a time that no clock can count to.
const FAR: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Shared by what interrupts a guest that computes, what ends one that waits, and the host functions.
pub(super) struct Deadlines {
    limit: Duration,
    hard: Instant,
    soft: Option<Soft>,
}

struct Soft {
    limit: Duration,
    at: Instant,
    /// That it has passed.
    told: AtomicBool,
    /// A sleep was ended early, or not begun, for it.
    woken: AtomicBool,
}

impl Deadlines {
    pub(super) fn new(began: Instant, limits: &Limits) -> Arc<Self> {
        let soft = limits.soft_time.filter(|&soft| soft < limits.time).map(|limit| Soft {
            limit,
            at: after(began, limit),
            told: AtomicBool::new(false),
            woken: AtomicBool::new(false),
        });
        Arc::new(Self { limit: limits.time, hard: after(began, limits.time), soft })
    }

    /// The limit that ends the run, if one does by `now`.
    pub(super) fn exceeded(&self, now: Instant) -> Option<Limit> {
        if now >= self.hard {
            return Some(Limit::Time(self.limit));
        }
        let soft = self.soft.as_ref()?;
        (now >= soft.at + GRACE && !soft.is_told()).then_some(Limit::SoftTime(soft.limit))
    }

    /// Wait for the limit that ends the run.
    pub(super) async fn pass(&self) -> Limit {
        if let Some(soft) = self.soft.as_ref().filter(|soft| soft.at + GRACE < self.hard) {
            sleep_until((soft.at + GRACE).into()).await;
            if !soft.is_told() {
                return Limit::SoftTime(soft.limit);
            }
        }
        sleep_until(self.hard.into()).await;
        Limit::Time(self.limit)
    }

    /// Until the hard limit.
    pub(super) fn remaining(&self) -> Duration {
        self.hard.saturating_duration_since(Instant::now())
    }

    /// Until the soft limit; an answer of zero is what tells the run.
    pub(super) fn soft_remaining(&self) -> Option<Duration> {
        let soft = self.soft.as_ref()?;
        let left = soft.at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            soft.told.store(true, Ordering::Release);
        }
        Some(left)
    }

    /// True once the soft limit has passed. The first sleep that meets it ends there; later ones take their time, so
    /// that a run can wait while it cleans up, and one that does not listen cannot spin.
    pub(super) async fn sleep(&self, time: Duration) -> bool {
        let end = after(Instant::now(), time);
        let Some(soft) = &self.soft else {
            sleep_until(end.into()).await;
            return false;
        };
        if soft.woken.load(Ordering::Acquire) {
            sleep_until(end.into()).await;
            return true;
        }
        sleep_until(end.min(soft.at).into()).await;
        let passed = end >= soft.at || Instant::now() >= soft.at;
        if passed {
            soft.told.store(true, Ordering::Release);
            soft.woken.store(true, Ordering::Release);
        }
        passed
    }
}

impl Soft {
    fn is_told(&self) -> bool {
        self.told.load(Ordering::Acquire)
    }
}

fn after(instant: Instant, time: Duration) -> Instant {
    instant.checked_add(time).unwrap_or_else(|| instant + FAR)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOFT: Duration = Duration::from_secs(10);
    const HARD: Duration = Duration::from_secs(20);

    fn deadlines(began: Instant, soft: Option<Duration>) -> Arc<Deadlines> {
        Deadlines::new(began, &Limits { time: HARD, soft_time: soft, ..Limits::default() })
    }

    #[test]
    fn a_run_that_nobody_told_ends_a_grace_after_the_soft_limit() {
        let began = Instant::now();
        let deadlines = deadlines(began, Some(SOFT));
        assert_eq!(deadlines.exceeded(began + SOFT), None);
        assert_eq!(deadlines.exceeded(began + SOFT + GRACE), Some(Limit::SoftTime(SOFT)));
        assert_eq!(deadlines.exceeded(began + HARD), Some(Limit::Time(HARD)), "the hard limit wins");
    }

    #[test]
    fn a_run_that_was_told_ends_with_the_hard_limit() {
        let began = Instant::now().checked_sub(SOFT).unwrap();
        let deadlines = deadlines(began, Some(SOFT));
        assert_eq!(deadlines.soft_remaining(), Some(Duration::ZERO));
        assert_eq!(deadlines.exceeded(began + SOFT + GRACE), None);
        assert_eq!(deadlines.exceeded(began + HARD), Some(Limit::Time(HARD)));
    }

    #[test]
    fn a_run_that_asked_too_early_was_not_told() {
        let began = Instant::now();
        let deadlines = deadlines(began, Some(SOFT));
        assert!(deadlines.soft_remaining().is_some_and(|left| left > Duration::ZERO));
        assert_eq!(deadlines.exceeded(began + SOFT + GRACE), Some(Limit::SoftTime(SOFT)));
    }

    #[test]
    fn a_soft_limit_beyond_the_hard_one_is_none() {
        let began = Instant::now();
        for soft in [HARD, HARD * 2, Duration::MAX] {
            assert_eq!(deadlines(began, Some(soft)).soft_remaining(), None);
        }
    }

    #[test]
    fn a_limit_that_no_clock_reaches_is_no_panic() {
        let limits = Limits { time: Duration::MAX, ..Limits::default() };
        assert_eq!(Deadlines::new(Instant::now(), &limits).exceeded(Instant::now()), None);
    }

    #[tokio::test]
    async fn only_the_first_sleep_is_cut_short() {
        let deadlines = deadlines(Instant::now().checked_sub(SOFT).unwrap(), Some(SOFT));
        let first = tokio::time::timeout(Duration::from_secs(60), deadlines.sleep(Duration::from_secs(3_600))).await;
        assert_eq!(first, Ok(true));
        let began = Instant::now();
        assert!(deadlines.sleep(Duration::from_millis(20)).await);
        assert!(began.elapsed() >= Duration::from_millis(20));
    }
}
