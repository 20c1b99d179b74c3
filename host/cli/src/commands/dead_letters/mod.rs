//! `rtask dead-letters`: look at messages that could not be run, and decide what becomes of them.

mod letter;
mod shelf;

use std::{pin::pin, process::ExitCode};

use clap::{Args, Subcommand};
use rtask_broker::{Broker, Patience, Publication, SharedBroker, connect_broker};
use rtask_protocol::dead_letter;
use serde_json::json;

use super::plural;
use crate::{
    confirm::confirm,
    failure::{Attempt, Failure},
    output::Output,
    settings::{Names, Settings},
    table::Table,
    visible,
};
use letter::Letter;
use shelf::Shelf;

/// List, show, send again or drop the messages that could not be run
///
/// A worker puts such a message into a queue beside its own, with the reason: a task that no module has, a body that
/// cannot be read, a task that rejected it, one that was attempted too often.
#[derive(Debug, Args)]
pub struct DeadLetters {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    List(List),
    Show(Show),
    Requeue(Requeue),
    Drop(Discard),
}

#[derive(Debug, Args)]
struct From {
    /// Queues whose dead letters are meant, with commas between them; without it, task_queues or task_default_queue
    #[arg(short = 'Q', long, value_name = "QUEUES")]
    queues: Option<Names>,
}

/// List dead letters, oldest first
#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    from: From,
    /// List no more than so many of each queue
    #[arg(long, value_name = "NUMBER", default_value_t = 20, conflicts_with = "all")]
    limit: usize,
    /// List all, up to 10000 of each queue
    #[arg(long)]
    all: bool,
}

/// Show the whole of a dead letter: headers, properties and body
#[derive(Debug, Args)]
struct Show {
    /// As `rtask dead-letters list` tells it
    id: String,
    #[command(flatten)]
    from: From,
}

/// Send dead letters again, as the messages that they were
///
/// Each is published and confirmed before its letter is gone.
#[derive(Debug, Args)]
struct Requeue {
    #[command(flatten)]
    which: Which,
    /// Send to this queue; without it, to the one that each came from
    #[arg(long, value_name = "QUEUE")]
    to: Option<String>,
    #[command(flatten)]
    from: From,
}

/// Remove dead letters for good
#[derive(Debug, Args)]
struct Discard {
    #[command(flatten)]
    which: Which,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    from: From,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// As `rtask dead-letters list` tells it
    id: Option<String>,
    /// All that are there now
    #[arg(long)]
    all: bool,
}

pub async fn run(command: DeadLetters, settings: Settings, output: Output) -> Result<ExitCode, Failure> {
    let broker = connect_broker(settings.broker(), settings.broker_transport(Patience::FailFast)?).await?;
    let mut work = pin!(act(&command.action, &broker, &settings, output));
    let done = tokio::select! {
        done = &mut work => done,
        // A Redis would keep what is in hand for the dead for long.
        Ok(()) = tokio::signal::ctrl_c() => Err(Failure::new("interrupted; letters that were in hand go back")),
    };
    // Before the work is dropped: what it holds goes back together, in its order.
    broker.close().await;
    done.map(|()| ExitCode::SUCCESS)
}

async fn act(action: &Action, broker: &SharedBroker, settings: &Settings, output: Output) -> Result<(), Failure> {
    match action {
        Action::List(list) => self::list(list, &shelves(broker, &list.from, settings)?, output).await,
        Action::Show(show) => self::show(show, &shelves(broker, &show.from, settings)?, output).await,
        Action::Requeue(requeue) => {
            self::requeue(requeue, broker.as_ref(), &shelves(broker, &requeue.from, settings)?, output).await
        }
        Action::Drop(discard) => self::discard(discard, &shelves(broker, &discard.from, settings)?, output).await,
    }
}

fn shelves(broker: &SharedBroker, from: &From, settings: &Settings) -> Result<Vec<Shelf>, Failure> {
    let queues = settings.queues(from.queues.as_ref(), None)?;
    Ok(queues.into_iter().map(|queue| Shelf::of(broker.clone(), queue.name)).collect())
}

