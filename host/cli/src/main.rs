//! The binary `rtask`: arguments and settings in, one command out.
//!
//! Here lives what a person or a script meets: names of options and settings, progress, output, exit codes. What a
//! command does belongs to the rooms below; a command file is the order in which they are asked.
//!
//! Read [`arguments`] first, then [`settings`] (defaults, file, environment), then the commands, one file each, and
//! [`failure`] (how a command ends when it did not do what it was asked).

mod arguments;
mod commands;
mod confirm;
mod embedded;
mod failure;
mod logging;
mod output;
mod progress;
mod settings;
mod table;
mod visible;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command, Global};
use failure::Failure;
use output::Output;
use settings::{Environment, Settings};

fn main() -> ExitCode {
    // Runners and compilers are this same executable; they must be locked in before anything else happens.
    if let Some(code) = rtask_sandbox::child::dispatch() {
        return code;
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error),
    };
    let output = Output::new(arguments.global.json);
    run(arguments, output).unwrap_or_else(|failure| failure.report(output))
}

fn run(Arguments { global, command }: Arguments, output: Output) -> Result<ExitCode, Failure> {
    // Asked for only by those that need them, so that the others answer even where they are broken.
    let settings = || settings(global, output);
    match command {
        Command::Worker(worker) => commands::worker::run(worker, settings()?, output),
        Command::Deploy(deploy) => commands::wait_for(commands::deploy::run(deploy, settings()?, output)),
        Command::Modules(_) => commands::wait_for(commands::modules::run(settings()?, output)),
        Command::Call(call) => commands::wait_for(commands::call::run(call, settings()?, output)),
        Command::Result(result) => commands::wait_for(commands::result::run(result, settings()?, output)),
        Command::Queues(queues) => commands::wait_for(commands::queues::run(queues, settings()?, output)),
        Command::Purge(purge) => commands::wait_for(commands::purge::run(purge, settings()?, output)),
        Command::DeadLetters(letters) => commands::wait_for(commands::dead_letters::run(letters, settings()?, output)),
        Command::Control(control) => commands::wait_for(commands::control::run(control, settings()?, output)),
        Command::Inspect(inspect) => commands::wait_for(commands::inspect::run(inspect, settings()?, output)),
        Command::Build(build) => commands::build::run(&build, output),
        Command::Doctor(_) => commands::wait_for(commands::doctor::run(settings()?, output)),
        Command::Version(_) => commands::version::run(output),
        Command::Completions(completions) => commands::completions::run(&completions, output),
    }
}

fn settings(global: Global, output: Output) -> Result<Settings, Failure> {
    let environment = Environment::of_this_process()?;
    let mut settings = Settings::load(global.config.as_deref(), &environment)?;
    environment.near_misses().iter().for_each(|warning| output.warn(warning));
    global.apply(&mut settings);
    Ok(settings)
}

/// What clap has to say: help and version are no failure, the rest is wrong usage.
fn refuse(error: &clap::Error) -> ExitCode {
    let asked_for_json =
        std::env::args_os().skip(1).take_while(|argument| argument != "--").any(|argument| argument == "--json");
    if error.use_stderr() && asked_for_json {
        let told = error.render().to_string();
        let told = told.trim().trim_start_matches("error: ");
        return Failure::usage(told).report(Output::new(true));
    }
    // Nobody is left to tell if this cannot be written.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(failure::Code::Usage as u8))
}
