//! How long an automatic retry waits (`celery/utils/time.py`, `get_exponential_backoff_interval`).

use std::time::Duration;

/// `factor` seconds for the first retry (`retries` is 0 then), twice as long for each further one, and never longer than `max`.
///
/// With `jitter`, a random number of at least 0 and less than 1, it is a whole number of seconds from 0 up to that, all
/// alike: Celery's full jitter.
pub fn retry_delay(retries: u32, factor: f64, max: Duration, jitter: Option<f64>) -> Duration {
    let doublings = i32::try_from(retries).unwrap_or(i32::MAX);
    let full = (factor * 2_f64.powi(doublings)).min(max.as_secs_f64());
    let seconds = match jitter {
        None => full,
        Some(jitter) => (jitter * (full + 1.0)).floor().min(full),
    };
    // Not a number, below zero: Celery waits for nothing then.
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let rows = [
            (0, 1.0, 1.0),
            (1, 1.0, 2.0),
            (3, 2.0, 16.0),
            (9, 2.0, 600.0),
            (u32::MAX, 1.0, 600.0),
            (0, 0.5, 0.5),
            (4, 0.0, 0.0),
            (4, -1.0, 0.0),
            (4, f64::NAN, 600.0),
            (4, f64::INFINITY, 600.0),
        ];
        for (retries, factor, expected) in rows {
            let delay = retry_delay(retries, factor, Duration::from_secs(600), None);
            assert_eq!(delay, Duration::from_secs_f64(expected), "{retries} {factor}");
        }
    }

    #[test]
    fn jitter_reaches_from_nothing_to_the_full_delay() {
        let delay = |jitter| retry_delay(2, 1.0, Duration::from_secs(600), Some(jitter)).as_secs();
        let rows = [(0.0, 0), (0.19, 0), (0.2, 1), (0.5, 2), (0.79, 3), (0.8, 4), (0.999, 4)];
        for (jitter, expected) in rows {
            assert_eq!(delay(jitter), expected, "{jitter}");
        }
    }
}
