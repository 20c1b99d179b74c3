//! What differs between two manifests of a module.

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Manifest, TaskOptions, TaskSpec};

/// For `rtask deploy` to show; each list is in the order of task names.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Changes {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    pub changed: Vec<TaskChange>,
}

/// A task that both manifests have.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskChange {
    pub task: String,
    /// Whether its parameters differ: callers may have to change what they send.
    pub parameters: bool,
    pub options: Vec<OptionChange>,
}

/// An option with another value. None is the default; null can be a value, as for `max_retries`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OptionChange {
    /// As in the manifest, such as `time_limit`.
    pub option: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }

    pub(super) fn between(before: &Manifest, after: &Manifest) -> Self {
        let mut changes = Self {
            added: missing(before, after),
            removed: missing(after, before),
            changed: after
                .tasks
                .iter()
                .filter_map(|task| TaskChange::between(before.task(&task.name)?, task))
                .collect(),
        };
        changes.changed.sort_by(|one, other| one.task.cmp(&other.task));
        changes
    }
}

impl TaskChange {
    fn between(before: &TaskSpec, after: &TaskSpec) -> Option<Self> {
        let change = Self {
            task: after.name.clone(),
            parameters: before.parameters != after.parameters,
            options: option_changes(&before.options, &after.options),
        };
        (change.parameters || !change.options.is_empty()).then_some(change)
    }
}

/// The names of those tasks of `whole` that `partial` has not.
fn missing(partial: &Manifest, whole: &Manifest) -> Vec<String> {
    let names = whole.tasks.iter().map(|task| &task.name);
    let mut names: Vec<String> = names.filter(|name| partial.task(name).is_none()).cloned().collect();
    names.sort();
    names
}

/// Compared as JSON, so that an option that is added later is never forgotten here.
fn option_changes(before: &TaskOptions, after: &TaskOptions) -> Vec<OptionChange> {
    let (before, after) = (fields(before), fields(after));
    let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .filter(|name| before.get(*name) != after.get(*name))
        .map(|name| OptionChange {
            option: name.clone(),
            before: before.get(name).cloned(),
            after: after.get(name).cloned(),
        })
        .collect()
}

fn fields(options: &TaskOptions) -> Map<String, Value> {
    match serde_json::to_value(options) {
        Ok(Value::Object(fields)) => fields,
        // The derived form of a struct without a map in it.
        Ok(_) | Err(_) => unreachable!("options are written as an object"),
    }
}
