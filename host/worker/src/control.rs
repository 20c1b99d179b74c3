//! Remote control: what a worker does when a broadcast asks it (`celery/worker/control.py`).
//!
//! Replies are Celery's, Python's spelling included, since programs compare them.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use rtask_broker::{BrokerError, Consumer, Publication, Revocation, Target};
use rtask_protocol::{Record, State, control::Command, rate::Rate, repr, request::MAX_ID};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{catalogue::Destination, revoked::is_stamped, rules::SetTimeLimits, worker::Worker};

/// One command names no more tasks or stamps.
const MAX_REVOCATIONS: usize = 10_000;
/// A stamp and its header have no more bytes each.
const MAX_STAMP: usize = 1024;

/// What remote control has set of tasks' time limits, by task name.
#[derive(Debug, Default)]
pub(crate) struct TimeLimits(Mutex<HashMap<String, SetTimeLimits>>);

impl TimeLimits {
    pub(crate) fn of(&self, task: &str) -> Option<SetTimeLimits> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(task).copied()
    }

    fn set(&self, task: String, limits: SetTimeLimits) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(task, limits);
    }
}

/// Do what is asked, one command after the other, for as long as the mailbox lives.
pub(crate) async fn serve(worker: Arc<Worker>, mut mailbox: Consumer) {
    while let Some(delivery) = mailbox.next().await {
        let command = match Command::decode(&delivery.message, &worker.options.accept) {
            Ok(command) => command,
            Err(error) => {
                tracing::warn!(%error, "a broadcast of remote control cannot be read");
                continue;
            }
        };
        if command.is_for(&worker.options.name) {
            obey(&worker, &command).await;
        }
    }
    tracing::error!("the broker no longer lets this worker listen to remote control");
}

async fn obey(worker: &Worker, command: &Command) {
    tracing::debug!(method = command.method, "remote control");
    let answer = match carry_out(worker, &command.method, &command.arguments).await {
        Ok(done) => json!({ "ok": done }),
        Err(reason) => json!({ "error": reason }),
    };
    let Some(reply_to) = &command.reply_to else { return };
    let target = Target::Reply { exchange: reply_to.exchange.clone(), routing_key: reply_to.routing_key.clone() };
    let message = command.reply(&worker.options.name, &answer, worker.options.signer.as_deref());
    if let Err(error) = worker.ports.broker.publish(Publication { target, message }).await {
        tracing::warn!(%error, method = command.method, "remote control could not be answered");
    }
}

type Answer = Result<String, String>;

async fn carry_out(worker: &Worker, method: &str, arguments: &Map<String, Value>) -> Answer {
    match method {
        "ping" => Ok("pong".to_owned()),
        "revoke" => revoke(worker, read(method, arguments)?).await,
        "terminate" => revoke(worker, Revoke { terminate: true, ..read(method, arguments)? }).await,
        "revoke_by_stamped_headers" => revoke_by_stamps(worker, read(method, arguments)?).await,
        "terminate_by_stamped_headers" => {
            revoke_by_stamps(worker, RevokeByStamps { terminate: true, ..read(method, arguments)? }).await
        }
        "rate_limit" => rate_limit(worker, read(method, arguments)?),
        "time_limit" => time_limit(worker, read(method, arguments)?),
        unknown => Err(format!("KeyError({})", repr::value(&unknown.into()))),
    }
}

fn read<T: for<'de> Deserialize<'de>>(method: &str, arguments: &Map<String, Value>) -> Result<T, String> {
    serde_json::from_value(Value::Object(arguments.clone())).map_err(|error| {
        let text = format!("{method}() {error}");
        format!("TypeError({})", repr::value(&text.into()))
    })
}

/// What Celery's `maybe_list` takes for a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    Many(Vec<Value>),
    One(Value),
}

impl OneOrMany {
    fn texts(self) -> Vec<String> {
        let values = match self {
            Self::Many(values) => values,
            Self::One(Value::Null) => Vec::new(),
            Self::One(value) => vec![value],
        };
        values.into_iter().map(text).collect()
    }
}

/// Stamps and ids are compared as texts, whatever they were.
fn text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

#[derive(Deserialize)]
struct Revoke {
    task_id: OneOrMany,
    #[serde(default)]
    terminate: bool,
}

