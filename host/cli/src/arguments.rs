//! What can be typed: the options that every command has, and the commands.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{
    commands::{
        build, call, completions, control, dead_letters, deploy, doctor, inspect, modules, purge, queues, result,
        version, worker,
    },
    settings::Settings,
};

/// Celery's job, with every task in a WebAssembly sandbox of its own.
#[derive(Debug, Parser)]
#[command(name = "rtask", version, max_term_width = 100, disable_help_subcommand = true)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 a server cannot be reached.")]
pub struct Arguments {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Where messages travel: amqp://USER:PASSWORD@HOST:PORT/VHOST, redis://HOST:PORT/DB, with TLS amqps://... or
    /// rediss://..., sentinel://..., or sqlite:PATH. Several with `;` between them are tried in turn. A password is better kept in RTASK_BROKER_URL or rtask.toml, since other users can see arguments
    #[arg(short, long, global = true, value_name = "URL")]
    broker: Option<String>,
    /// Where results are kept: redis://HOST:PORT/DB, rediss://..., sentinel://..., sqlite:PATH, or rpc:// to send them
    /// to whoever sent the task (RTASK_RESULT_BACKEND)
    #[arg(long, visible_alias = "result-backend", global = true, value_name = "URL")]
    backend: Option<String>,
    /// Where modules are kept; without it, where results are (RTASK_REGISTRY)
    #[arg(long, global = true, value_name = "URL")]
    registry: Option<String>,
    /// The settings file; without it, rtask.toml in this folder if there is one (RTASK_CONFIG)
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Answer in JSON: results on standard output, errors and logs on standard error
    #[arg(long, global = true)]
    pub json: bool,
}

#[expect(clippy::large_enum_variant, reason = "there is one in a process, and it is moved on at once")]
#[derive(Debug, Subcommand)]
pub enum Command {
    Worker(worker::Worker),
    Deploy(deploy::Deploy),
    Modules(modules::Modules),
    Call(call::Call),
    Result(result::TaskResult),
    Queues(queues::Queues),
    Purge(purge::Purge),
    DeadLetters(dead_letters::DeadLetters),
    Control(control::Control),
    Inspect(inspect::Inspect),
    Build(build::Build),
    Doctor(doctor::Doctor),
    Version(version::Version),
    Completions(completions::Completions),
}

impl Global {
    /// Flags go before everything else.
    pub fn apply(self, settings: &mut Settings) {
        let replace = |setting: &mut Option<String>, flag: Option<String>| {
            if flag.is_some() {
                *setting = flag;
            }
        };
        replace(&mut settings.broker_url, self.broker);
        replace(&mut settings.result_backend, self.backend);
        replace(&mut settings.registry, self.registry);
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_agree_with_each_other() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn options_of_every_command_stand_before_or_after_its_name() {
        for line in ["rtask --json --backend redis://h/0 modules", "rtask modules --result-backend redis://h/0 --json"]
        {
            let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
            assert!(arguments.global.json, "{line}");
            let mut settings = Settings::default();
            arguments.global.apply(&mut settings);
            assert_eq!(settings.result_backend.as_deref(), Some("redis://h/0"), "{line}");
        }
    }

    #[test]
    fn a_flag_that_is_absent_leaves_the_setting_alone() {
        let mut settings = Settings { broker_url: Some("amqp://h".to_owned()), ..Settings::default() };
        let arguments = Arguments::try_parse_from(["rtask", "modules"]).unwrap();
        arguments.global.apply(&mut settings);
        assert_eq!(settings.broker_url.as_deref(), Some("amqp://h"));
    }
}
