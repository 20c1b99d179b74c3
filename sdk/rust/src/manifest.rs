//! What the module says of itself, as `sdk/wit/manifest.schema.json` has it.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::registry::{Kind, Parameter, Task, tasks};

const SDK: &str = concat!("rust/", env!("CARGO_PKG_VERSION"));
/// A module's name is no longer than this (bytes).
const MAX_MODULE_NAME: usize = 64;

/// The name that `module!` gives.
pub struct ModuleName(pub &'static str);

inventory::collect!(ModuleName);

/// Celery's task options; what is none or empty is left to the host.
#[derive(Serialize)]
pub struct Options {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acks_late: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acks_on_failure: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acks_on_timeout: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reject_on_worker_lost: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore_result: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store_errors_even_if_ignored: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub track_started: Option<bool>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_limit: Option<f64>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soft_time_limit: Option<f64>,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<MaxRetries>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_retry_delay: Option<f64>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub autoretry_for: &'static [&'static str],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub dont_autoretry_for: &'static [&'static str],
    /// A factor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_backoff: Option<f64>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_backoff_max: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_jitter: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<f64>,
}

/// A number, or null.
#[derive(Serialize)]
#[serde(untagged)]
pub enum MaxRetries {
    Times(u32),
    Unlimited,
}

#[derive(Serialize)]
struct Manifest {
    module: &'static str,
    sdk: &'static str,
    tasks: Vec<TaskEntry>,
}

#[derive(Serialize)]
struct TaskEntry {
    name: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    doc: &'static str,
    parameters: Vec<ParameterEntry>,
    options: &'static Options,
}

#[derive(Serialize)]
struct ParameterEntry {
    name: &'static str,
    kind: &'static str,
    required: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<Box<RawValue>>,
    r#type: &'static str,
}

/// The manifest's JSON.
///
/// # Panics
/// When the module contradicts itself: two tasks of one name, two names for the module or none. A deployment is refused
/// with the message then.
pub fn describe() -> String {
    let tasks = tasks();
    for pair in tasks.windows(2) {
        assert!(pair[0].name != pair[1].name, "two tasks are called `{}`", pair[0].name);
    }
    let manifest =
        Manifest { module: module_name(&tasks), sdk: SDK, tasks: tasks.iter().copied().map(task_entry).collect() };
    serde_json::to_string(&manifest).expect("names, numbers and JSON are JSON")
}

/// As `module!` says, else the package that all tasks come from.
fn module_name(tasks: &[&'static Task]) -> &'static str {
    let mut given = inventory::iter::<ModuleName>.into_iter();
    match (given.next(), given.next()) {
        (Some(ModuleName(name)), None) => return name,
        (Some(ModuleName(first)), Some(ModuleName(second))) => {
            panic!("the module is called `{first}` and `{second}`; say `rtask::module!` once")
        }
        (None, _) => {}
    }
    let package = tasks.first().map_or("", |task| task.package);
    if let Some(other) = tasks.iter().find(|task| task.package != package) {
        panic!(
            "tasks come from the packages `{package}` and `{}`; name the module with `rtask::module! {{ name = \"...\" }}`",
            other.package
        );
    }
    package
}

fn task_entry(task: &'static Task) -> TaskEntry {
    let parameters = task.parameters.iter().map(|parameter| parameter_entry(task, parameter));
    TaskEntry { name: task.name, doc: task.doc, parameters: parameters.collect(), options: &task.options }
}

fn parameter_entry(task: &Task, parameter: &Parameter) -> ParameterEntry {
    let (kind, required, default) = match &parameter.kind {
        Kind::Required => ("normal", true, None),
        Kind::Optional => ("normal", false, Some("null".to_owned())),
        Kind::Default(default) => {
            let json = default().unwrap_or_else(|error| {
                panic!("the default of `{}` in `{}` is no JSON: {error}", parameter.name, task.name)
            });
            ("normal", false, Some(json))
        }
        Kind::Variadic => ("variadic", false, None),
        Kind::Keywords => ("keywords", false, None),
    };
    let default = default.map(|json| RawValue::from_string(json).expect("serde_json wrote it"));
    ParameterEntry { name: parameter.name, kind, required, default, r#type: parameter.written }
}

/// `^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$`, for `module!` to check at compile time.
pub const fn is_module_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() > MAX_MODULE_NAME || matches!(bytes[0], b'.' | b'-') {
        return false;
    }
    let mut index = 0;
    while index < bytes.len() {
        if !(bytes[index].is_ascii_alphanumeric() || matches!(bytes[index], b'_' | b'.' | b'-')) {
            return false;
        }
        index += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::is_module_name;

    #[test]
    fn module_names_are_checked() {
        let long = "a".repeat(64);
        let rows = [
            ("shop", true),
            ("_shop-2.x", true),
            (&long, true),
            ("", false),
            (".shop", false),
            ("-shop", false),
            ("my shop", false),
            ("café", false),
        ];
        for (name, expected) in rows {
            assert_eq!(is_module_name(name), expected, "{name}");
        }
        assert!(!is_module_name(&"a".repeat(65)));
    }
}