async fn revoke(worker: &Worker, Revoke { task_id, terminate }: Revoke) -> Answer {
    let mut ids = task_id.texts();
    ids.sort_unstable();
    ids.dedup();
    remember(worker, ids.iter().map(|id| Revocation::Task { id: id.clone() }).collect()).await?;
    for id in ids.iter().filter(|id| !worker.active.is_running(id)) {
        if let Err(error) = mark_as_revoked(worker, id).await {
            // The others would wait for the same store, one after the other.
            tracing::warn!(id, %error, "revoked tasks could not be marked as such; they are when their messages come");
            break;
        }
    }
    let named: HashSet<&String> = ids.iter().collect();
    if terminate {
        let running = worker.active.ids(|request| named.contains(&request.id));
        return match end(worker, &running) {
            0 => Ok("terminate: tasks unknown".to_owned()),
            _ => Ok(format!("terminate: {}", running.join(", "))),
        };
    }
    tracing::info!(ids = ids.join(", "), "tasks are revoked");
    Ok(format!("tasks {} flagged as revoked", set(&ids)))
}

/// Headers and their values, or a list of texts `header=value`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Stamps {
    Map(Map<String, Value>),
    List(Vec<String>),
}

#[derive(Deserialize)]
struct RevokeByStamps {
    headers: Stamps,
    #[serde(default)]
    terminate: bool,
}

async fn revoke_by_stamps(worker: &Worker, RevokeByStamps { headers, terminate }: RevokeByStamps) -> Answer {
    let headers: Map<String, Value> = match headers {
        Stamps::Map(map) => map,
        Stamps::List(pairs) => {
            let pairs = pairs.iter().filter_map(|pair| pair.split_once('='));
            pairs.map(|(header, value)| (header.to_owned(), value.into())).collect()
        }
    };
    let told = repr::value(&Value::Object(headers.clone()));
    let stamps: HashMap<String, HashSet<String>> = headers
        .into_iter()
        .map(|(header, values)| {
            let values = serde_json::from_value(values).map(OneOrMany::texts).unwrap_or_default();
            (header, values.into_iter().collect())
        })
        .collect();
    let stamp = |header: &String, value: &String| Revocation::Stamp { header: header.clone(), value: value.clone() };
    let revocations = stamps.iter().flat_map(|(header, values)| values.iter().map(move |value| stamp(header, value)));
    remember(worker, revocations.collect()).await?;
    if !terminate {
        return Ok(format!("headers {told} flagged as revoked, but not terminated"));
    }
    let running =
        worker.active.ids(|request| stamps.iter().any(|(header, values)| is_stamped(request, header, values)));
    match end(worker, &running) {
        0 => Ok(format!("headers {told} were not terminated")),
        _ => Ok(format!("headers {told} revoked")),
    }
}

/// In the ledger first: what is answered as revoked stays revoked.
async fn remember(worker: &Worker, revocations: Vec<Revocation>) -> Result<(), String> {
    check(&revocations).map_err(|text| format!("ValueError({})", repr::value(&text.into())))?;
    let kept = worker.ports.ledger.revoke(&revocations).await;
    // Heeded here all the same.
    worker.revoked.extend(revocations);
    kept.map_err(|error| {
        tracing::error!(%error, "revocations could not be kept");
        // What the store says may name servers, which are no business of whoever asks.
        "OperationalError('the revocations could not be kept')".to_owned()
    })
}

/// # Errors
/// For more than anybody means to revoke at once, and for what no task can be called or stamped.
fn check(revocations: &[Revocation]) -> Result<(), String> {
    if revocations.len() > MAX_REVOCATIONS {
        return Err(format!("one command revokes no more than {MAX_REVOCATIONS}"));
    }
    let is_too_long = |revocation: &Revocation| match revocation {
        Revocation::Task { id } => id.len() > MAX_ID,
        Revocation::Stamp { header, value } => header.len().max(value.len()) > MAX_STAMP,
    };
    match revocations.iter().any(is_too_long) {
        true => Err(format!("ids have at most {MAX_ID} bytes, stamps and their headers {MAX_STAMP}")),
        false => Ok(()),
    }
}

/// Tell who waits at once, unless the task has a result, or runs elsewhere (`_revoke` of Celery 5.7).
async fn mark_as_revoked(worker: &Worker, id: &str) -> Result<(), BrokerError> {
    let backend = &worker.ports.backend;
    let waits = match backend.get(id).await?.map(|record| record.status) {
        None | Some(State::Pending | State::Received | State::Retry | State::Rejected) => true,
        Some(State::Started | State::Success | State::Failure | State::Revoked | State::Ignored | State::Custom(_)) => {
            false
        }
    };
    match waits {
        true => backend.store(&Record::revoked(id, "revoked", Timestamp::now()), None).await,
        false => Ok(()),
    }
}

