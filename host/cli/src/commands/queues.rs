//! `rtask queues`.

use std::process::ExitCode;

use clap::Args;
use rtask_broker::{Broker, Patience, QueueStats, connect_broker};
use rtask_protocol::names::dead_letter_queue;
use serde_json::{Value, json};

use crate::{
    failure::{Attempt, Failure},
    output::Output,
    settings::{Names, Settings},
    table::Table,
    visible,
};

/// Show what is in queues and in those of their dead letters
///
/// MESSAGES wait, UNACKED ones are held by a worker, POSTPONED ones are put aside until their time. A number that the
/// broker does not tell is left out.
#[derive(Debug, Args)]
pub struct Queues {
    /// Queues to show, with commas between them; without it, task_queues or task_default_queue
    #[arg(short = 'Q', long, value_name = "QUEUES")]
    queues: Option<Names>,
}

pub async fn run(queues: Queues, settings: Settings, output: Output) -> Result<ExitCode, Failure> {
    let queues = settings.queues(queues.queues.as_ref(), None)?;
    let broker = connect_broker(settings.broker(), settings.broker_transport(Patience::FailFast)?).await?;
    let mut found = Vec::new();
    for queue in queues {
        let dead = dead_letter_queue(&queue.name);
        let stats = inspect(broker.as_ref(), &queue.name).await?;
        found.push((queue.name, stats));
        // Made when the first letter comes.
        if let Some(stats) = inspect(broker.as_ref(), &dead).await? {
            found.push((dead, Some(stats)));
        }
    }
    broker.close().await;
    let values: Vec<Value> = found.iter().map(|(name, stats)| value(name, *stats)).collect();
    output.answer(table(&found), &values)?;
    for (name, _) in found.iter().filter(|(_, stats)| stats.is_none()) {
        output.note(format_args!(
            "queue {} does not exist yet; it is made when something is sent to it or consumes it",
            visible::line(name)
        ));
    }
    Ok(ExitCode::SUCCESS)
}

async fn inspect(broker: &dyn Broker, queue: &str) -> Result<Option<QueueStats>, Failure> {
    broker.inspect(queue).await.attempt(format_args!("failed to inspect queue {}", visible::line(queue)))
}

fn table(found: &[(String, Option<QueueStats>)]) -> Table {
    let mut table = Table::new(["QUEUE", "MESSAGES", "UNACKED", "POSTPONED", "CONSUMERS"]);
    let shown = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
    for (name, stats) in found {
        let QueueStats { unacked, postponed, consumers, .. } = stats.unwrap_or_default();
        let messages = stats.map(|stats| stats.messages);
        table.push([name.clone(), shown(messages), shown(unacked), shown(postponed), shown(consumers)]);
    }
    table
}

fn value(name: &str, stats: Option<QueueStats>) -> Value {
    let QueueStats { messages, unacked, postponed, consumers } = stats.unwrap_or_default();
    json!({
        "queue": name,
        "exists": stats.is_some(),
        "messages": messages,
        "unacked": unacked,
        "postponed": postponed,
        "consumers": consumers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_told_is_left_out() {
        let stats = QueueStats { messages: 12, unacked: Some(3), postponed: None, consumers: Some(1) };
        let found = [("celery".to_owned(), Some(stats)), ("new".to_owned(), None)];
        let expected = "QUEUE   MESSAGES  UNACKED  POSTPONED  CONSUMERS\n\
                        celery  12        3        -          1\n\
                        new     -         -        -          -";
        assert_eq!(table(&found).to_string(), expected);
        assert_eq!(value("celery", Some(stats))["postponed"], Value::Null);
        assert_eq!(value("new", None)["exists"], false);
    }
}
