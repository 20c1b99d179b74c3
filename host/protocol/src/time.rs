//! Celery's spelling of an instant: ISO 8601 with microseconds and an offset.

use jiff::{Timestamp, civil::DateTime, fmt::temporal::DateTimeParser, tz::TimeZone};
use serde_json::Value;

/// `2026-11-24T08:50:42.048607+00:00`, as Python's `datetime.isoformat` writes UTC.
pub fn format(instant: Timestamp) -> String {
    instant.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%S.%6f+00:00").to_string()
}

/// Read an `eta` or `expires` header. A time without an offset is UTC, as it is for Celery's workers.
///
/// # Errors
/// The text that is no ISO 8601 date and time.
pub fn parse(text: &str) -> Result<Timestamp, jiff::Error> {
    static PARSER: DateTimeParser = DateTimeParser::new();
    PARSER.parse_timestamp(text).or_else(|_| {
        let civil: DateTime = PARSER.parse_datetime(text)?;
        Ok(civil.to_zoned(TimeZone::UTC)?.timestamp())
    })
}

/// A span as Celery's clients send it: whole seconds are integers.
pub(crate) fn seconds(span: f64) -> Value {
    match span.fract() == 0.0 && span.abs() < 9e15 {
        true => Value::from(span as i64),
        false => Value::from(span),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_written_as_python_writes_it() {
        let instant = Timestamp::from_microsecond(1_795_510_242_048_607).unwrap();
        assert_eq!(format(instant), "2026-11-24T08:50:42.048607+00:00");
        assert_eq!(parse(&format(instant)).unwrap(), instant);
    }

    #[test]
    fn offsets_and_naive_times_are_understood() {
        let rows = [
            ("2030-01-02T03:04:05+02:00", "2030-01-02T01:04:05Z"),
            ("2030-01-02T03:04:05", "2030-01-02T03:04:05Z"),
            ("2030-01-02T03:04:05.678901+00:00", "2030-01-02T03:04:05.678901Z"),
        ];
        for (text, expected) in rows {
            assert_eq!(parse(text).unwrap(), expected.parse().unwrap(), "{text}");
        }
        assert!(parse("tomorrow").is_err());
    }
}
