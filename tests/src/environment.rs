//! What `cargo xtask test` tells the tests.

use std::path::PathBuf;

/// The binary `rtask`.
pub const BINARY: &str = "RTASK_TEST_BIN";
/// A Python with Celery.
pub const PYTHON: &str = "RTASK_TEST_PYTHON";
/// The components of examples/hello and tests/guests/probe.
pub const HELLO: &str = "RTASK_TEST_HELLO";
pub const PROBE: &str = "RTASK_TEST_PROBE";

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
