//! `rtask version`.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::{failure::Failure, output::Output};

/// Print the version of this binary
#[derive(Debug, Args)]
pub struct Version {}

pub fn run(output: Output) -> Result<ExitCode, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    output.answer(format_args!("rtask {version}"), &json!({ "version": version }))?;
    Ok(ExitCode::SUCCESS)
}
