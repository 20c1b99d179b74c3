//! How a task ends without a result.

use std::{
    any::type_name,
    error::Error as StdError,
    fmt::{self, Display},
    panic::Location,
};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::builtins;

/// Causes of an error that its traceback tells.
const MAX_CAUSES: usize = 20;

/// An exception for the caller to catch, or one of Celery's other ways to end a task.
///
/// Celery's clients rebuild an exception from its class name, the module of the class, and its arguments:
///
/// ```
/// # use rtask::Error;
/// Error::value_error("no such colour"); // ValueError('no such colour')
/// Error::new("ValueError").args(("no", 1)); // ValueError('no', 1)
/// Error::new("OutOfStock").module("shop.errors").args(["tea"]); // shop.errors.OutOfStock('tea')
/// ```
///
/// `?` turns any [`std::error::Error`] into one, with the type's name as the class, its Rust module as the module, and
/// its message as the one argument; the traceback tells the line of the `?` and the causes. A type of one's own that is
/// to choose its class implements `From<Mine> for rtask::Error`, and leaves `std::error::Error` out:
///
/// ```
/// # use rtask::{Error, task};
/// enum Refusal {
///     NoSuchUser(u64),
///     Closed,
/// }
///
/// impl From<Refusal> for Error {
///     fn from(refusal: Refusal) -> Self {
///         match refusal {
///             Refusal::NoSuchUser(id) => Error::key_error(id),
///             Refusal::Closed => Error::requeue("closed at night"),
///         }
///     }
/// }
///
/// #[task]
/// fn refuse(id: u64) -> Result<(), Refusal> {
///     Err(if id == 0 { Refusal::Closed } else { Refusal::NoSuchUser(id) })
/// }
/// ```
///
/// What implements only `Display`, such as `anyhow::Error` or `Box<dyn Error>`, is named at the `?`:
/// `.map_err(Error::runtime_error)?`.
///
/// Two errors are equal when their callers could not tell them apart; the traceback does not count.
#[derive(Clone, PartialEq, Eq)]
pub struct Error(Box<Ending>);

/// The failures of `rtask:task/types`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    Raise(Exception),
    Retry { cause: Option<Exception>, options: Map<String, Value> },
    Reject { reason: String, requeue: bool },
    Ignore,
}

#[derive(Clone)]
pub(crate) struct Exception {
    pub(crate) kind: String,
    pub(crate) module: Option<String>,
    /// A JSON array.
    pub(crate) arguments: String,
    pub(crate) traceback: Option<String>,
}

impl PartialEq for Exception {
    fn eq(&self, other: &Self) -> bool {
        (&self.kind, &self.module, &self.arguments) == (&other.kind, &other.module, &other.arguments)
    }
}

impl Eq for Exception {}

impl Error {
    /// An exception of this class, without arguments. The module of Python's own exceptions is known.
    #[track_caller]
    pub fn new(kind: impl Into<String>) -> Self {
        Self::raise(kind.into(), place())
    }

    /// The module of the class, such as `shop.errors`; only an exception has one.
    #[must_use]
    pub fn module(mut self, module: impl Into<String>) -> Self {
        if let Ending::Raise(exception) = &mut *self.0 {
            exception.module = Some(module.into());
        }
        self
    }

    /// The exception's arguments: a tuple, array or `Vec`; anything else is the one argument. Only an
    /// exception has them.
    #[must_use]
    pub fn args(mut self, arguments: impl Serialize) -> Self {
        if let Ending::Raise(exception) = &mut *self.0 {
            exception.arguments = json_array(&arguments);
        }
        self
    }

    #[track_caller]
    pub fn value_error(message: impl Display) -> Self {
        Self::new("ValueError").args(message.to_string())
    }

    #[track_caller]
    pub fn type_error(message: impl Display) -> Self {
        Self::new("TypeError").args(message.to_string())
    }

    #[track_caller]
    pub fn key_error(key: impl Display) -> Self {
        Self::new("KeyError").args(key.to_string())
    }

    #[track_caller]
    pub fn runtime_error(message: impl Display) -> Self {
        Self::new("RuntimeError").args(message.to_string())
    }

    /// Give the message up, as Celery's `Reject` does: it goes to the dead letters with the reason, and a
    /// failure `Reject` is stored.
    pub fn reject(reason: impl Display) -> Self {
        Self(Box::new(Ending::Reject { reason: reason.to_string(), requeue: false }))
    }

    /// Put the message back into its queue, for another run at another time.
    pub fn requeue(reason: impl Display) -> Self {
        Self(Box::new(Ending::Reject { reason: reason.to_string(), requeue: true }))
    }

