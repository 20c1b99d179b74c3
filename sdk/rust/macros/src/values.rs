//! The values that options of a task can have, with the host's bounds, so that a mistake is told where it was written.

use quote::ToTokens;
use syn::{Error, Expr, ExprLit, Lit, LitBool, LitStr, Result, Token, meta::ParseNestedMeta};

/// A longer name is refused by the host (bytes).
const MAX_NAME: usize = 255;
/// A longer time is refused by the host: a year (seconds).
const MAX_SECONDS: f64 = 31_536_000.0;
/// Longer lists of exceptions are refused by the host.
const MAX_EXCEPTIONS: usize = 100;
/// A longer number in a rate is refused by the host (digits).
const MAX_RATE: usize = 20;

/// How often a task may be retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MaxRetries {
    Times(u32),
    Unlimited,
}

/// How automatic retries wait.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Backoff {
    Off,
    Factor(f64),
}

pub(crate) fn name(option: &ParseNestedMeta<'_>) -> Result<String> {
    let text: LitStr = option.value()?.parse()?;
    match text.value() {
        name if is_name(&name) => Ok(name),
        _ => Err(wrong(&text, option, &format!("has 1 to {MAX_NAME} bytes"))),
    }
}

/// `ignore_result` alone means `ignore_result = true`.
pub(crate) fn flag(option: &ParseNestedMeta<'_>) -> Result<bool> {
    match option.input.peek(Token![=]) {
        true => Ok(option.value()?.parse::<LitBool>()?.value),
        false => Ok(true),
    }
}

/// Seconds above 0.
pub(crate) fn limit(option: &ParseNestedMeta<'_>) -> Result<f64> {
    let value: Expr = option.value()?.parse()?;
    number(&value)
        .filter(|seconds| *seconds > 0.0 && *seconds <= MAX_SECONDS)
        .ok_or_else(|| wrong(&value, option, "is a number of seconds above 0, such as 5 or 0.5, and at most a year"))
}

/// Seconds, 0 or above.
pub(crate) fn delay(option: &ParseNestedMeta<'_>) -> Result<f64> {
    let value: Expr = option.value()?.parse()?;
    number(&value)
        .filter(|seconds| (0.0..=MAX_SECONDS).contains(seconds))
        .ok_or_else(|| wrong(&value, option, "is a number of seconds, 0 or above and at most a year"))
}

pub(crate) fn bytes(option: &ParseNestedMeta<'_>) -> Result<u64> {
    let value: Expr = option.value()?.parse()?;
    let bytes = match literal(&value) {
        Some(Lit::Int(bytes)) => bytes.base10_parse().ok(),
        Some(Lit::Str(text)) => size(&text.value()),
        _ => None,
    };
    bytes
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| wrong(&value, option, "is a number of bytes, or text such as \"32 MiB\" (KiB, MiB, GiB)"))
}

pub(crate) fn max_retries(option: &ParseNestedMeta<'_>) -> Result<MaxRetries> {
    let value: Expr = option.value()?.parse()?;
    let limit = match &value {
        Expr::Path(word) if word.path.is_ident("unlimited") => Some(MaxRetries::Unlimited),
        other => whole(other).map(MaxRetries::Times),
    };
    limit.ok_or_else(|| wrong(&value, option, "is a whole number, such as 5, or `unlimited`"))
}

pub(crate) fn exceptions(option: &ParseNestedMeta<'_>) -> Result<Vec<String>> {
    let value: Expr = option.value()?.parse()?;
    let text = |item: &Expr| match literal(item) {
        Some(Lit::Str(text)) => Some(text.value()),
        _ => None,
    };
    let names: Option<Vec<String>> = match &value {
        Expr::Array(array) => array.elems.iter().map(text).collect(),
        _ => None,
    };
    match names {
        Some(names) if (1..=MAX_EXCEPTIONS).contains(&names.len()) && names.iter().all(|name| is_name(name)) => {
            Ok(names)
        }
        Some(_) | None => {
            let what = format!(
                "is a list of names in quotes, such as [\"ValueError\"]: 1 to {MAX_EXCEPTIONS}, each of 1 to {MAX_NAME} bytes"
            );
            Err(wrong(&value, option, &what))
        }
    }
}

