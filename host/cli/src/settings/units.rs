//! How values are written. Each type has one spelling, as text; file, environment and flags share it, and the file
//! may also use TOML's own numbers, booleans and lists.

use std::{fmt, str::FromStr, time::Duration};

use rtask_sandbox::MAX_PAYLOAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Bytes: a whole number, with or without a unit such as `MiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Size(pub u64);

/// A time in seconds, with or without a fraction; 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seconds(pub Duration);

/// Names with commas between them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Names(pub Vec<String>);

/// What another room reads from text and shows as text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Text<T>(pub T);

const UNITS: [(&str, u64); 8] = [
    ("", 1),
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

/// A hundred years; beyond, clocks and their sums overflow.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

#[derive(Debug, thiserror::Error)]
#[error("it is no size; write bytes with a unit, such as `64 MiB`")]
pub struct NotASize;

impl FromStr for Size {
    type Err = NotASize;

    fn from_str(text: &str) -> Result<Self, NotASize> {
        let number = text.trim_start_matches(|character: char| character.is_ascii_digit());
        let (digits, unit) = text.split_at(text.len() - number.len());
        let known = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit.trim()));
        let (_, bytes) = known.ok_or(NotASize)?;
        let number: u64 = digits.parse().map_err(|_| NotASize)?;
        number.checked_mul(*bytes).filter(|size| *size > 0).map(Self).ok_or(NotASize)
    }
}

impl fmt::Display for Size {
    /// In the largest binary unit, to one decimal where it is not whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, bytes) = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]
            .into_iter()
            .find(|(_, bytes)| self.0 >= *bytes)
            .unwrap_or(("B", 1));
        match self.0 % bytes {
            0 => write!(f, "{} {unit}", self.0 / bytes),
            _ => write!(f, "{:.1} {unit}", self.0 as f64 / bytes as f64),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("it is no length of time; write seconds, such as `60` or `0.5`")]
pub struct NotSeconds;

impl Seconds {
    /// None for 0.
    pub fn limit(self) -> Option<Duration> {
        (!self.0.is_zero()).then_some(self.0)
    }
}

impl From<Duration> for Seconds {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl FromStr for Seconds {
    type Err = NotSeconds;

    fn from_str(text: &str) -> Result<Self, NotSeconds> {
        let seconds: f64 = text.parse().map_err(|_| NotSeconds)?;
        match Duration::try_from_secs_f64(seconds) {
            Ok(duration) if duration <= LONGEST => Ok(Self(duration)),
            Ok(_) | Err(_) => Err(NotSeconds),
        }
    }
}

impl Names {
    /// Once, however often it is named.
    pub fn add(&mut self, name: String) {
        if !self.0.contains(&name) {
            self.0.push(name);
        }
    }
}

impl FromStr for Names {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut names = Self::default();
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            names.add(name.to_owned());
        }
        Ok(names)
    }
}

/// A value as TOML has it, or as text.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a number, a boolean or text")]
enum Scalar {
    Boolean(bool),
    Integer(i64),
    Number(f64),
    Text(String),
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean(value) => value.fmt(f),
            Self::Integer(value) => value.fmt(f),
            Self::Number(value) => value.fmt(f),
            Self::Text(value) => value.fmt(f),
        }
    }
}

/// For `deserialize_with`: whatever can be read from text.
pub fn value<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(from: D) -> Result<T, D::Error> {
    let text = Scalar::deserialize(from)?.to_string();
    text.parse().map_err(|error| D::Error::custom(format_args!("`{text}`: {error}")))
}

/// As [`value`], for what has no default.
pub fn optional<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(from: D) -> Result<Option<T>, D::Error> {
    value(from).map(Some)
}

/// For `deserialize_with`: a size that a message, a result or a component can have at all.
pub fn bounded<'de, D: Deserializer<'de>>(from: D) -> Result<Size, D::Error> {
    let size = Size::deserialize(from)?;
    if size.0 > MAX_PAYLOAD {
        return Err(D::Error::custom(format_args!("{size} is more than the {} that is possible", Size(MAX_PAYLOAD))));
    }
    Ok(size)
}

/// For `deserialize_with`: what is written as a list, or as text with commas.
pub fn listed<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(from: D) -> Result<T, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a list, or text with commas")]
    enum Either {
        List(Vec<Scalar>),
        One(Scalar),
    }
    let text = match Either::deserialize(from)? {
        Either::List(items) => items.iter().map(Scalar::to_string).collect::<Vec<_>>().join(","),
        Either::One(item) => item.to_string(),
    };
    text.parse().map_err(|error| D::Error::custom(format_args!("`{text}`: {error}")))
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        value(from)
    }
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(self.0.as_secs_f64())
    }
}

impl<T: FromStr> FromStr for Text<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        text.parse().map(Self)
    }
}

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        value(from)
    }
}

impl<T: fmt::Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        value(from)
    }
}

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a list of names, or names with commas between them")]
        enum Either {
            List(Vec<String>),
            Text(String),
        }
        match Either::deserialize(from)? {
            Either::List(names) => Ok(Self(names)),
            Either::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        let rows = [
            ("64 MiB", 64 << 20),
            ("64MiB", 64 << 20),
            ("64 mib", 64 << 20),
            ("1 MB", 1_000_000),
            ("2 GiB", 2 << 30),
            ("512", 512),
            ("512 B", 512),
        ];
        for (text, bytes) in rows {
            assert_eq!(text.parse::<Size>().unwrap(), Size(bytes), "{text}");
        }
        for text in [
            "",
            "MiB",
            "-1",
            "1.5 MiB",
            "64 M iB",
            "64 apples",
            "0",
            "99999999999999999999",
            "18446744073709551615 KiB",
        ] {
            let error = text.parse::<Size>().unwrap_err().to_string();
            assert!(error.contains("64 MiB"), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit() {
        let rows = [(512, "512 B"), (64 << 20, "64 MiB"), (1_500_000, "1.4 MiB"), (2 << 30, "2 GiB")];
        for (bytes, shown) in rows {
            assert_eq!(Size(bytes).to_string(), shown);
        }
    }

    #[test]
    fn seconds_are_finite_and_not_negative() {
        let rows = [("1", 1_000), ("0.5", 500), ("0", 0), ("86400", 86_400_000)];
        for (text, milliseconds) in rows {
            assert_eq!(text.parse::<Seconds>().unwrap().0, Duration::from_millis(milliseconds), "{text}");
        }
        for text in ["soon", "-1", "nan", "inf", "1e30", ""] {
            assert!(text.parse::<Seconds>().is_err(), "{text}");
        }
        assert_eq!(Seconds(Duration::ZERO).limit(), None);
    }
}
