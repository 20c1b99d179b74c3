//! The arguments of `cargo xtask`.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use xtask::{bench, demo, interrupt, test, tidy, workspace::Workspace};

/// What is done to this repository.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build everything, start a worker, deploy examples/hello and call good and bad tasks of it
    Demo,
    /// Set up what the tests need and run all of them
    Test {
        /// Run only the tests whose names contain this
        filter: Option<String>,
        /// Run only the tests of this package; give it again for more
        #[arg(short, long = "package", value_name = "NAME")]
        packages: Vec<String>,
        /// Where tests try a part of what is promised, try the whole; it takes many minutes
        #[arg(long)]
        full: bool,
    },
    /// Measure rtask beside Celery's prefork worker, on one RabbitMQ and one Redis
    Bench {
        /// Fewer tasks: a minute instead of many
        #[arg(long)]
        quick: bool,
        /// Write what was measured here too
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Check what a reviewer should not have to: dependencies between rooms, sizes, words, paths
    Tidy,
}

/// What a shell calls a command that ctrl-C ended: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            if interrupt::happened() { ExitCode::from(INTERRUPTED) } else { ExitCode::FAILURE }
        }
    }
}

/// Whether everything was as it should be.
fn run(command: Command) -> anyhow::Result<bool> {
    interrupt::watch()?;
    let workspace = Workspace::find()?;
    match command {
        Command::Demo => demo::run(&workspace),
        Command::Test { filter, packages, full } => test::run(&workspace, filter.as_deref(), &packages, full),
        Command::Bench { quick, json } => bench::run(&workspace, quick, json.as_deref()).map(|()| true),
        Command::Tidy => tidy::run(&workspace),
    }
}
