//! From a payload to a task's parameters, by Python's rules and with Python's messages
//! (`initialize_locals` in CPython's `Python/ceval.c` gives both, and the order in which mistakes are told).

use std::{borrow::Cow, collections::BTreeMap, fmt::Write as _};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{
    Error,
    registry::{Kind, Parameter, Task},
};

/// What the host passes: JSON that is split, not parsed. Each piece is read once, as the type that it becomes.
#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow)]
    args: Vec<&'a RawValue>,
    #[serde(borrow)]
    kwargs: Pairs<'a>,
}

/// A JSON object's entries, in order.
struct Pairs<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some((Key(key), value)) = map.next_entry()? {
                    pairs.push((key, value));
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// The arguments of one call, each still JSON, in the places of the task's parameters.
pub struct Arguments<'a> {
    task: &'static Task,
    /// One for each named parameter; none where the caller left it out.
    named: Vec<Option<&'a RawValue>>,
    /// Positional arguments that no named parameter takes.
    rest: Vec<&'a RawValue>,
    /// Keyword arguments that no named parameter takes.
    keywords: Vec<(Cow<'a, str>, &'a RawValue)>,
}

impl<'a> Arguments<'a> {
    /// Put each argument where the task takes it.
    pub(crate) fn bind(task: &'static Task, payload: &'a str) -> Result<Self, Error> {
        let Payload { args, kwargs } = serde_json::from_str(payload).map_err(|error| {
            let message = format_args!("the payload is not {{\"args\": [...], \"kwargs\": {{...}}}}: {error}");
            Error::unplaced("DecodeError", message).module("kombu.exceptions")
        })?;
        let mut named: Vec<_> = task.named().map(|_| None).collect();
        let given = args.len();
        let mut positional = args.into_iter();
        for (slot, value) in named.iter_mut().zip(&mut positional) {
            *slot = Some(value);
        }
        let mut bound = Self { task, named, rest: positional.collect(), keywords: Vec::new() };
        bound.take_keywords(kwargs.0)?;
        bound.refuse_too_many(given)?;
        bound.refuse_missing()?;
        Ok(bound)
    }

    fn take_keywords(&mut self, pairs: Vec<(Cow<'a, str>, &'a RawValue)>) -> Result<(), Error> {
        let function = self.task.function;
        let takes_all = self.task.parameters.iter().any(|parameter| matches!(parameter.kind, Kind::Keywords));
        for (name, value) in pairs {
            match self.task.named().position(|parameter| parameter.name == name) {
                Some(index) if self.named[index].is_some() => {
                    return Err(type_error(format!("{function}() got multiple values for argument '{name}'")));
                }
                Some(index) => self.named[index] = Some(value),
                None if takes_all => self.keywords.push((name, value)),
                None => {
                    return Err(type_error(format!("{function}() got an unexpected keyword argument '{name}'")));
                }
            }
        }
        Ok(())
    }

    fn refuse_too_many(&self, given: usize) -> Result<(), Error> {
        let takes_all = self.task.parameters.iter().any(|parameter| matches!(parameter.kind, Kind::Variadic));
        if takes_all || self.rest.is_empty() {
            return Ok(());
        }
        let most = self.named.len();
        let least = self.task.named().filter(|parameter| matches!(parameter.kind, Kind::Required)).count();
        let (takes, plural) = match least == most {
            true => (most.to_string(), most != 1),
            false => (format!("from {least} to {most}"), true),
        };
        Err(type_error(format!(
            "{}() takes {takes} positional argument{} but {given} {} given",
            self.task.function,
            if plural { "s" } else { "" },
            if given == 1 { "was" } else { "were" },
        )))
    }

    fn refuse_missing(&self) -> Result<(), Error> {
        let absent = |(parameter, value): (&'static Parameter, &Option<_>)| {
            (value.is_none() && matches!(parameter.kind, Kind::Required)).then_some(parameter.name)
        };
        let missing: Vec<&str> = self.task.named().zip(&self.named).filter_map(absent).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(type_error(format!(
            "{}() missing {} required positional argument{}: {}",
            self.task.function,
            missing.len(),
            if missing.len() == 1 { "" } else { "s" },
            enumerate(&missing),
        )))
    }

    pub fn task(&self) -> &'static Task {
        self.task
    }

    /// The named parameter at `index`, which the caller must have given.
    pub fn required<T: DeserializeOwned>(&self, index: usize) -> Result<T, Error> {
        let value = self.named[index].expect("a call that lacks a required argument is refused when it is bound");
        self.parse(value, format_args!("'{}'", self.task.parameters[index].name))
    }

    /// The named parameter at `index`, if the caller gave it.
    pub fn optional<T: DeserializeOwned>(&self, index: usize) -> Result<Option<T>, Error> {
        self.named[index].map(|_| self.required(index)).transpose()
    }

    /// What is left of the positional arguments, for the parameter at `index`.
    pub fn variadic<T: DeserializeOwned>(&self, index: usize) -> Result<Vec<T>, Error> {
        let name = self.task.parameters[index].name;
        let values = self.rest.iter().enumerate();
        values.map(|(place, value)| self.parse(value, format_args!("'{name}[{place}]'"))).collect()
    }

    /// What is left of the keyword arguments.
    pub fn keywords<T: DeserializeOwned>(&self) -> Result<BTreeMap<String, T>, Error> {
        let pairs = self.keywords.iter();
        pairs.map(|(name, value)| Ok((name.to_string(), self.parse(value, format_args!("'{name}'"))?))).collect()
    }

    fn parse<T: DeserializeOwned>(&self, value: &RawValue, argument: std::fmt::Arguments<'_>) -> Result<T, Error> {
        serde_json::from_str(value.get())
            .map_err(|error| type_error(format!("{}() argument {argument}: {error}", self.task.function)))
    }
}

fn type_error(message: String) -> Error {
    Error::unplaced("TypeError", message)
}

/// Names as Python enumerates them: `'a'`, `'a' and 'b'`, `'a', 'b', and 'c'`.
fn enumerate(names: &[&str]) -> String {
    let mut text = String::new();
    for (index, name) in names.iter().enumerate() {
        let separator = match (index, names.len()) {
            (0, _) => "",
            (1, 2) => " and ",
            (index, count) if index + 1 == count => ", and ",
            _ => ", ",
        };
        write!(text, "{separator}'{name}'").expect("a string takes every write");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::enumerate;

    #[test]
    fn names_are_enumerated_as_in_python() {
        assert_eq!(enumerate(&["a"]), "'a'");
        assert_eq!(enumerate(&["a", "b"]), "'a' and 'b'");
        assert_eq!(enumerate(&["a", "b", "c"]), "'a', 'b', and 'c'");
    }
}