    /// Settle the message and store nothing, as Celery's `Ignore` does.
    pub fn ignore() -> Self {
        Self(Box::new(Ending::Ignore))
    }

    /// Run the task again; see [`Retry`](crate::Retry), also for a cause that is no exception.
    pub(crate) fn retry(options: Map<String, Value>, cause: Option<Self>) -> Self {
        let cause = match cause.map(|cause| *cause.0) {
            None => None,
            Some(Ending::Raise(exception)) => Some(exception),
            Some(other @ (Ending::Retry { .. } | Ending::Reject { .. } | Ending::Ignore)) => {
                return Self(Box::new(other));
            }
        };
        Self(Box::new(Ending::Retry { cause, options }))
    }

    /// An exception that comes from no line of the task.
    pub(crate) fn unplaced(kind: &str, message: impl Display) -> Self {
        Self::raise(kind.to_owned(), None).args(message.to_string())
    }

    fn raise(kind: String, traceback: Option<String>) -> Self {
        let module = builtins::module_of(&kind).map(str::to_owned);
        Self(Box::new(Ending::Raise(Exception { kind, module, arguments: "[]".to_owned(), traceback })))
    }

    /// What the host raises, from the line that asked it.
    #[cfg(target_family = "wasm")]
    #[track_caller]
    pub(crate) fn raised_by_host(exception: Exception) -> Self {
        // Not by `or_else`, through which the caller's line would be lost.
        let here = place();
        let traceback = exception.traceback.or(here);
        Self(Box::new(Ending::Raise(Exception { traceback, ..exception })))
    }

    #[cfg(target_family = "wasm")]
    pub(crate) fn into_ending(self) -> Ending {
        *self.0
    }
}

impl<E: StdError> From<E> for Error {
    #[track_caller]
    fn from(error: E) -> Self {
        let (module, kind) = class(type_name::<E>());
        let mut raised = Self::raise(kind.to_owned(), traceback(&error)).args(error.to_string());
        if let Some(module) = module {
            raised = raised.module(module);
        }
        raised
    }
}

impl Display for Error {
    /// As Python would print it, but for the arguments, which are JSON: `ValueError("no", 1)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Ending::Raise(exception) => exception.fmt(f),
            Ending::Retry { cause, options } => {
                let options: Vec<_> = options.iter().map(|(name, value)| format!("{name}={value}")).collect();
                write!(f, "retry({})", options.join(", "))?;
                cause.iter().try_for_each(|cause| write!(f, ": {cause}"))
            }
            Ending::Reject { reason, requeue: false } => write!(f, "rejected: {reason}"),
            Ending::Reject { reason, requeue: true } => write!(f, "put back: {reason}"),
            Ending::Ignore => f.write_str("ignored"),
        }
    }
}

impl Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arguments = self.arguments.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        write!(f, "{}({})", self.kind, arguments.unwrap_or_default())
    }
}

impl fmt::Debug for Error {
    /// With the traceback, for `unwrap` in a test.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Ending::Raise(Exception { traceback: Some(traceback), .. })
            | Ending::Retry { cause: Some(Exception { traceback: Some(traceback), .. }), .. } => {
                write!(f, "{self}\n{traceback}")
            }
            Ending::Raise(_) | Ending::Retry { .. } | Ending::Reject { .. } | Ending::Ignore => write!(f, "{self}"),
        }
    }
}

fn json_array(arguments: &impl Serialize) -> String {
    match serde_json::to_string(arguments) {
        Ok(array) if array.starts_with('[') => array,
        Ok(one) => format!("[{one}]"),
        // Whatever it was, the exception still has to reach its caller.
        Err(error) => format!("[{}]", Value::String(format!("arguments that JSON cannot hold: {error}"))),
    }
}

/// Where the error was made, unless that is a line of the standard library: a function that is passed on, as in
/// `map_err(Error::value_error)`, does not know who called.
#[track_caller]
fn place() -> Option<String> {
    let place = Location::caller();
    (!place.file().starts_with("/rustc/")).then(|| format!("raised at {place}"))
}

