//! `rtask control`: tell workers what to do.

use std::{collections::BTreeMap, process::ExitCode};

use clap::{Args, Subcommand};
use rtask_broker::{Patience, Revocation, connect_broker, connect_ledger};
use rtask_protocol::{rate::Rate, request::MAX_ID};
use serde_json::{Map, Value, json};

use super::{
    key_value, plural,
    remote::{self, Answers, Reach},
    text_within,
};
use crate::{
    failure::{Attempt, Failure},
    output::Output,
    settings::{Seconds, Settings},
};

/// Tell workers to revoke tasks, or to change their limits
///
/// What a worker is told of limits it forgets when it ends. A revocation is kept, for workers that start later too.
#[derive(Debug, Args)]
pub struct Control {
    #[command(subcommand)]
    order: Order,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Debug, Subcommand)]
enum Order {
    Revoke(Revoke),
    #[command(alias = "revoke_by_stamped_headers")]
    RevokeByStampedHeaders(RevokeByStamps),
    #[command(alias = "rate_limit")]
    RateLimit(RateLimit),
    #[command(alias = "time_limit")]
    TimeLimit(TimeLimit),
}

/// Do not run these tasks
#[derive(Debug, Args)]
struct Revoke {
    #[arg(required = true, value_name = "ID", value_parser = |text: &str| text_within(text, MAX_ID))]
    ids: Vec<String>,
    /// End those that run already
    #[arg(long)]
    terminate: bool,
}

/// Do not run any task that is stamped so
#[derive(Debug, Args)]
struct RevokeByStamps {
    /// A stamped header and its value; each that is given revokes tasks
    #[arg(required = true, value_name = "HEADER=VALUE", value_parser = key_value)]
    stamps: Vec<(String, String)>,
    /// End those that run already
    #[arg(long)]
    terminate: bool,
}

/// Run a task no more often than so, in each worker
#[derive(Debug, Args)]
struct RateLimit {
    task: String,
    /// Such as 10/s, 100/m or 1/h; 0 for no limit
    rate: Rate,
}

/// End a task's runs after so many seconds
#[derive(Debug, Args)]
struct TimeLimit {
    task: String,
    /// When a run is ended; 0 for the task's own limit
    hard: Seconds,
    /// When a run is told to come to an end
    soft: Option<Seconds>,
}

pub async fn run(control: Control, settings: Settings, output: Output) -> Result<ExitCode, Failure> {
    let Control { order, reach } = control;
    let revocations = order.revocations();
    // In the ledger first: from then on no worker begins any of them, whether it hears of it or not.
    if !revocations.is_empty() {
        let transport = settings.backend_transport(Patience::FailFast)?;
        let ledger = connect_ledger(settings.ledger()?, transport).await?;
        ledger.revoke(&revocations).await.attempt("failed to keep what is revoked")?;
    }
    let broker = connect_broker(settings.broker(), settings.broker_transport(Patience::FailFast)?).await?;
    let (method, arguments) = order.command();
    let asked = reach.ask(broker.as_ref(), method, arguments, &settings, output).await;
    broker.close().await;
    let answers = asked?;
    match (answers.is_empty(), revocations.len()) {
        (true, 0) => Err(reach.nobody_answered()),
        (true, count) => {
            output.answer(format_args!("{} kept", plural(count, "revocation")), &Answers::new())?;
            output.note("no worker answered; those that start later know of it");
            Ok(ExitCode::SUCCESS)
        }
        (false, _) => remote::show(&answers, output),
    }
}

impl Order {
    fn revocations(&self) -> Vec<Revocation> {
        match self {
            Self::Revoke(revoke) => revoke.ids.iter().map(|id| Revocation::Task { id: id.clone() }).collect(),
            Self::RevokeByStampedHeaders(revoke) => {
                let stamps = revoke.stamps.iter().cloned();
                stamps.map(|(header, value)| Revocation::Stamp { header, value }).collect()
            }
            Self::RateLimit(_) | Self::TimeLimit(_) => vec![],
        }
    }

    /// Celery's name for it, and its arguments (golden/04_remote_control/00_all_registered_commands.json).
    fn command(&self) -> (&'static str, Map<String, Value>) {
        let (method, arguments) = match self {
            Self::Revoke(Revoke { ids, terminate }) => ("revoke", json!({ "task_id": ids, "terminate": terminate })),
            Self::RevokeByStampedHeaders(RevokeByStamps { stamps, terminate }) => {
                let mut headers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
                for (header, value) in stamps {
                    headers.entry(header).or_default().push(value);
                }
                ("revoke_by_stamped_headers", json!({ "headers": headers, "terminate": terminate }))
            }
            Self::RateLimit(RateLimit { task, rate }) => {
                ("rate_limit", json!({ "task_name": task, "rate_limit": rate.to_string() }))
            }
            Self::TimeLimit(TimeLimit { task, hard, soft }) => {
                let seconds = |limit: Seconds| limit.limit().map(|limit| limit.as_secs_f64());
                let (hard, soft) = (seconds(*hard), soft.and_then(seconds));
                ("time_limit", json!({ "task_name": task, "hard": hard, "soft": soft }))
            }
        };
        (method, arguments.as_object().cloned().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        control: Control,
    }

    fn order(line: &str) -> Order {
        let line = Line::try_parse_from(["control"].into_iter().chain(line.split(' ')));
        line.unwrap_or_else(|error| panic!("{error}")).control.order
    }

    #[test]
    fn commands_have_celerys_names_and_arguments() {
        let rows = [
            ("revoke a b", "revoke", json!({ "task_id": ["a", "b"], "terminate": false })),
            ("revoke a --terminate -t 2", "revoke", json!({ "task_id": ["a"], "terminate": true })),
            (
                "revoke-by-stamped-headers k=v k=w=x",
                "revoke_by_stamped_headers",
                json!({ "headers": { "k": ["v", "w=x"] }, "terminate": false }),
            ),
            ("rate_limit t 10/m", "rate_limit", json!({ "task_name": "t", "rate_limit": "10/m" })),
            ("rate-limit t 0", "rate_limit", json!({ "task_name": "t", "rate_limit": "0/s" })),
            ("time-limit t 2.5 1", "time_limit", json!({ "task_name": "t", "hard": 2.5, "soft": 1.0 })),
            ("time-limit t 0", "time_limit", json!({ "task_name": "t", "hard": null, "soft": null })),
        ];
        for (line, method, arguments) in rows {
            let (named, told) = order(line).command();
            assert_eq!((named, Value::Object(told)), (method, arguments), "{line}");
        }
    }

    #[test]
    fn only_what_is_revoked_is_kept() {
        let stamp = Revocation::Stamp { header: "k".to_owned(), value: "v".to_owned() };
        assert_eq!(order("revoke-by-stamped-headers k=v").revocations(), [stamp]);
        assert_eq!(order("revoke a").revocations(), [Revocation::Task { id: "a".to_owned() }]);
        assert!(order("rate-limit t 1/s").revocations().is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in ["revoke", "rate-limit t fast", "time-limit t", "revoke-by-stamped-headers k", "nonsense"] {
            assert!(Line::try_parse_from(["control"].into_iter().chain(line.split(' '))).is_err(), "{line}");
        }
    }
}
