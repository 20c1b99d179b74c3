//! Running one admitted request: what its guest is given, and what is heard from it.

use std::time::Duration;

use rtask_protocol::{Record, Request, State, json};
use rtask_registry::manifest::TaskOptions;
use rtask_sandbox::{Event, Exit, Job, Level, Limit, Limits, Notice};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    Options,
    catalogue::Route,
    options::{LONGEST_RUN, RUNNER_GRACE, STATE_STORE_TIME},
    worker::Worker,
};

/// A state's name is cut off here (bytes).
const MAX_STATE_NAME: usize = 64;

/// Run `request` to its end, with its states stored and its lines logged as they come.
pub(crate) async fn run(worker: &Worker, request: &Request, route: &Route) -> Exit {
    if route.spec.options.track_started.unwrap_or(worker.options.track_started) {
        store(worker, Record::started(&request.id, std::process::id(), &worker.options.name)).await;
    }
    let job = job(&worker.options, request, route);
    let limit = job.limits.time;
    let mut deadline = Instant::now() + limit + RUNNER_GRACE;
    let mut run = route.component.run(job);
    let mut states = States::Stored;
    loop {
        // The runner enforces the limit. One that does not is broken, and takes its other tasks with it.
        let Ok(event) = tokio::time::timeout_at(deadline, run.next()).await else {
            tracing::error!(
                id = request.id,
                task = request.task,
                "a runner did not enforce a time limit; it is killed"
            );
            route.runner.kill();
            return Exit::Exceeded(Limit::Time(limit));
        };
        match event {
            Event::Notice(notice) => {
                let began = Instant::now();
                hear(worker, request, notice, &mut states).await;
                // What the store takes is not the runner's fault.
                deadline += began.elapsed();
            }
            Event::Exit(exit) => return exit,
        }
    }
}

/// Whether it makes sense to store another state of a run.
#[derive(PartialEq, Eq)]
enum States {
    Stored,
    /// One was not stored in time; a task that sets a thousand must not wait a thousand times.
    GivenUp,
}

async fn hear(worker: &Worker, request: &Request, notice: Notice, states: &mut States) {
    let (id, task) = (&request.id, &request.task);
    match notice {
        Notice::Log { level, message } => {
            let message = message.escape_debug();
            match level {
                Level::Debug => tracing::debug!(id, task, "{message}"),
                Level::Info => tracing::info!(id, task, "{message}"),
                Level::Warning => tracing::warn!(id, task, "{message}"),
                Level::Critical => tracing::error!(id, task, "{message}"),
            }
        }
        Notice::State { .. } if *states == States::GivenUp => {}
        Notice::State { state, meta } => match custom_state(&request.id, &state, meta) {
            Some(record) => *states = store(worker, record).await,
            None => tracing::warn!(id, task, "a state was not stored: its name is Celery's own, or its meta no JSON"),
        },
    }
}

/// None for a state that only the worker may set: a client would take it for the end.
fn custom_state(id: &str, state: &str, meta: String) -> Option<Record> {
    let own = serde_json::from_value(state.into()).is_ok_and(|state| !matches!(state, State::Custom(_)));
    if own || state.is_empty() || state.len() > MAX_STATE_NAME {
        return None;
    }
    Some(Record::custom(id, state.to_owned(), json::parse(meta).ok()?))
}

/// States on the way are worth one short try; only the final one is a promise.
async fn store(worker: &Worker, record: Record) -> States {
    match tokio::time::timeout(STATE_STORE_TIME, worker.ports.backend.store(&record)).await {
        Ok(Ok(())) => return States::Stored,
        Ok(Err(error)) => tracing::warn!(id = record.task_id, %error, "a state could not be stored"),
        Err(_) => tracing::warn!(id = record.task_id, "a state could not be stored in time"),
    }
    States::GivenUp
}

fn job(options: &Options, request: &Request, route: &Route) -> Job {
    let body = &request.body;
    let (args, kwargs) = (body.args.get(), body.kwargs.get());
    let mut payload = String::with_capacity(args.len() + kwargs.len() + 20);
    for part in [r#"{"args":"#, args, r#","kwargs":"#, kwargs, "}"] {
        payload.push_str(part);
    }
    Job {
        task: request.task.clone(),
        payload,
        request: context(options, request, route),
        limits: limits(options, request.time_limit.hard, &route.spec.options),
    }
}

/// The narrower of what the message and the task ask for, and the worker's own where neither does.
fn limits(options: &Options, message_time: Option<f64>, task: &TaskOptions) -> Limits {
    let named = [message_time, task.time_limit].into_iter().flatten().reduce(f64::min);
    let named = named.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST_RUN));
    let memory = task.memory.unwrap_or(options.limits.memory).min(options.max_memory);
    let time = named.map_or(options.limits.time, |named| named.min(options.max_time));
    Limits { time, memory, ..options.limits.clone() }
}

/// What `context.request` answers; see sdk/wit/task.wit.
fn context(options: &Options, request: &Request, route: &Route) -> String {
    #[derive(Serialize)]
    struct Context<'a> {
        id: &'a str,
        task: &'a str,
        retries: u32,
        root_id: &'a str,
        parent_id: Option<&'a str>,
        group: Option<&'a str>,
        eta: Option<String>,
        expires: Option<String>,
        timelimit: [Option<f64>; 2],
        priority: u8,
        hostname: &'a str,
        headers: &'a rtask_protocol::Headers,
        module: &'a str,
        version: u32,
    }
    let context = Context {
        id: &request.id,
        task: &request.task,
        retries: request.retries,
        root_id: &request.root_id,
        parent_id: request.parent_id.as_deref(),
        group: request.group.as_deref(),
        eta: request.eta.map(rtask_protocol::time::format),
        expires: request.expires.map(rtask_protocol::time::format),
        timelimit: [request.time_limit.hard, request.time_limit.soft],
        priority: request.priority,
        hostname: &options.name,
        headers: &request.custom_headers,
        module: &route.version.module,
        version: route.version.number,
    };
    serde_json::to_string(&context).expect("plain values always serialise")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_named_time_limit_wins() {
        let seconds = Duration::from_secs;
        let options = Options::default();
        let rows = [
            (None, None, seconds(300)),
            (Some(1.0), None, seconds(1)),
            (None, Some(2.0), seconds(2)),
            (Some(9.0), Some(2.0), seconds(2)),
            (Some(900.0), None, seconds(900)),
            (Some(f64::MAX), None, seconds(3600)),
        ];
        for (message, task, expected) in rows {
            let task = TaskOptions { time_limit: task, ..TaskOptions::default() };
            assert_eq!(limits(&options, message, &task).time, expected);
        }
    }

    #[test]
    fn a_task_may_ask_for_no_more_memory_than_the_worker_gives() {
        let options = Options { max_memory: 100 << 20, ..Options::default() };
        let rows = [(None, 64 << 20), (Some(1 << 20), 1 << 20), (Some(1 << 40), 100 << 20)];
        for (memory, expected) in rows {
            let task = TaskOptions { memory, ..TaskOptions::default() };
            assert_eq!(limits(&options, None, &task).memory, expected);
        }
    }

    #[test]
    fn a_task_cannot_pretend_to_have_ended() {
        for state in ["SUCCESS", "FAILURE", "REVOKED", "RETRY", "", &"X".repeat(65)] {
            assert!(custom_state("t", state, "1".into()).is_none(), "{state}");
        }
        assert!(custom_state("t", "PROGRESS", "{not json".into()).is_none());
        assert_eq!(custom_state("t", "PROGRESS", r#"{"done":1}"#.into()).unwrap().status.name(), "PROGRESS");
    }
}
