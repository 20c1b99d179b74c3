//! `rtask completions SHELL`.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use serde_json::json;

use crate::{arguments::Arguments, failure::Failure, output::Output};

/// Print a script that lets a shell complete rtask's commands and options
#[derive(Debug, Args)]
#[command(after_help = "For bash: rtask completions bash > ~/.local/share/bash-completion/completions/rtask")]
pub struct Completions {
    shell: Shell,
}

pub fn run(completions: &Completions, output: Output) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(completions.shell, &mut Arguments::command(), "rtask", &mut script);
    let script = String::from_utf8_lossy(&script);
    output.answer(script.trim_end(), &json!({ "shell": completions.shell.to_string(), "script": script }))?;
    Ok(ExitCode::SUCCESS)
}