/// The same for a task that has just stopped to run, to be tried again.
pub(crate) async fn mark_revoked_meanwhile(worker: &Worker, id: &str) {
    if let Err(error) = mark_as_revoked(worker, id).await {
        tracing::warn!(id, %error, "a revoked task could not be marked as such; it is when its message comes");
    }
}

fn end(worker: &Worker, ids: &[String]) -> usize {
    for id in ids {
        tracing::info!(id, "terminating");
        worker.active.terminate(id);
    }
    ids.len()
}

/// As Python writes a set of texts.
fn set(texts: &[String]) -> String {
    if texts.is_empty() {
        return "set()".to_owned();
    }
    let quoted: Vec<_> = texts.iter().map(|text| repr::value(&text.as_str().into())).collect();
    format!("{{{}}}", quoted.join(", "))
}

#[derive(Deserialize)]
struct RateLimit {
    task_name: String,
    rate_limit: Value,
}

fn rate_limit(worker: &Worker, RateLimit { task_name, rate_limit }: RateLimit) -> Answer {
    let rate = Rate::from_json(&rate_limit).map_err(|error| format!("Invalid rate limit string: {error}"))?;
    known(worker, &task_name)?;
    worker.rates.set(&task_name, rate);
    tracing::info!(task = task_name, %rate, "new rate limit");
    Ok(match rate.every() {
        None => "rate limit disabled successfully".to_owned(),
        Some(_) => "new rate limit set successfully".to_owned(),
    })
}

#[derive(Deserialize)]
struct TimeLimit {
    task_name: String,
    #[serde(default)]
    hard: Option<f64>,
    #[serde(default)]
    soft: Option<f64>,
}

fn time_limit(worker: &Worker, TimeLimit { task_name, hard, soft }: TimeLimit) -> Answer {
    known(worker, &task_name)?;
    let positive = |limit: Option<f64>| limit.filter(|seconds| *seconds > 0.0);
    let limits = SetTimeLimits { hard: positive(hard), soft: positive(soft) };
    tracing::info!(task = task_name, ?limits, "new time limits");
    worker.time_limits.set(task_name, limits);
    Ok("time limits set successfully".to_owned())
}

fn known(worker: &Worker, task: &str) -> Result<(), String> {
    match worker.catalogue.clone().find(task) {
        Destination::Unknown => Err("unknown task".to_owned()),
        Destination::Ready(_) | Destination::Unavailable | Destination::Failed(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_one_or_many_and_sets_look_like_pythons() {
        let texts = |value: Value| serde_json::from_value::<OneOrMany>(value).unwrap().texts();
        assert_eq!(texts(json!("id-1")), ["id-1"]);
        assert_eq!(texts(json!(["id-1", 2])), ["id-1", "2"]);
        assert!(texts(json!(null)).is_empty());
        assert_eq!(set(&texts(json!(["id-1", "it's"]))), r#"{'id-1', "it's"}"#);
        assert_eq!(set(&[]), "set()");
    }

    #[test]
    fn no_command_revokes_what_no_task_can_bear() {
        let task = |id: String| Revocation::Task { id };
        let stamp = |value: String| Revocation::Stamp { header: "h".to_owned(), value };
        let rows = [
            (vec![task("i".repeat(MAX_ID)), stamp("v".repeat(MAX_STAMP))], true),
            (vec![task("i".repeat(MAX_ID + 1))], false),
            (vec![stamp("v".repeat(MAX_STAMP + 1))], false),
            (vec![task(String::new()); MAX_REVOCATIONS], true),
            (vec![task(String::new()); MAX_REVOCATIONS + 1], false),
        ];
        for (revocations, expected) in rows {
            assert_eq!(check(&revocations).is_ok(), expected, "{}", revocations.len());
        }
    }

    #[test]
    fn arguments_that_do_not_fit_are_a_type_error() {
        let bogus = json!({ "bogus": 1 });
        let error = read::<RateLimit>("rate_limit", bogus.as_object().unwrap()).err().unwrap();
        assert!(error.starts_with("TypeError(") && error.contains("task_name"), "{error}");
    }
}
