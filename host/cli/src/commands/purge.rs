//! `rtask purge`.

use std::process::ExitCode;

use clap::Args;
use rtask_broker::{Patience, connect_broker};
use serde_json::{Map, json};

use super::plural;
use crate::{
    confirm::confirm,
    failure::{Attempt, Failure},
    output::Output,
    settings::{Names, Settings},
    visible,
};

/// Remove the messages that wait in queues
///
/// All queues that are known, unless some are named. Messages that a worker holds already, and those that are put aside
/// until later, stay.
#[derive(Debug, Args)]
pub struct Purge {
    /// Queues to purge, with commas between them; without it, task_queues or task_default_queue
    #[arg(short = 'Q', long, value_name = "QUEUES")]
    queues: Option<Names>,
    /// Queues not to purge, with commas between them
    #[arg(short = 'X', long, value_name = "QUEUES")]
    exclude_queues: Option<Names>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub async fn run(purge: Purge, settings: Settings, output: Output) -> Result<ExitCode, Failure> {
    let queues = settings.queues(purge.queues.as_ref(), purge.exclude_queues.as_ref())?;
    let names: Vec<&str> = queues.iter().map(|queue| queue.name.as_str()).collect();
    let shown = visible::line(&names.join(", "));
    confirm(
        &format!("All messages in {} will be removed: {shown}.", plural(names.len(), "queue")),
        purge.force,
        output,
    )?;

    let broker = connect_broker(settings.broker(), settings.broker_transport(Patience::FailFast)?).await?;
    let (mut sum, mut by_queue) = (0, Map::new());
    for name in names {
        let removed =
            broker.purge(name).await.attempt(format_args!("failed to purge queue {}", visible::line(name)))?;
        sum += removed;
        by_queue.insert(name.to_owned(), removed.into());
    }
    broker.close().await;
    let messages = usize::try_from(sum).unwrap_or(usize::MAX);
    let told = format!("{} removed from {}", plural(messages, "message"), plural(by_queue.len(), "queue"));
    output.answer(told, &json!({ "removed": sum, "queues": by_queue }))?;
    Ok(ExitCode::SUCCESS)
}
