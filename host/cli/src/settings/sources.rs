//! Where settings come from: a file and the environment.
//!
//! The names are those of [`Settings`]' fields and are written down nowhere else.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::{Settings, queues::QueueTable, routes::RouteTable};

/// Read if it is there and no other is named.
const DEFAULT_FILE: &str = "rtask.toml";
/// What every variable of ours begins with.
const PREFIX: &str = "RTASK_";
/// Names the settings file.
const FILE_VARIABLE: &str = "RTASK_CONFIG";
/// A settings file is no longer (bytes).
const MAX_FILE: u64 = 1 << 20;
/// Two names that are at least so alike (Jaro-Winkler, 1 for the same) are probably meant to be the same.
const ALIKE: f64 = 0.87;

/// What is wrong with the settings. No text in it holds a value that may be secret.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("failed to read the settings file {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("the settings file {} has more than {MAX_FILE} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("{place}: {reason}")]
    Wrong { place: String, reason: String },
    #[error("{place}: unknown setting `{name}`; {advice}")]
    Unknown { place: String, name: String, advice: String },
    #[error("{0} is not UTF-8")]
    NotText(String),
    #[error("no result backend is named, and this broker keeps no results")]
    NoResultBackend,
    #[error("results travel as messages (`{0}`), so the registry must be named")]
    NoRegistry(String),
    #[error("queue `{0}` is not among task_queues, and task_create_missing_queues is false")]
    UnknownQueue(String),
    #[error("every queue is excluded")]
    NoQueue,
}

impl SettingsError {
    /// A value, well written as it is, that makes no sense.
    pub fn invalid(setting: &str, reason: impl Into<String>) -> Self {
        Self::Wrong { place: format!("`{setting}`"), reason: reason.into() }
    }

    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoResultBackend => Some(
                "name one with --backend redis://HOST:PORT/DB, RTASK_RESULT_BACKEND, or `result_backend` in rtask.toml",
            ),
            Self::NoRegistry(_) => {
                Some("name one with --registry redis://HOST:PORT/DB, RTASK_REGISTRY, or `registry` in rtask.toml")
            }
            Self::UnknownQueue(_) => {
                Some("name it under task_queues in rtask.toml, or allow task_create_missing_queues")
            }
            Self::NoQueue => Some("exclude fewer with --exclude-queues, or name others with --queues"),
            Self::Unreadable { .. }
            | Self::TooLarge { .. }
            | Self::Wrong { .. }
            | Self::Unknown { .. }
            | Self::NotText(_) => None,
        }
    }
}

impl Settings {
    /// Defaults, then the file that `flag` or the environment names (or [`DEFAULT_FILE`]), then the environment.
    ///
    /// # Errors
    /// For a file that is named and not there, for names that nothing has, and for values that are none.
    pub fn load(flag: Option<&Path>, environment: &Environment) -> Result<Self, SettingsError> {
        let mut table = match flag.or_else(|| environment.get(FILE_VARIABLE).map(Path::new)) {
            Some(path) => file(path, &read(path)?)?,
            None => match read(Path::new(DEFAULT_FILE)) {
                Ok(text) => file(Path::new(DEFAULT_FILE), &text)?,
                Err(SettingsError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    Table::new()
                }
                Err(error) => return Err(error),
            },
        };
        environment.overlay(&mut table)?;
        // Every part of it was tried alone, so this fails only where two sources disagree on what is a table.
        Self::deserialize(table).map_err(|error| wrong("the settings", &error))
    }
}

fn read(path: &Path) -> Result<String, SettingsError> {
    let unreadable = |source| SettingsError::Unreadable { path: path.to_owned(), source };
    let mut text = String::new();
    let mut file = File::open(path).map_err(unreadable)?.take(MAX_FILE + 1);
    file.read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > MAX_FILE {
        return Err(SettingsError::TooLarge { path: path.to_owned() });
    }
    Ok(text)
}

/// The file's table, of which every key and value is known to be right.
fn file(path: &Path, text: &str) -> Result<Table, SettingsError> {
    let place = path.display().to_string();
    // Where it is, but not what stands there: the line may hold a password.
    let wrong_at = |error: toml::de::Error| {
        let line = error.span().map(|span| text.get(..span.start).unwrap_or(text).matches('\n').count() + 1);
        wrong(&line.map_or_else(|| place.clone(), |line| format!("{place}, line {line}")), &error)
    };
    let table: Table = toml::from_str(text).map_err(wrong_at)?;
    refuse_unknown(&place, &table)?;
    toml::from_str::<Settings>(text).map_err(wrong_at)?;
    Ok(table)
}

