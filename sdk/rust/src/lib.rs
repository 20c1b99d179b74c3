//! Write tasks for rtask: plain functions with serde types, each run in a sandbox of its own, called by any Celery
//! client.
//!
//! ```
//! use rtask::{Context, Error, task};
//!
//! /// The sum of two whole numbers.
//! #[task]
//! fn add(x: i64, y: i64) -> i64 {
//!     x + y
//! }
//!
//! #[task(name = "math.div", time_limit = 5, memory = "32 MiB", ignore_result)]
//! fn div(context: &Context, a: f64, #[default = 1.0] b: f64, note: Option<String>) -> Result<f64, Error> {
//!     if b == 0.0 {
//!         return Err(Error::new("ZeroDivisionError").args("division by zero"));
//!     }
//!     rtask::log::info(format_args!("{}: {}", context.id(), note.as_deref().unwrap_or("no note")));
//!     Ok(a / b)
//! }
//!
//! // Outside the sandbox a task is what it looks like: a function.
//! assert_eq!(add(2, 2), 4);
//! assert_eq!(div(&Context::for_test(), 1.0, 4.0, None), Ok(0.25));
//! ```
//!
//! Built for `wasm32-wasip2`, a `cdylib` that depends on this crate is a module: the exports come from here, and
//! every [`task`] in it registers itself. README.md beside this crate tells of it in order.
//!
//! What is here stays thin. Limits, retries and everything else that another language's SDK would need too live in
//! the host, behind `sdk/wit/task.wit`. To read the code, follow a call: `component` (outside wasm `rehearsal`, which
//! stands in for the host), `registry`, `arguments`, `outcome`; [`Error`] and [`Context`] are what users meet.

mod arguments;
mod builtins;
mod context;
mod error;
#[cfg_attr(target_family = "wasm", path = "component.rs")]
#[cfg_attr(not(target_family = "wasm"), path = "rehearsal.rs")]
mod host;
pub mod log;
mod manifest;
mod object;
mod outcome;
mod registry;
mod request;
mod retry;
mod signature;

pub use context::{Context, SoftTimeLimitExceeded};
pub use error::Error;
pub use request::DeliveryInfo;
pub use retry::Retry;
/// Any JSON value, for tasks that take what comes; and the macro that writes one.
pub use serde_json::{Value, json};
pub use signature::{Signature, signature};

