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

use serde::Deserialize;
use toml::{Table, Value};

use super::Settings;

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
}

impl SettingsError {
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoResultBackend => Some(
                "name one with --backend redis://HOST:PORT/DB, RTASK_RESULT_BACKEND, or `result_backend` in rtask.toml",
            ),
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
    let known: Vec<String> = names().iter().map(|name| name.join(".")).collect();
    let is_known = |name: &str| known.iter().any(|known| known == name || is_table_of(name, known));
    for name in written(table) {
        if !is_known(&name) {
            let advice = match nearest(&name, &known) {
                Some(nearest) => format!("did you mean `{nearest}`?"),
                None => format!("rtask knows {}", known.join(", ")),
            };
            return Err(SettingsError::Unknown { place: place.to_owned(), name, advice });
        }
    }
    Ok(())
}

/// Whether `table` is what `name` stands in; an empty table sets nothing.
fn is_table_of(table: &str, name: &str) -> bool {
    name.strip_prefix(table).is_some_and(|rest| rest.starts_with('.'))
}

/// The dotted names that a table sets.
fn written(table: &Table) -> Vec<String> {
    let mut names = Vec::new();
    for (name, value) in table {
        match value {
            Value::Table(inner) if !inner.is_empty() => {
                names.extend(inner.keys().map(|inner| format!("{name}.{inner}")));
            }
            _ => names.push(name.clone()),
        }
    }
    names
}

/// Every setting there is, as the keys that lead to it.
fn names() -> Vec<Vec<String>> {
    let all = serde_json::to_value(Settings::default()).expect("settings are plain values with text for keys");
    let mut names = Vec::new();
    for (name, value) in all.as_object().into_iter().flatten() {
        match value.as_object() {
            Some(inner) => names.extend(inner.keys().map(|inner| vec![name.clone(), inner.clone()])),
            None => names.push(vec![name.clone()]),
        }
    }
    names
}

fn nearest<'a>(name: &str, known: &'a [String]) -> Option<&'a String> {
    let alike = |known: &String| strsim::jaro_winkler(name, known);
    known.iter().filter(|known| alike(known) >= ALIKE).max_by(|one, other| alike(one).total_cmp(&alike(other)))
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
        assert_eq!(settings.queues(), ["a", "b"]);
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
        assert_eq!(
            (settings.delivery_limit.get(), settings.queues().as_slice()),
            (2, ["a", "b"].map(String::from).as_slice())
        );
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_one_that_was_meant() {
        let rows = [
            ("broker_ulr = 'x'", "did you mean `broker_url`?"),
            ("result_backends = 'x'", "did you mean `result_backend`?"),
            ("[limits]\nmemry = 1", "did you mean `limits.memory`?"),
            ("[limitz]\nmemory = 1", "did you mean `limits.memory`?"),
            ("zzz = 1", "rtask knows broker_url, "),
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
