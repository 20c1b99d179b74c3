//! What a module says of itself: sdk/wit/manifest.schema.json as types.
//!
//! The text comes from a guest, so [`Manifest::parse`] believes nothing of it; `rules` holds the bounds.

mod changes;
mod options;
mod rules;
#[cfg(test)]
mod tests;

use std::{collections::HashSet, fmt};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, value::RawValue};

pub use changes::{Changes, OptionChange, TaskChange};
pub use options::{MaxRetries, TaskOptions};
pub use rules::{
    Fault, MAX_DEPTH, MAX_DOC, MAX_EXCEPTIONS, MAX_NAME, MAX_PARAMETERS, MAX_SDK, MAX_SECONDS, MAX_SIZE, MAX_TASKS,
    is_module_name,
};

/// A module's tasks, and who wrote this down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The module's name, unless whoever deploys it gives another.
    pub module: String,
    /// The SDK that wrote this manifest, such as `rust/0.1.0`.
    pub sdk: String,
    pub tasks: Vec<TaskSpec>,
}

/// One task of a module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSpec {
    /// What clients send, such as `hello.add`.
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doc: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parameters: Vec<Parameter>,
    #[serde(default, skip_serializing_if = "TaskOptions::is_default")]
    pub options: TaskOptions,
}

/// One parameter of a task, in the order of the task's signature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    pub name: String,
    #[serde(default)]
    pub kind: ParameterKind,
    #[serde(default = "yes")]
    pub required: bool,
    /// What the task uses when the argument is absent; `Some(Null)` is a default too.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// The type as the module's language writes it, for people.
    #[serde(default, rename = "type", deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub type_name: Option<String>,
}

/// How arguments find a parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParameterKind {
    /// By position or by name.
    #[default]
    Normal,
    /// Takes the positional arguments that are left: Python's `*args`.
    Variadic,
    /// Takes the named arguments that are left: Python's `**kwargs`.
    Keywords,
}

/// Why a text is no manifest. What it quotes of the text is short and printable.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest is refused: {0}")]
    Module(#[source] Fault),
    #[error("the manifest's task {task} is refused: {fault}")]
    Task {
        /// Its name, or its place in the list if it has none.
        task: Label,
        #[source]
        fault: Fault,
    },
}

impl Manifest {
    /// Read what a guest's `describe` answered.
    ///
    /// # Errors
    /// For any text that manifest.schema.json does not allow, and for one that names a task or parameter twice,
    /// claims a task name of Celery's own, or hides characters in a name.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let outline = rules::outline(text).map_err(ManifestError::Module)?;
        let mut tasks: Vec<TaskSpec> = Vec::with_capacity(outline.tasks.len());
        for (index, raw) in outline.tasks.iter().enumerate() {
            let task = rules::task(raw);
            tasks.push(task.map_err(|fault| ManifestError::Task { task: Label::of(raw, index), fault })?);
        }
        refuse_repeated(&tasks)?;
        Ok(Self { module: outline.module, sdk: outline.sdk, tasks })
    }

    pub fn task(&self, name: &str) -> Option<&TaskSpec> {
        self.tasks.iter().find(|task| task.name == name)
    }

    /// What a person should know before this takes the place of `before`.
    pub fn changes_since(&self, before: &Self) -> Changes {
        Changes::between(before, self)
    }
}

/// How an error names a task.
#[derive(Clone, Debug, PartialEq)]
pub enum Label {
    Name(String),
    /// From 1.
    Number(usize),
}

impl Label {
    fn of(raw: &RawValue, index: usize) -> Self {
        #[derive(Deserialize)]
        struct Named {
            name: String,
        }
        match serde_json::from_str(raw.get()) {
            Ok(Named { name }) if !name.is_empty() => Self::Name(rules::printable(&name)),
            Ok(_) | Err(_) => Self::Number(index + 1),
        }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "`{name}`"),
            Self::Number(number) => write!(f, "number {number}"),
        }
    }
}

fn refuse_repeated(tasks: &[TaskSpec]) -> Result<(), ManifestError> {
    let mut names = HashSet::new();
    match tasks.iter().find(|task| !names.insert(&task.name)) {
        Some(task) => {
            Err(ManifestError::Task { task: Label::Name(task.name.clone()), fault: Fault::Repeated("the task") })
        }
        None => Ok(()),
    }
}

/// A field that may be absent, but is not null in place of absent.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(field: D) -> Result<Option<T>, D::Error> {
    T::deserialize(field).map(Some)
}

fn yes() -> bool {
    true
}