/// Makes a function a task.
///
/// # Options
///
/// What is absent is left to the worker's and the tenant's settings.
///
/// | Option | Meaning |
/// |---|---|
/// | `name = "math.div"` | what callers send; by default `<crate>.<function>`, such as `hello.add` |
/// | `time_limit = 5` | seconds until the run is ended with `TimeLimitExceeded` |
/// | `soft_time_limit = 1.5` | seconds until the run is told to end; see [`SoftTimeLimitExceeded`] |
/// | `memory = "32 MiB"` | bytes, or text in B, KiB, MiB, GiB; beyond it the run ends with `MemoryLimitExceeded` |
/// | `max_retries = 5` | how often the task may be retried, by itself or by [`Context::retry`]; `unlimited` for no end |
/// | `default_retry_delay = 3` | seconds until a retry that names no time |
/// | `autoretry_for = ["ValueError"]` | exceptions that are retried: a class, also with its module (`"shop.errors.Busy"`), or `"Exception"` for all |
/// | `dont_autoretry_for = ["KeyError"]` | exceptions that are not, though `autoretry_for` has them |
/// | `retry_backoff`, `retry_backoff = 2` | automatic retries wait 1, 2, 4, .. seconds, or the number times that |
/// | `retry_backoff_max = 60` | seconds that they wait at most |
/// | `retry_jitter = false` | they wait exactly so long, and not a random part of it |
/// | `rate_limit = "10/m"` | runs in a second (`s`), minute (`m`) or hour (`h`) |
/// | `acks_late = false` | take the message off the queue before the run, so that a crash loses it |
/// | `acks_on_failure = false` | a failure rejects the message, which a dead-letter exchange may take |
/// | `acks_on_timeout = false` | a hard time limit puts the message back into its queue |
/// | `reject_on_worker_lost = false` | the death of the process that runs the task fails it, and does not run it again |
/// | `ignore_result` | store no result |
/// | `store_errors_even_if_ignored` | but store failures |
/// | `track_started` | store the state `STARTED` when a run begins |
/// | `queue = "slow"` | where the task is sent if its sender names no queue |
/// | `priority = 3` | with what priority (0 to 255) if its sender gives none |
/// | `expires = 60` | seconds after which it is not begun any more if its sender says nothing else |
/// | `crate = path` | where this crate is found, if it is not `::rtask` |
///
/// A flag alone means `= true`. Numbers of seconds may have a fraction.
///
/// # Parameters
///
/// Callers pass arguments by position or by name, and what does not fit is answered as Python would: a `TypeError`
/// with the same words. A parameter's type is anything that serde can deserialise.
///
/// | Parameter | When the argument is absent |
/// |---|---|
/// | `context: &Context`, first | is no argument; see [`Context`] |
/// | `x: i64` | `TypeError` |
/// | `x: Option<i64>` | `None` |
/// | `#[default = 1] x: i64` | the expression, computed at each call; its type needs `Serialize` for the manifest |
/// | `#[default] x: Vec<i64>` | `Default::default()` |
/// | `#[args] rest: Vec<T>` | takes the positional arguments that are left, as `*args` does |
/// | `#[kwargs] named: BTreeMap<String, T>` | takes the keyword arguments that are left, as `**kwargs` does |
///
/// ```
/// use std::collections::BTreeMap;
/// use rtask::{Value, task};
///
/// #[task]
/// fn greet(name: String, #[default = "Hello"] word: String, #[default] marks: Vec<char>) -> String {
///     format!("{word}, {name}{}", marks.iter().collect::<String>())
/// }
///
/// #[task]
/// fn everything(first: i64, #[args] rest: Vec<Value>, #[kwargs] named: BTreeMap<String, Value>) -> usize {
///     1 + rest.len() + named.len()
/// }
/// ```
///
/// # Results
///
/// A task returns anything that serde can serialise, or a `Result` of it and of anything that becomes an [`Error`]:
/// an [`Error`], a [`Retry`], or any `std::error::Error`. A function that never returns (`-> !`) is a task too.
///
/// ```
/// use std::num::ParseIntError;
/// use rtask::{Error, task};
///
/// #[task]
/// fn strict(text: String) -> Result<i64, ParseIntError> {
///     text.parse()
/// }
///
/// #[task]
/// fn even(text: String) -> Result<i64, Error> {
///     let number: i64 = text.parse()?;
///     if number % 2 != 0 {
///         return Err(Error::value_error(format_args!("{number} is odd")));
///     }
///     Ok(number)
/// }
/// ```
///
/// # Options that are refused
///
/// ```compile_fail
/// #[rtask::task(max_retries = None)] // write `max_retries = unlimited` for no end, 0 for no retry
/// fn load() {}
/// ```
///
/// ```compile_fail
/// #[rtask::task(retry_backoff)] // does nothing without `autoretry_for`
/// fn load() {}
/// ```
///
/// ```compile_fail
/// #[rtask::task(soft_time_limit = 10, time_limit = 5)] // would never be met
/// fn load() {}
/// ```
///
/// # Functions that cannot be tasks
///
/// ```compile_fail
/// #[rtask::task]
/// async fn wait() {} // async: a task has an instance of its own, and may block in it
/// ```
///
/// ```compile_fail
/// #[rtask::task]
/// fn show<T: ToString>(value: T) {} // generic: JSON chooses no type
/// ```
///
/// ```compile_fail
/// #[rtask::task]
/// fn shout(text: &str) {} // borrowed: a task owns its arguments
/// ```
///
/// ```compile_fail
/// #[rtask::task]
/// fn start() -> std::time::Instant { std::time::Instant::now() } // a result that serde cannot serialise
/// ```
pub use rtask_macros::task;

/// Gives the module another name than its package's, such as `rtask::module! { name = "shop" }`; once, anywhere in it.
///
/// Needed when its tasks come from several packages, of which none is the obvious one. A name has 1 to 64 letters,
/// digits, `_`, `.` or `-`, and begins with none of the last two.
///
/// ```
/// rtask::module! { name = "shop" }
/// ```
///
/// ```compile_fail
/// rtask::module! { name = "no blanks" }
/// ```
#[macro_export]
macro_rules! module {
    (name = $name:literal $(,)?) => {
        const _: () = {
            ::core::assert!($crate::__private::is_module_name($name), "this is no name for a module");
            $crate::__private::inventory::submit! { $crate::__private::ModuleName($name) }
        };
    };
}

/// Calls tasks as the host does, by name and with JSON, for this crate's own tests.
#[doc(hidden)]
pub mod testing {
    pub use crate::{manifest::describe, registry::dispatch};
}

/// What the macros write; nothing that anyone else should name.
#[doc(hidden)]
pub mod __private {
    pub use crate::{
        manifest::{MaxRetries, ModuleName, Options, is_module_name},
        outcome::{Fallible, Plain},
        registry::{Kind, Parameter, Task},
    };
    pub use inventory;
    pub use serde_json::to_string as json;
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
