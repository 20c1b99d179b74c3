//! Inside a component: the exports of `rtask:task/handler`, and the host behind `rtask:task/context`.
//!
//! wasm32-wasip2 aborts on a panic and a trap carries no text, so a hook tells the host of a panic before it. What the
//! host then sees of the trap is the guest's backtrace.

use std::{
    panic::PanicHookInfo,
    sync::atomic::{AtomicBool, Ordering},
};

use serde_json::Value;

use self::bindings::{
    exports::rtask::task::handler::{Failure, Guest},
    rtask::task::{
        context,
        types::{Exception, Rejection, RetryRequest},
    },
};
use crate::{
    Error,
    error::{self, Ending},
    log::Level,
    manifest, registry,
};

#[expect(unsafe_code, reason = "the exports of a component are foreign functions; wit-bindgen writes all of it")]
mod bindings {
    wit_bindgen::generate!({ path: "../wit", world: "task" });

    export!(Module with_types_in self);

    pub(super) struct Module;
}

impl Guest for bindings::Module {
    fn describe() -> String {
        tell_of_panics();
        manifest::describe()
    }

    fn run(task: String, payload: String) -> Result<String, Failure> {
        tell_of_panics();
        registry::dispatch(&task, &payload).map_err(Failure::from)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error.into_ending() {
            Ending::Raise(exception) => Self::Failed(exception.into()),
            Ending::Retry { cause, options } => {
                Self::Retry(RetryRequest { cause: cause.map(Into::into), options: Value::Object(options).to_string() })
            }
            Ending::Reject { reason, requeue } => Self::Reject(Rejection { reason, requeue }),
            Ending::Ignore => Self::Ignore,
        }
    }
}

impl From<error::Exception> for Exception {
    fn from(error::Exception { kind, module, arguments, traceback }: error::Exception) -> Self {
        Self { kind, module, arguments, traceback }
    }
}

impl From<Exception> for error::Exception {
    fn from(Exception { kind, module, arguments, traceback }: Exception) -> Self {
        Self { kind, module, arguments, traceback }
    }
}

/// An instance may be called more than once.
fn tell_of_panics() {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if !TOLD.swap(true, Ordering::Relaxed) {
        std::panic::set_hook(Box::new(tell));
    }
}

fn tell(panic: &PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or("a value that is no text");
    context::panicked(&Exception {
        kind: "Panic".to_owned(),
        module: None,
        arguments: format!("[{}]", Value::from(message)),
        traceback: panic.location().map(|place| format!("panicked at {place}")),
    });
}

/// The host of this instance.
pub(crate) struct Host;

impl Host {
    pub(crate) fn new() -> Self {
        Self
    }

    pub(crate) fn request(&self) -> String {
        context::request()
    }

    pub(crate) fn set_state(&self, state: &str, meta: &str) {
        context::set_state(state, meta);
    }

    pub(crate) fn remaining_ms(&self) -> u32 {
        context::remaining_ms()
    }

    pub(crate) fn soft_remaining_ms(&self) -> Option<u32> {
        context::soft_remaining_ms()
    }

    pub(crate) fn sleep(&self, milliseconds: u32) -> bool {
        context::sleep(milliseconds)
    }

    #[track_caller]
    pub(crate) fn send(&self, signature: &str) -> Result<String, Error> {
        match context::send(signature) {
            Ok(id) => Ok(id),
            Err(exception) => Err(Error::raised_by_host(exception.into())),
        }
    }
}

pub(crate) fn log(level: Level, message: &str) {
    let level = match level {
        Level::Debug => context::Level::Debug,
        Level::Info => context::Level::Info,
        Level::Warning => context::Level::Warning,
        Level::Critical => context::Level::Critical,
    };
    context::log(level, message);
}
