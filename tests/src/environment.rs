//! What `cargo xtask test` tells the tests.

use std::path::PathBuf;

/// The binary `rtask`.
pub const BINARY: &str = "RTASK_TEST_BIN";
/// A Python with Celery.
pub const PYTHON: &str = "RTASK_TEST_PYTHON";
/// The components of examples/hello and tests/guests/probe.
pub const HELLO: &str = "RTASK_TEST_HELLO";
pub const PROBE: &str = "RTASK_TEST_PROBE";

/// Set to anything, it has tests try the whole of what is promised, where they else try a part that takes less time.
pub const FULL: &str = "RTASK_TEST_FULL";

/// Whether tests are to take the time that the whole takes (`cargo xtask test --full`).
pub fn is_full() -> bool {
    std::env::var_os(FULL).is_some()
}

/// The value of a variable.
///
/// # Panics
/// Without it: a test that was not set up has not passed.
pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set; run the tests with `cargo xtask test`"))
}

pub fn path(name: &str) -> PathBuf {
    PathBuf::from(variable(name))
}

pub fn hello() -> PathBuf {
    path(HELLO)
}

pub fn probe() -> PathBuf {
    path(PROBE)
}
