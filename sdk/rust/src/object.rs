//! JSON that is put together piece by piece: the fields of a signature or of a retry.

use std::fmt::Display;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::Error;

/// An object in the making, or the first thing that was wrong with it: builders have no place to tell of it earlier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Object(Result<Map<String, Value>, Error>);

impl Default for Object {
    fn default() -> Self {
        Self(Ok(Map::new()))
    }
}

impl Object {
    pub(crate) fn set(&mut self, name: &str, value: Result<Value, Error>) {
        match (&mut self.0, value) {
            (Ok(fields), Ok(value)) => {
                fields.insert(name.to_owned(), value);
            }
            (Ok(_), Err(fault)) => self.0 = Err(fault),
            (Err(_), Ok(_) | Err(_)) => {}
        }
    }

    pub(crate) fn finish(self) -> Result<Map<String, Value>, Error> {
        self.0
    }
}

impl From<Result<Map<String, Value>, Error>> for Object {
    fn from(fields: Result<Map<String, Value>, Error>) -> Self {
        Self(fields)
    }
}

#[track_caller]
pub(crate) fn value(what: impl Display, value: &impl Serialize) -> Result<Value, Error> {
    match serde_json::to_value(value) {
        Ok(value) => Ok(value),
        Err(error) => Err(Error::type_error(format_args!("{what} cannot be JSON: {error}"))),
    }
}

/// An array; anything else is the one argument.
#[track_caller]
pub(crate) fn arguments(arguments: &impl Serialize) -> Result<Value, Error> {
    match value("args", arguments)? {
        array @ Value::Array(_) => Ok(array),
        one => Ok(Value::Array(vec![one])),
    }
}

#[track_caller]
pub(crate) fn keywords(arguments: &impl Serialize) -> Result<Map<String, Value>, Error> {
    match value("kwargs", arguments)? {
        Value::Object(fields) => Ok(fields),
        other => Err(Error::type_error(format_args!("kwargs are a map, and not {other}"))),
    }
}
