//! Rate limits as Celery writes them: `10/s`, `100/m`, `1/h` (`celery/utils/time.py`, `rate`).

use std::{fmt, str::FromStr, time::Duration};

use serde_json::Value;

/// A rarer limit than this counts as this; the longest that a turn is waited for.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// So many in a unit of time; 0 of them is no limit, as it is for Celery.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    count: f64,
    unit: Unit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Second,
    Minute,
    Hour,
}

/// Why something is no rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no rate; write a number and a unit, such as 10/s, 100/m or 1/h")]
pub struct RateError(String);

impl Rate {
    /// A rate of no limit.
    pub const UNLIMITED: Self = Self { count: 0.0, unit: Unit::Second };

    /// The time between two turns; none without a limit.
    pub fn every(&self) -> Option<Duration> {
        let seconds = match self.unit {
            Unit::Second => 1.0,
            Unit::Minute => 60.0,
            Unit::Hour => 3600.0,
        };
        (self.count > 0.0)
            .then(|| Duration::try_from_secs_f64(seconds / self.count).map_or(LONGEST, |every| every.min(LONGEST)))
    }

    /// From a setting or remote control's argument: text, a number for so many a second, or null for no limit.
    ///
    /// # Errors
    /// For everything else.
    pub fn from_json(value: &Value) -> Result<Self, RateError> {
        match value {
            Value::Null => Ok(Self::UNLIMITED),
            Value::String(text) => text.parse(),
            Value::Number(number) => number.to_string().parse(),
            Value::Bool(_) | Value::Array(_) | Value::Object(_) => Err(RateError(value.to_string())),
        }
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let error = || RateError(text.escape_debug().to_string());
        if text.is_empty() {
            return Ok(Self::UNLIMITED);
        }
        let (count, unit) = text.split_once('/').unwrap_or((text, "s"));
        let count = count.trim().parse::<f64>().ok().filter(|count| count.is_finite() && *count >= 0.0);
        let unit = match unit {
            // `10/` is Celery's 10 a second.
            "" | "s" => Unit::Second,
            "m" => Unit::Minute,
            "h" => Unit::Hour,
            _ => return Err(error()),
        };
        Ok(Self { count: count.ok_or_else(error)?, unit })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            Unit::Second => 's',
            Unit::Minute => 'm',
            Unit::Hour => 'h',
        };
        write!(f, "{}/{unit}", self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rates_are_those_of_celery() {
        let rows = [
            ("10/s", Some(100)),
            ("100/m", Some(600)),
            ("1/h", Some(3_600_000)),
            ("0.5/m", Some(120_000)),
            ("10", Some(100)),
            ("4/", Some(250)),
            ("", None),
            ("0", None),
            ("0/m", None),
        ];
        for (text, expected) in rows {
            let every = text.parse::<Rate>().unwrap().every();
            assert_eq!(every, expected.map(Duration::from_millis), "{text}");
        }
        assert_eq!("1e-300/h".parse::<Rate>().unwrap().every(), Some(LONGEST));
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        for text in ["fast", "10/d", "-1/s", "nan", "inf/s", "/s", "10/s/s", "10/S"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
        assert!(Rate::from_json(&json!([10])).is_err());
    }

    #[test]
    fn settings_may_be_numbers_and_null() {
        assert_eq!(Rate::from_json(&json!(4)).unwrap().every(), Some(Duration::from_millis(250)));
        assert_eq!(Rate::from_json(&json!(null)).unwrap().every(), None);
        assert_eq!(Rate::from_json(&json!("100/m")).unwrap().to_string(), "100/m");
    }
}
