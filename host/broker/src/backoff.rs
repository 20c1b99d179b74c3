//! The one pace at which rtask tries again.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// The pause after the first failure, before jitter.
pub const SHORTEST: Duration = Duration::from_millis(100);
/// No pause is longer.
pub const LONGEST: Duration = Duration::from_secs(5);

/// Pauses that double from [`SHORTEST`] to [`LONGEST`]. Each is shortened by up to a half at random, so that a
/// fleet does not come back all at once.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long to wait after another failure.
    pub fn pause(&mut self) -> Duration {
        let doubled = SHORTEST.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1);
        shorten(doubled.min(LONGEST), random())
    }

    /// How long to wait after something that went well for `lived` and then failed. What lasted longer than any
    /// pause counts as a success.
    pub fn pause_after(&mut self, lived: Duration) -> Duration {
        if lived > LONGEST {
            self.failures = 0;
        }
        self.pause()
    }

    pub async fn wait(&mut self) {
        tokio::time::sleep(self.pause()).await;
    }
}

/// `pause`, less the part of its half that `random` chooses.
fn shorten(pause: Duration, random: u64) -> Duration {
    pause - (pause / 2).mul_f64(random as f64 / u64::MAX as f64)
}

/// The standard library seeds each hasher anew, which is random enough for jitter.
fn random() -> u64 {
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut backoff = Backoff::default();
        for expected in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
            let pause = backoff.pause();
            let expected = Duration::from_millis(expected);
            assert!(pause <= expected && pause >= expected / 2, "{pause:?} of {expected:?}");
        }
        let mut weary = Backoff { failures: u32::MAX };
        assert!(weary.pause() <= LONGEST);
    }

    #[test]
    fn what_lasted_begins_anew() {
        let mut backoff = Backoff { failures: 20 };
        assert!(backoff.pause_after(LONGEST) > SHORTEST);
        assert!(backoff.pause_after(LONGEST * 2) <= SHORTEST);
    }

    #[test]
    fn jitter_takes_at_most_half() {
        assert_eq!(shorten(LONGEST, 0), LONGEST);
        assert_eq!(shorten(LONGEST, u64::MAX), LONGEST / 2);
    }
}
