//! From what a task returns to JSON.
//!
//! A `Result` is told from any other type where the macro calls `(&result).outcome()`: the method of [`Fallible`]
//! needs one reference less than that of [`Plain`], so the compiler prefers it wherever the type is a `Result`. Only
//! then are bounds checked, so that what is missing is said of the task's own type.

use serde::Serialize;

use crate::{Error, registry::Task};

/// The task returns a `Result`.
pub struct Falls;

/// The task returns its result itself.
pub struct Stands;

pub trait Fallible {
    fn outcome(&self) -> Falls {
        Falls
    }
}

impl<T, E> Fallible for Result<T, E> {}

pub trait Plain {
    fn outcome(&self) -> Stands {
        Stands
    }
}

impl<T> Plain for &T {}

impl Falls {
    pub fn finish<T: Serialize, E: Into<Error>>(self, task: &Task, result: Result<T, E>) -> Result<String, Error> {
        Stands.finish(task, result.map_err(Into::into)?)
    }
}

impl Stands {
    pub fn finish<T: Serialize>(self, task: &Task, result: T) -> Result<String, Error> {
        serde_json::to_string(&result).map_err(|error| {
            let message = format_args!("{}() returned a value that JSON cannot hold: {error}", task.function);
            Error::unplaced("TypeError", message)
        })
    }
}
