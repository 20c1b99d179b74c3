//! The bounds on what a guest may say of itself.

use std::collections::HashSet;

use rtask_protocol::rate::Rate;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::{Parameter, TaskOptions, TaskSpec};

/// Of the whole text, in bytes. It is kept with every version, and sent to every worker.
pub const MAX_SIZE: usize = 1 << 20;
pub const MAX_TASKS: usize = 1_000;
pub const MAX_PARAMETERS: usize = 255;
/// Of a list such as `autoretry_for`.
pub const MAX_EXCEPTIONS: usize = 100;
/// Of a task's, a parameter's, a queue's or an exception's name, in bytes: a message that asks for a longer one is poison.
pub const MAX_NAME: usize = rtask_protocol::request::MAX_NAME;
/// In characters.
pub const MAX_DOC: usize = 10_000;
/// In characters.
pub const MAX_SDK: usize = 64;
/// One year. What is meant to take longer has no limit; and larger numbers overflow clocks.
pub const MAX_SECONDS: f64 = 31_536_000.0;

/// Of a parameter's default, in levels. A manifest is read again within its version, where the reader's own limit
/// (128 levels in serde_json) must not be met.
pub const MAX_DEPTH: usize = 32;

/// Celery's own tasks, such as `celery.chord_unlock`.
const RESERVED_PREFIX: &str = "celery.";
/// Of a guest's text in an error, in characters.
const MAX_QUOTED: usize = 200;
const MAX_MODULE_NAME: usize = 64;
/// Of the number in a rate limit, in digits.
const MAX_RATE: usize = 20;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Fault {
    #[error("it has {size} bytes, more than the {MAX_SIZE} allowed")]
    TooLarge { size: usize },
    /// JSON of another shape, or no JSON.
    #[error("{0}")]
    Shape(String),
    #[error(
        "`{0}` cannot name a module: use up to 64 letters, digits, `_`, `.` and `-`, beginning with none of the last two"
    )]
    ModuleName(String),
    #[error("it has no tasks")]
    NoTasks,
    #[error("it has {count} {what}, more than the {limit} allowed")]
    TooMany { what: &'static str, count: usize, limit: usize },
    #[error("{0} is empty")]
    Empty(&'static str),
    #[error("{what} is longer than the {limit} {unit} allowed")]
    TooLong { what: &'static str, limit: usize, unit: &'static str },
    #[error("{0} holds control or invisible characters")]
    Hidden(&'static str),
    #[error("names that begin with `{RESERVED_PREFIX}` are Celery's own; rename it")]
    Reserved,
    #[error("{0} is named twice")]
    Repeated(&'static str),
    #[error("the parameter `{0}` is named twice")]
    RepeatedParameter(String),
    #[error("the default of parameter `{0}` is nested deeper than the {MAX_DEPTH} levels allowed")]
    TooDeep(String),
    #[error("{what} of {seconds} seconds is not above 0 and at most {MAX_SECONDS}")]
    Limit { what: &'static str, seconds: f64 },
    #[error("{what} of {seconds} seconds is not 0 or above and at most {MAX_SECONDS}")]
    Delay { what: &'static str, seconds: f64 },
    #[error("a soft time limit of {soft} seconds is over the hard one of {hard}, and would never be met")]
    SoftOverHard { soft: f64, hard: f64 },
    #[error("the rate limit `{0}` is not a number for each second, minute or hour, such as `10/s`, `100/m` or `1/h`")]
    Rate(String),
    #[error("a memory limit of 0 bytes lets nothing run")]
    Memory,
}

/// A manifest whose tasks are yet to be read, so that an error can say in which it is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Outline<'a> {
    pub module: String,
    pub sdk: String,
    #[serde(borrow)]
    pub tasks: Vec<&'a RawValue>,
}

pub(super) fn outline(text: &str) -> Result<Outline<'_>, Fault> {
    if text.len() > MAX_SIZE {
        return Err(Fault::TooLarge { size: text.len() });
    }
    let outline: Outline<'_> = serde_json::from_str(text).map_err(shape)?;
    if !is_module_name(&outline.module) {
        return Err(Fault::ModuleName(printable(&outline.module)));
    }
    short("the SDK's name", &outline.sdk, MAX_SDK)?;
    visible("the SDK's name", &outline.sdk)?;
    if outline.tasks.is_empty() {
        return Err(Fault::NoTasks);
    }
    few("tasks", outline.tasks.len(), MAX_TASKS)?;
    Ok(outline)
}

pub(super) fn task(raw: &RawValue) -> Result<TaskSpec, Fault> {
    let task: TaskSpec = serde_json::from_str(raw.get()).map_err(shape)?;
    name("its name", &task.name)?;
    if task.name.starts_with(RESERVED_PREFIX) {
        return Err(Fault::Reserved);
    }
    if let Some(doc) = &task.doc {
        short("its doc", doc, MAX_DOC)?;
        prose("its doc", doc)?;
    }
    parameters(&task.parameters)?;
    options(&task.options)?;
    Ok(task)
}

/// Whether `text` can name a module or a tenant: manifest.schema.json, `moduleName`.
pub fn is_module_name(text: &str) -> bool {
    let mut characters = text.chars();
    let first = characters.next().is_some_and(|first| first.is_ascii_alphanumeric() || first == '_');
    let rest = characters.all(|next| next.is_ascii_alphanumeric() || matches!(next, '_' | '.' | '-'));
    first && rest && text.len() <= MAX_MODULE_NAME
}

/// The beginning of a guest's text, with what could mislead a reader or a terminal escaped.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::new();
    for character in text.chars().take(MAX_QUOTED) {
        if is_hidden(character) {
            shown.extend(character.escape_unicode());
        } else {
            shown.push(character);
        }
    }
    if text.chars().nth(MAX_QUOTED).is_some() {
        shown.push('…');
    }
    shown
}

fn parameters(parameters: &[Parameter]) -> Result<(), Fault> {
    few("parameters", parameters.len(), MAX_PARAMETERS)?;
    let mut names = HashSet::new();
    for parameter in parameters {
        name("a parameter's name", &parameter.name)?;
        if !names.insert(&parameter.name) {
            return Err(Fault::RepeatedParameter(parameter.name.clone()));
        }
        if parameter.default.as_ref().is_some_and(|default| depth(default) > MAX_DEPTH) {
            return Err(Fault::TooDeep(parameter.name.clone()));
        }
        if let Some(type_name) = &parameter.type_name {
            prose("a parameter's type", type_name)?;
        }
    }
    Ok(())
}

/// 0 for what is neither array nor object. The reader has bounded the recursion.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

fn options(options: &TaskOptions) -> Result<(), Fault> {
    times(options)?;
    exceptions("exceptions in autoretry_for", &options.autoretry_for)?;
    exceptions("exceptions in dont_autoretry_for", &options.dont_autoretry_for)?;
    if let Some(text) = &options.rate_limit {
        rate(text)?;
    }
    if let Some(queue) = &options.queue {
        name("its queue's name", queue)?;
    }
    match options.memory {
        Some(0) => Err(Fault::Memory),
        Some(_) | None => Ok(()),
    }
}

fn times(options: &TaskOptions) -> Result<(), Fault> {
    limit("a time limit", options.time_limit)?;
    limit("a soft time limit", options.soft_time_limit)?;
    limit("a retry backoff", options.retry_backoff)?;
    limit("an expiry", options.expires)?;
    delay("a default retry delay", options.default_retry_delay)?;
    delay("a longest retry backoff", options.retry_backoff_max)?;
    match (options.soft_time_limit, options.time_limit) {
        (Some(soft), Some(hard)) if soft > hard => Err(Fault::SoftOverHard { soft, hard }),
        (Some(_) | None, Some(_) | None) => Ok(()),
    }
}

fn limit(what: &'static str, seconds: Option<f64>) -> Result<(), Fault> {
    match seconds {
        // Written so that NaN is refused too.
        Some(seconds) if !(seconds > 0.0 && seconds <= MAX_SECONDS) => Err(Fault::Limit { what, seconds }),
        Some(_) | None => Ok(()),
    }
}

fn delay(what: &'static str, seconds: Option<f64>) -> Result<(), Fault> {
    match seconds {
        Some(seconds) if !(0.0..=MAX_SECONDS).contains(&seconds) => Err(Fault::Delay { what, seconds }),
        Some(_) | None => Ok(()),
    }
}

fn exceptions(what: &'static str, names: &[String]) -> Result<(), Fault> {
    few(what, names.len(), MAX_EXCEPTIONS)?;
    names.iter().try_for_each(|exception| name("an exception's name", exception))
}

/// As Celery reads it, but with a plain number.
fn rate(text: &str) -> Result<(), Fault> {
    let number = text.split('/').next().unwrap_or_default();
    let plain = number.len() <= MAX_RATE && number.chars().all(|digit| digit.is_ascii_digit() || digit == '.');
    match text.parse::<Rate>() {
        Ok(_) if plain && !number.is_empty() => Ok(()),
        Ok(_) | Err(_) => Err(Fault::Rate(printable(text))),
    }
}

fn name(what: &'static str, text: &str) -> Result<(), Fault> {
    if text.is_empty() {
        return Err(Fault::Empty(what));
    }
    if text.len() > MAX_NAME {
        return Err(Fault::TooLong { what, limit: MAX_NAME, unit: "bytes" });
    }
    visible(what, text)
}

fn short(what: &'static str, text: &str, limit: usize) -> Result<(), Fault> {
    match text.chars().nth(limit) {
        Some(_) => Err(Fault::TooLong { what, limit, unit: "characters" }),
        None => Ok(()),
    }
}

fn few(what: &'static str, count: usize, limit: usize) -> Result<(), Fault> {
    if count > limit { Err(Fault::TooMany { what, count, limit }) } else { Ok(()) }
}

fn visible(what: &'static str, text: &str) -> Result<(), Fault> {
    if text.chars().any(is_hidden) { Err(Fault::Hidden(what)) } else { Ok(()) }
}

/// Text of several lines. It may be in any script, which invisible characters are a part of.
fn prose(what: &'static str, text: &str) -> Result<(), Fault> {
    let harmful = |character: char| character.is_control() && !matches!(character, '\n' | '\r' | '\t');
    if text.chars().any(harmful) { Err(Fault::Hidden(what)) } else { Ok(()) }
}

/// Control characters, and those that make two names look alike: Unicode's format characters and separators.
fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A message of serde's quotes the text, and so is made printable.
fn shape(error: serde_json::Error) -> Fault {
    Fault::Shape(printable(&error.to_string()))
}
