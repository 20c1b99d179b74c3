//! What an `rtask` command did.

use std::process::{Command, Stdio};

use serde_json::Value;

/// A command that has ended.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// # Panics
    /// When it cannot be started, or a signal ended it.
    pub fn of(command: &mut Command) -> Self {
        let output = command.stdin(Stdio::null()).output();
        let output =
            output.unwrap_or_else(|error| panic!("failed to start {}: {error}", command.get_program().display()));
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let code = output.status.code().unwrap_or_else(|| panic!("ended by {}: {stderr}", output.status));
        Self { code, stdout: String::from_utf8_lossy(&output.stdout).into_owned(), stderr }
    }

    /// # Panics
    /// When the exit code is not 0.
    pub fn succeeded(self) -> Self {
        self.exited(0)
    }

    /// # Panics
    /// When the exit code is another.
    pub fn exited(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// The standard output, which must be JSON.
    ///
    /// # Panics
    /// When it is not.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {}\nstderr: {}", self.stdout, self.stderr))
    }
}
