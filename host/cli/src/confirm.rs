//! Asking before something is done that cannot be undone.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use crate::{
    failure::{Attempt, Failure},
    output::Output,
};

/// Nobody answers with more (bytes).
const MAX_ANSWER: u64 = 64;

/// Go on only if `force` is set, or if a person at the terminal says yes to `question`.
///
/// # Errors
/// When they say anything else, and when there is nobody to ask.
pub fn confirm(question: &str, force: bool, output: Output) -> Result<(), Failure> {
    if force {
        return Ok(());
    }
    if output.is_json() || !io::stdin().is_terminal() {
        return Err(Failure::usage("this cannot be undone, and nobody can be asked whether it is meant")
            .hint("say that it is, with --force"));
    }
    let mut prompt = io::stderr().lock();
    write!(prompt, "{question}\nThis cannot be undone. Go on? [y/N] ").and_then(|()| prompt.flush())?;
    let mut answer = String::new();
    io::stdin().lock().take(MAX_ANSWER).read_line(&mut answer).attempt("failed to read the answer")?;
    match is_yes(&answer) {
        true => Ok(()),
        false => Err(Failure::new("stopped, as you said; nothing was done")),
    }
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_yes_is_one() {
        for yes in ["y\n", "Yes\n", " YES "] {
            assert!(is_yes(yes), "{yes}");
        }
        for no in ["", "\n", "n\n", "yep\n", "yes please\n"] {
            assert!(!is_yes(no), "{no}");
        }
    }

    #[test]
    fn programs_must_say_that_they_mean_it() {
        assert!(confirm("?", false, Output::new(true)).is_err());
        assert!(confirm("?", true, Output::new(true)).is_ok());
    }
}