/// `retry_backoff` alone has the factor 1.
pub(crate) fn backoff(option: &ParseNestedMeta<'_>) -> Result<Backoff> {
    if !option.input.peek(Token![=]) {
        return Ok(Backoff::Factor(1.0));
    }
    let value: Expr = option.value()?.parse()?;
    let backoff = match literal(&value) {
        Some(Lit::Bool(flag)) if flag.value => Some(Backoff::Factor(1.0)),
        Some(Lit::Bool(_)) => Some(Backoff::Off),
        _ => number(&value).filter(|factor| *factor > 0.0 && *factor <= MAX_SECONDS).map(Backoff::Factor),
    };
    backoff.ok_or_else(|| wrong(&value, option, "is a flag, or a number above 0 that multiplies 1, 2, 4, .. seconds"))
}

pub(crate) fn rate(option: &ParseNestedMeta<'_>) -> Result<String> {
    let text: LitStr = option.value()?.parse()?;
    match text.value() {
        rate if is_rate(&rate) => Ok(rate),
        _ => Err(wrong(&text, option, "is a number and a time, such as \"10/s\", \"100/m\" or \"1/h\"")),
    }
}

pub(crate) fn priority(option: &ParseNestedMeta<'_>) -> Result<u8> {
    let value: Expr = option.value()?.parse()?;
    whole(&value).ok_or_else(|| wrong(&value, option, "is a whole number from 0 to 255"))
}

/// A complaint that begins with the option's name.
fn wrong(value: &impl ToTokens, option: &ParseNestedMeta<'_>, what: &str) -> Error {
    let name = option.path.get_ident().map(ToString::to_string).unwrap_or_default();
    Error::new_spanned(value, format_args!("`{name}` {what}"))
}

fn literal(value: &Expr) -> Option<&Lit> {
    match value {
        Expr::Lit(ExprLit { lit, .. }) => Some(lit),
        _ => None,
    }
}

fn whole<T: std::str::FromStr<Err: std::fmt::Display>>(value: &Expr) -> Option<T> {
    match literal(value) {
        Some(Lit::Int(number)) => number.base10_parse().ok(),
        _ => None,
    }
}

fn number(value: &Expr) -> Option<f64> {
    match literal(value) {
        Some(Lit::Float(number)) => number.base10_parse().ok(),
        _ => whole::<u32>(value).map(f64::from),
    }
}

fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len())
}

/// 0 is no limit.
fn is_rate(text: &str) -> bool {
    let (number, unit) = text.split_once('/').unwrap_or((text, "s"));
    let plain = number.len() <= MAX_RATE && number.chars().all(|digit| digit.is_ascii_digit() || digit == '.');
    plain && number.parse::<f64>().is_ok() && matches!(unit, "s" | "m" | "h")
}

fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let unit = match text[digits.len()..].trim() {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        let rows = [
            ("512 KiB", Some(512 << 10)),
            ("1GiB", Some(1 << 30)),
            ("7 B", Some(7)),
            ("7", None),
            ("32 MB", None),
            ("MiB", None),
            ("1.5 MiB", None),
            ("99999999999999999999 KiB", None),
            ("18446744073709551615 KiB", None),
        ];
        for (text, expected) in rows {
            assert_eq!(size(text), expected, "{text}");
        }
    }

    #[test]
    fn rates_are_as_celery_writes_them() {
        let rows = [
            ("10/s", true),
            ("100/m", true),
            ("1/h", true),
            ("0.5/s", true),
            ("10", true),
            ("0", true),
            ("", false),
            (".", false),
            ("-1/s", false),
            ("1/d", false),
            ("1 /s", false),
            ("inf/s", false),
        ];
        for (text, expected) in rows {
            assert_eq!(is_rate(text), expected, "{text}");
        }
    }
}
