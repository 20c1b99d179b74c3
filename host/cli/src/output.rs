//! Where a command's words go: results to standard output, everything else to standard error.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
};

use serde::Serialize;

/// Whether people or programs read.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    pub fn is_json(self) -> bool {
        self.json
    }

    /// Whether standard error is a person's terminal, which lines may be redrawn on.
    pub fn is_lively(self) -> bool {
        !self.json && io::stderr().is_terminal()
    }

    /// Whether standard error shows colours; NO_COLOR is the convention of no-color.org.
    pub fn is_colourful(self) -> bool {
        self.is_lively() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
    }

    /// A result, as text that is fit for people or as one line of JSON.
    ///
    /// # Errors
    /// When it cannot be written; but that nobody reads any more, as behind `head`, is no error.
    pub fn answer(self, text: impl Display, value: &impl Serialize) -> io::Result<()> {
        if self.json { self.json(value) } else { print(text) }
    }

    /// # Errors
    /// As [`Self::answer`].
    pub fn json(self, value: &impl Serialize) -> io::Result<()> {
        print(serde_json::to_string(value)?)
    }

    /// Something that a person should know, beside the result. Programs are not told.
    pub fn note(self, text: impl Display) {
        if !self.json {
            complain(text);
        }
    }

    /// Something that is probably not as it was meant.
    pub fn warn(self, text: impl Display) {
        if self.json {
            complain(serde_json::json!({ "warning": text.to_string() }));
        } else {
            complain(format_args!("warning: {text}"));
        }
    }
}

/// A line on standard output.
///
/// # Errors
/// As [`Output::answer`].
pub fn print(text: impl Display) -> io::Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// A line on standard error. If that cannot be written, there is nobody left to tell.
pub fn complain(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