fn wrong(place: &str, error: &toml::de::Error) -> SettingsError {
    SettingsError::Wrong { place: place.to_owned(), reason: error.message().to_owned() }
}

fn refuse_unknown(place: &str, table: &Table) -> Result<(), SettingsError> {
    let mut known = names();
    known.extend(OPEN.iter().flat_map(|(table, fields)| fields().into_iter().map(|field| path(&[table, ANY, &field]))));
    let Some(unknown) = first_unknown(table, &[], &known) else { return Ok(()) };
    let advice = match nearest(&unknown, &known) {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None => format!("rtask knows {}", names().iter().map(|name| name.join(".")).collect::<Vec<_>>().join(", ")),
    };
    Err(SettingsError::Unknown { place: place.to_owned(), name: unknown.join("."), advice })
}

/// The names of a table's fields.
type Fields = fn() -> Vec<String>;

/// Tables whose keys are the user's own: they hold tables with these fields.
const OPEN: [(&str, Fields); 2] =
    [("task_queues", || fields(&QueueTable::default())), ("task_routes", || fields(&RouteTable::default()))];
/// Stands for a key of the user's own.
const ANY: &str = "*";

fn path(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|&key| key.to_owned()).collect()
}

/// The first key of `table`, which itself stands under `above`, that leads to no setting.
fn first_unknown(table: &Table, above: &[String], known: &[Vec<String>]) -> Option<Vec<String>> {
    table.iter().find_map(|(key, value)| {
        let mut here: Vec<String> = above.iter().chain([key]).cloned().collect();
        let led_to = || known.iter().filter(|name| leads_to(&here, name));
        match value {
            Value::Table(inner) if led_to().any(|name| name.len() > here.len()) => first_unknown(inner, &here, known),
            // Whether the value fits is for its type to say.
            _ if led_to().next().is_some() => None,
            // With a key inside, what was meant is easier to guess.
            Value::Table(inner) => {
                here.extend(inner.keys().next().cloned());
                Some(here)
            }
            _ => Some(here),
        }
    })
}

/// Whether `name` is `keys`, or stands somewhere under them.
fn leads_to(keys: &[String], name: &[String]) -> bool {
    keys.len() <= name.len() && keys.iter().zip(name).all(|(key, name)| name == ANY || key == name)
}

/// Every setting there is, as the keys that lead to it.
fn names() -> Vec<Vec<String>> {
    let all = serde_json::to_value(Settings::default()).expect("settings are plain values with text for keys");
    let mut names = Vec::new();
    for (name, value) in all.as_object().into_iter().flatten() {
        match value.as_object() {
            Some(inner) => names.extend(inner.keys().map(|inner| path(&[name, inner]))),
            None => names.push(path(&[name])),
        }
    }
    names
}

fn fields(of: &impl Serialize) -> Vec<String> {
    let value = serde_json::to_value(of).expect("tables of settings are plain values with text for keys");
    value.as_object().into_iter().flat_map(|fields| fields.keys().cloned()).collect()
}

