//! `rtask inspect`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use rtask_broker::{Patience, connect_broker};
use serde_json::Map;

use super::remote::{self, Reach};
use crate::{failure::Failure, output::Output, settings::Settings};

/// Ask workers something
#[derive(Debug, Args)]
pub struct Inspect {
    #[command(subcommand)]
    question: Question,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Question {
    /// Whether they are there. Exits with 1 if none is
    Ping,
}

pub async fn run(inspect: Inspect, settings: Settings, output: Output) -> Result<ExitCode, Failure> {
    let method = match inspect.question {
        Question::Ping => "ping",
    };
    let broker = connect_broker(settings.broker(), settings.broker_transport(Patience::FailFast)?).await?;
    let asked = inspect.reach.ask(broker.as_ref(), method, Map::new(), &settings, output).await;
    broker.close().await;
    match asked? {
        answers if answers.is_empty() => Err(inspect.reach.nobody_answered()),
        answers => remote::show(&answers, output),
    }
}