async fn list(list: &List, shelves: &[Shelf], output: Output) -> Result<(), Failure> {
    let limit = if list.all { usize::MAX } else { list.limit };
    let (mut letters, mut more) = (Vec::new(), 0);
    for shelf in shelves {
        let there = shelf.count().await?;
        let looked_at = shelf.look(limit).await?;
        more += there.saturating_sub(looked_at.len());
        letters.extend(looked_at);
    }
    if output.is_json() {
        output.json(&letters.iter().map(Letter::summary).collect::<Vec<_>>())?;
        return Ok(());
    }
    if letters.is_empty() {
        output.note("no dead letters");
        return Ok(());
    }
    let mut table = Table::new(["ID", "TASK", "CODE", "ATTEMPTS", "QUEUE", "DIED", "REASON"]);
    letters.iter().for_each(|letter| table.push(letter.row()));
    output.answer(table, &())?;
    if more > 0 {
        output.note(format_args!("{more} more; --limit or --all shows them"));
    }
    Ok(())
}

async fn show(show: &Show, shelves: &[Shelf], output: Output) -> Result<(), Failure> {
    for shelf in shelves {
        if let Some(found) = shelf.find(&show.id).await? {
            let letter = found.put_back().await;
            return Ok(output.answer(&letter, &letter.whole())?);
        }
    }
    Err(unknown(&show.id, shelves))
}

async fn requeue(requeue: &Requeue, broker: &dyn Broker, shelves: &[Shelf], output: Output) -> Result<(), Failure> {
    let mut sent = 0;
    for shelf in shelves {
        let to = requeue.to.as_deref().unwrap_or(shelf.queue());
        let publication = |letter: &Letter| Publication::to_queue(to, dead_letter::revived(letter.message.clone()));
        match &requeue.which.id {
            Some(id) => {
                let Some(found) = shelf.find(id).await? else { continue };
                if let Err(error) = broker.publish(publication(found.letter())).await {
                    found.put_back().await;
                    return Err(error).attempt(format_args!("failed to send {} again", visible::line(id)));
                }
                found.remove().await?;
                sent += 1;
                break;
            }
            None => {
                for _ in 0..shelf.count().await? {
                    let Some((letter, delivery)) = shelf.take().await? else { break };
                    let published = broker.publish(publication(&letter)).await;
                    published
                        .attempt(format_args!("failed to send {} again, after {sent}", visible::line(&letter.id)))?;
                    delivery.ack().await?;
                    sent += 1;
                }
            }
        }
    }
    if let (Some(id), 0) = (&requeue.which.id, sent) {
        return Err(unknown(id, shelves));
    }
    Ok(output.answer(format_args!("{} sent again", plural(sent, "dead letter")), &json!({ "requeued": sent }))?)
}

async fn discard(discard: &Discard, shelves: &[Shelf], output: Output) -> Result<(), Failure> {
    let mut dropped = 0;
    match &discard.which.id {
        Some(id) => {
            confirm(&format!("Dead letter {} will be dropped.", visible::line(id)), discard.force, output)?;
            for shelf in shelves {
                if let Some(found) = shelf.find(id).await? {
                    found.remove().await?;
                    dropped = 1;
                    break;
                }
            }
            if dropped == 0 {
                return Err(unknown(id, shelves));
            }
        }
        None => {
            let names: Vec<&str> = shelves.iter().map(Shelf::queue).collect();
            let question = format!("All dead letters of {} will be dropped.", visible::line(&names.join(", ")));
            confirm(&question, discard.force, output)?;
            for shelf in shelves {
                dropped += shelf.clear().await?;
            }
        }
    }
    Ok(output.answer(format_args!("{} dropped", plural(dropped, "dead letter")), &json!({ "dropped": dropped }))?)
}

fn unknown(id: &str, shelves: &[Shelf]) -> Failure {
    let names: Vec<&str> = shelves.iter().map(Shelf::queue).collect();
    Failure::new(format!("queue {} has no dead letter {}", visible::line(&names.join(", ")), visible::line(id)))
        .hint("`rtask dead-letters list --all` tells the ids; -Q names other queues")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        command: DeadLetters,
    }

    #[test]
    fn one_or_all_are_meant_and_never_both() {
        let rows = [
            ("requeue id", true),
            ("requeue --all --to other", true),
            ("requeue", false),
            ("requeue id --all", false),
            ("drop id -f", true),
            ("drop --all -Q a,b", true),
            ("drop", false),
            ("list", true),
            ("list --limit 5", true),
            ("list --limit 5 --all", false),
            ("show", false),
        ];
        for (line, right) in rows {
            let parsed = Line::try_parse_from(["dead-letters"].into_iter().chain(line.split(' ')));
            assert_eq!(parsed.is_ok(), right, "{line}");
        }
    }
}
