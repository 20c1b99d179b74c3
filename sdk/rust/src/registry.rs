//! The tasks that are linked into this module, and the way to one of them.

use crate::{Context, Error, arguments::Arguments, manifest::Options};

/// A task as `#[task]` registers it.
pub struct Task {
    pub name: &'static str,
    /// The package that it was written in.
    pub package: &'static str,
    /// The function's own name, by which Python's messages speak of it.
    pub function: &'static str,
    pub doc: &'static str,
    pub parameters: &'static [Parameter],
    pub options: Options,
    /// Takes the arguments, calls the function, turns its result into JSON.
    pub run: fn(&Context, &Arguments<'_>) -> Result<String, Error>,
}

inventory::collect!(Task);

/// A parameter, as far as it can be told without its type.
pub struct Parameter {
    pub name: &'static str,
    /// The type as it is written.
    pub written: &'static str,
    pub kind: Kind,
}

/// Where a parameter's value comes from.
pub enum Kind {
    Required,
    /// None when absent.
    Optional,
    /// The default's JSON.
    Default(fn() -> serde_json::Result<String>),
    /// Takes the positional arguments that are left.
    Variadic,
    /// Takes the keyword arguments that are left.
    Keywords,
}

impl Task {
    /// The parameters that have a place and a name; they come before all others.
    pub(crate) fn named(&self) -> impl Iterator<Item = &'static Parameter> {
        let named = |parameter: &&Parameter| match parameter.kind {
            Kind::Required | Kind::Optional | Kind::Default(_) => true,
            Kind::Variadic | Kind::Keywords => false,
        };
        self.parameters.iter().take_while(named)
    }
}

/// Every task, sorted by name.
pub(crate) fn tasks() -> Vec<&'static Task> {
    let mut tasks: Vec<_> = inventory::iter::<Task>.into_iter().collect();
    tasks.sort_by_key(|task| task.name);
    tasks
}

/// Run a task by name with a payload `{"args": [...], "kwargs": {...}}`; the result is JSON.
///
/// # Errors
/// What the task returns; `TypeError` for arguments that do not fit it or a result that is no JSON; Celery's
/// `NotRegistered` for a name that no task has.
pub fn dispatch(name: &str, payload: &str) -> Result<String, Error> {
    let found = inventory::iter::<Task>.into_iter().find(|task| task.name == name);
    let task = found.ok_or_else(|| Error::unplaced("NotRegistered", name).module("celery.exceptions"))?;
    (task.run)(&Context::current(), &Arguments::bind(task, payload)?)
}