/// What was probably meant, with the user's own keys in place.
fn nearest(unknown: &[String], known: &[Vec<String>]) -> Option<String> {
    let candidates = known.iter().map(|name| {
        let own = |(place, key): (usize, &String)| match key.as_str() {
            ANY => unknown.get(place).unwrap_or(key).clone(),
            _ => key.clone(),
        };
        name.iter().enumerate().map(own).collect::<Vec<_>>().join(".")
    });
    let unknown = unknown.join(".");
    let rated = candidates.map(|known| (strsim::jaro_winkler(&unknown, &known), known));
    let best = rated.filter(|(alike, _)| *alike >= ALIKE).max_by(|one, other| one.0.total_cmp(&other.0));
    best.map(|(_, known)| known)
}
/// The variables that begin with [`PREFIX`] and are not empty.
#[derive(Debug, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// # Errors
    /// For a variable of ours that is not UTF-8.
    pub fn of_this_process() -> Result<Self, SettingsError> {
        Self::of(std::env::vars_os())
    }

    fn of(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Self, SettingsError> {
        let mut ours = BTreeMap::new();
        for (name, value) in variables {
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else {
                continue;
            };
            let value = value.into_string().map_err(|_| SettingsError::NotText(name.to_owned()))?;
            if !value.is_empty() {
                ours.insert(name.to_owned(), value);
            }
        }
        Ok(Self(ours))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Let what is set here replace what is in `table`.
    fn overlay(&self, table: &mut Table) -> Result<(), SettingsError> {
        for name in names() {
            let variable = variable(&name);
            if let Some(text) = self.get(&variable) {
                set(table, &name, text);
                let mut alone = Table::new();
                set(&mut alone, &name, text);
                Settings::deserialize(alone).map_err(|error| wrong(&variable, &error))?;
            }
        }
        Ok(())
    }

    /// Variables that are no settings, but look as if somebody meant them to be. Others are somebody else's, such
    /// as those that Kubernetes sets for a service of the name `rtask`.
    pub fn near_misses(&self) -> Vec<String> {
        let mut known: Vec<String> = names().iter().map(|name| variable(name)).collect();
        known.push(FILE_VARIABLE.to_owned());
        let unknown = self.0.keys().filter(|name| !known.contains(name));
        let is_near = |name: &String, known: &String| strsim::damerau_levenshtein(name, known) <= 2;
        unknown
            .filter_map(|name| Some((name, known.iter().find(|known| is_near(name, known))?)))
            .map(|(name, known)| format!("the environment variable {name} is no setting; did you mean {known}?"))
            .collect()
    }
}

/// The environment variable of a setting.
fn variable(name: &[String]) -> String {
    format!("{PREFIX}{}", name.join("_").to_uppercase())
}

fn set(table: &mut Table, name: &[String], text: &str) {
    let value = Value::String(text.to_owned());
    match name {
        [] => {}
        [last] => {
            table.insert(last.clone(), value);
        }
        [first, rest @ ..] => {
            let inner = table.entry(first.clone()).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                set(inner, rest, text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::settings::{Seconds, Size};

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment::of(variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)))).unwrap()
    }

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("settings.toml");
        std::fs::write(&path, text).unwrap();
        Settings::load(Some(&path), &environment(variables))
    }

    fn queue_names(settings: &Settings) -> Vec<String> {
        let queues = settings.queues(None, None).unwrap();
        queues.into_iter().map(|queue| queue.name).collect()
    }

    #[test]
    fn the_environment_goes_before_the_file_and_both_before_the_defaults() {
        let text = r#"
            broker_url = "amqp://file/"
            result_expires = 60
            worker_concurrency = 3
            task_queues = ["a", "b"]
            [limits]
            memory = "32 MiB"
            log = 1024
        "#;
        let variables = [
            ("RTASK_BROKER_URL", "amqp://environment/"),
            ("RTASK_LIMITS_MEMORY", "16 MiB"),
            ("RTASK_TASK_ACKS_LATE", "false"),
            ("RTASK_TASK_TIME_LIMIT", "1.5"),
            ("RTASK_RESULT_EXPIRES", ""),
        ];
        let settings = load(text, &variables).unwrap();
        assert_eq!(settings.broker_url.as_deref(), Some("amqp://environment/"));
        assert_eq!(settings.result_expires, Seconds(Duration::from_secs(60)));
        assert_eq!(settings.worker_concurrency.map(usize::from), Some(3));
        assert_eq!(queue_names(&settings), ["a", "b"]);
        assert_eq!((settings.limits.memory, settings.limits.log), (Size(16 << 20), Size(1024)));
        assert_eq!(settings.limits.result, Settings::default().limits.result);
        assert!(!settings.task_acks_late);
        assert_eq!(settings.task_time_limit, Seconds(Duration::from_millis(1500)));
    }

    #[test]
    fn the_environment_alone_is_enough() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.toml");
        std::fs::write(&path, "delivery_limit = 2").unwrap();
        let variables = [("RTASK_CONFIG", path.to_str().unwrap()), ("RTASK_TASK_QUEUES", "a, b")];
        let settings = Settings::load(None, &environment(&variables)).unwrap();
        assert_eq!(settings.delivery_limit.get(), 2);
        assert_eq!(queue_names(&settings), ["a", "b"]);
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_one_that_was_meant() {
        let rows = [
            ("broker_ulr = 'x'", "did you mean `broker_url`?"),
            ("result_backends = 'x'", "did you mean `result_backend`?"),
            ("[limits]\nmemry = 1", "did you mean `limits.memory`?"),
            ("[limitz]\nmemory = 1", "did you mean `limits.memory`?"),
            ("[broker_use_ssl]\nca_cert = 'x'", "did you mean `broker_use_ssl.ca_certs`?"),
            ("[task_queues.video]\nexchang = 'x'", "did you mean `task_queues.video.exchange`?"),
            ("[task_routes.'a.*']\nqeue = 'x'", "did you mean `task_routes.a.*.queue`?"),
            ("zzz = 1", "rtask knows accept_content, "),
        ];
        for (text, advice) in rows {
            let error = load(text, &[]).unwrap_err().to_string();
            assert!(error.contains(advice) && error.contains("settings.toml"), "{text}: {error}");
        }
    }

    #[test]
    fn a_wrong_value_is_told_with_its_place_and_without_its_line() {
        let rows = [
            ("\nworker_concurrency = 0", [].as_slice(), "settings.toml, line 2"),
            ("limits = 3", &[], "settings.toml, line 1"),
            ("broker_url = 'amqp://u:secret@h\n", &[], "settings.toml, line 1"),
            ("", &[("RTASK_LIMITS_MEMORY", "lots")], "RTASK_LIMITS_MEMORY: `lots`: it is no size"),
            ("", &[("RTASK_TASK_ACKS_LATE", "perhaps")], "RTASK_TASK_ACKS_LATE"),
        ];
        for (text, variables, place) in rows {
            let error = load(text, variables).unwrap_err().to_string();
            assert!(error.contains(place) && !error.contains("secret"), "{text}: {error}");
        }
    }

    #[test]
    fn what_a_table_says_can_be_said_in_the_environment() {
        let variables = [
            ("RTASK_BROKER_USE_SSL_CA_CERTS", "ca.pem"),
            ("RTASK_BROKER_TRANSPORT_OPTIONS_PRIORITY_STEPS", "0,5"),
            ("RTASK_TASK_ROUTES", "feed.*=feeds"),
            ("RTASK_TASK_GLOBAL_RATE_LIMITS", "feed.import=10/s"),
            ("RTASK_TASK_DEFAULT_PRIORITY", "3"),
            ("RTASK_TASK_ACKS_ON_TIMEOUT", "false"),
            ("RTASK_ACCEPT_CONTENT", "json,msgpack"),
        ];
        let environment = load("", &variables).unwrap();
        let file = r#"
            task_default_priority = 3
            task_acks_on_timeout = false
            accept_content = ["json", "msgpack"]
            [broker_use_ssl]
            ca_certs = "ca.pem"
            [broker_transport_options]
            priority_steps = [0, 5]
            [task_routes]
            "feed.*" = "feeds"
            [task_global_rate_limits]
            "feed.import" = "10/s"
        "#;
        assert_eq!(environment, load(file, &[]).unwrap());
        assert_ne!(environment, Settings::default());
    }

    #[test]
    fn a_file_that_is_named_must_be_there() {
        let error = Settings::load(Some(Path::new("/nowhere/rtask.toml")), &Environment::default()).unwrap_err();
        assert!(error.to_string().contains("/nowhere/rtask.toml"), "{error}");
    }

    #[test]
    fn only_variables_that_look_like_settings_are_complained_of() {
        let environment = environment(&[
            ("RTASK_BROKER_ULR", "x"),
            ("RTASK_SERVICE_HOST", "10.0.0.1"),
            ("RTASK_BROKER_URL", "x"),
            ("PATH", "/bin"),
        ]);
        let warnings = environment.near_misses();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("RTASK_BROKER_ULR") && warnings[0].contains("did you mean RTASK_BROKER_URL?"));
    }

    #[test]
    fn the_documented_variables_exist() {
        let variables: Vec<String> = names().iter().map(|name| variable(name)).collect();
        for documented in [
            "RTASK_BROKER_URL",
            "RTASK_RESULT_BACKEND",
            "RTASK_REGISTRY",
            "RTASK_TASK_TIME_LIMIT",
            "RTASK_LIMITS_MEMORY",
        ] {
            assert!(variables.iter().any(|variable| variable == documented), "{documented}");
        }
    }
}
