//! Lines in the worker's log, under the id and name of the task that says them.
//!
//! ```
//! rtask::log::info("starting");
//! rtask::log::warning(format_args!("{} of {} left", 3, 10));
//! ```
//!
//! Severities are those of Python's `logging`. Standard output and standard error become lines too, as info and as
//! warning. How much a run may say is limited; the worker drops what is over, and says so.

use std::fmt::Display;

use crate::host;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Level {
    Debug,
    Info,
    Warning,
    Critical,
}

pub fn debug(message: impl Display) {
    host::log(Level::Debug, &message.to_string());
}

pub fn info(message: impl Display) {
    host::log(Level::Info, &message.to_string());
}

pub fn warning(message: impl Display) {
    host::log(Level::Warning, &message.to_string());
}

pub fn critical(message: impl Display) {
    host::log(Level::Critical, &message.to_string());
}