#[track_caller]
fn traceback(error: &dyn StdError) -> Option<String> {
    let causes = std::iter::successors(error.source(), |&error| error.source());
    let lines = place().into_iter().chain(causes.take(MAX_CAUSES).map(|cause| format!("caused by: {cause}")));
    let lines: Vec<String> = lines.collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// `core::num::error::ParseIntError` apart: the module and the class.
fn class(path: &str) -> (Option<&str>, &str) {
    let path = path.trim_start_matches('&').split('<').next().unwrap_or(path);
    match path.rsplit_once("::") {
        Some((module, kind)) => (Some(module), kind),
        None => (None, path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Retry;
    use std::collections::BTreeMap;

    fn exception(error: Error) -> Exception {
        match *error.0 {
            Ending::Raise(exception) => exception,
            Ending::Retry { .. } | Ending::Reject { .. } | Ending::Ignore => panic!("{error} is no exception"),
        }
    }

    #[test]
    fn python_s_own_exceptions_have_their_module() {
        assert_eq!(exception(Error::new("ValueError")).module.as_deref(), Some("builtins"));
        assert_eq!(exception(Error::new("ValueError").module("mine")).module.as_deref(), Some("mine"));
        assert_eq!(exception(Error::new("OutOfStock")).module, None);
    }

    #[test]
    fn arguments_are_an_array() {
        let rows = [
            (Error::new("E"), "[]"),
            (Error::new("E").args(("no", 1)), r#"["no",1]"#),
            (Error::new("E").args(vec![1, 2]), "[1,2]"),
            (Error::new("E").args("no"), r#"["no"]"#),
            (Error::new("E").args(BTreeMap::from([("a", 1)])), r#"[{"a":1}]"#),
        ];
        for (error, expected) in rows {
            assert_eq!(exception(error).arguments, expected);
        }
    }

    #[test]
    fn arguments_that_are_no_json_are_told_as_such() {
        let arguments = exception(Error::new("E").args(BTreeMap::from([((1, 2), 3)]))).arguments;
        assert!(arguments.starts_with(r#"["arguments that JSON cannot hold"#), "{arguments}");
    }

    #[test]
    fn an_error_knows_its_line() {
        let line = line!() + 1;
        let traceback = exception(Error::value_error("no")).traceback.unwrap();
        assert!(traceback.starts_with("raised at ") && traceback.contains(&format!("error.rs:{line}:")), "{traceback}");
    }

    #[test]
    fn a_question_mark_names_the_type_and_the_line() {
        fn parse() -> Result<i64, Error> {
            Ok("seven".parse::<i64>()?)
        }
        let line = line!() - 2;
        let Exception { kind, module, arguments, traceback } = exception(parse().unwrap_err());
        assert_eq!(kind, "ParseIntError");
        assert_eq!(module.as_deref(), Some("core::num::error"));
        assert_eq!(arguments, r#"["invalid digit found in string"]"#);
        assert!(traceback.unwrap().contains(&format!("error.rs:{line}:")));
    }

    #[test]
    fn causes_are_told() {
        #[derive(Debug)]
        struct Outer(std::num::ParseIntError);
        impl Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("no age")
            }
        }
        impl StdError for Outer {
            fn source(&self) -> Option<&(dyn StdError + 'static)> {
                Some(&self.0)
            }
        }
        let outer = Outer("seven".parse::<i64>().unwrap_err());
        let Exception { kind, arguments, traceback, .. } = exception(outer.into());
        assert_eq!((&*kind, &*arguments), ("Outer", r#"["no age"]"#));
        assert!(traceback.unwrap().ends_with("\ncaused by: invalid digit found in string"));
    }

    #[test]
    fn a_line_of_the_standard_library_is_no_place() {
        let refused: Result<(), &str> = Err("no");
        let error = refused.map_err(Error::value_error).unwrap_err();
        assert_eq!(exception(error).traceback, None);
    }

    #[test]
    fn class_and_module_are_told_apart() {
        let rows = [
            ("core::num::error::ParseIntError", (Some("core::num::error"), "ParseIntError")),
            ("&shop::errors::Full<alloc::string::String>", (Some("shop::errors"), "Full")),
            ("Bare", (None, "Bare")),
        ];
        for (path, expected) in rows {
            assert_eq!(class(path), expected);
        }
    }

    #[test]
    fn errors_are_printed_for_people() {
        let rows = [
            (Error::new("ValueError").args(("no", 1)), r#"ValueError("no",1)"#),
            (Error::reject("spam"), "rejected: spam"),
            (Error::requeue("later"), "put back: later"),
            (Error::ignore(), "ignored"),
            (Error::from(Retry::new()), "retry()"),
            (
                Error::from(Retry::new().priority(9).queue("slow").cause(Error::new("ValueError").args("no"))),
                r#"retry(priority=9, queue="slow"): ValueError("no")"#,
            ),
        ];
        for (error, expected) in rows {
            assert_eq!(error.to_string(), expected);
        }
    }
}
