//! Running one admitted request: what its guest is given, and what is heard from it.

use std::pin::Pin;

use rtask_broker::Routing;
use rtask_protocol::{Record, Request, State, json, record::Child};
use rtask_sandbox::{Answer, Ask, Event, Exit, Job, Level, Limit, Notice, Question};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    Options,
    active::Entry,
    catalogue::Route,
    options::{RUNNER_GRACE, STATE_STORE_TIME},
    rules::Rules,
    send,
    worker::Worker,
};

/// A state's name is cut off here (bytes).
const MAX_STATE_NAME: usize = 64;

/// How the message of a run came here.
pub(crate) struct Origin {
    pub routing: Routing,
    pub redelivered: bool,
}

/// What a run leaves behind.
pub(crate) struct Ended {
    pub exit: Exit,
    /// The tasks that it sent.
    pub children: Vec<Child>,
}

/// Run `request` to its end, with its states stored, its tasks sent and its lines logged as they come.
pub(crate) async fn run(
    worker: &Worker,
    entry: &Entry<'_>,
    request: &Request,
    route: &Route,
    rules: &Rules,
    origin: &Origin,
) -> Ended {
    if rules.track_started && !rules.ignore_result {
        let started = Record::started(&request.id, std::process::id(), &worker.options.name);
        store(worker, request, started).await;
    }
    let job = job(&worker.options, request, route, rules, origin);
    let limit = job.limits.time;
    let mut deadline = Instant::now() + limit + RUNNER_GRACE;
    let mut run = route.component.run(job);
    let mut ear =
        Ear { worker, request, states: States::Stored, children: Vec::new(), sending: None, cancelled: false };
    loop {
        // The runner enforces the limit, also on a guest that waits for a task to be sent. One that does not is broken,
        // and takes its other tasks with it.
        let event = tokio::select! {
            event = tokio::time::timeout_at(deadline, run.next()) => event,
            () = entry.terminated.cancelled(), if !ear.cancelled => {
                ear.cancelled = true;
                run.cancel();
                continue;
            }
            () = ear.sent() => continue,
        };
        let Ok(event) = event else {
            let (id, task) = (&request.id, &request.task);
            tracing::error!(id, task, "a runner did not enforce a time limit; it is killed");
            route.runner.kill();
            return ear.ended(Exit::Exceeded(Limit::Time(limit)));
        };
        match event {
            Event::Exit(exit) => return ear.ended(exit),
            Event::Notice(notice) => {
                let began = Instant::now();
                ear.hear(notice).await;
                // What the store takes is not the runner's fault.
                deadline += began.elapsed();
            }
            Event::Ask(Ask::Send(signature), question) => ear.send(signature, question),
        }
    }
}

/// What listens to a run.
struct Ear<'a> {
    worker: &'a Worker,
    request: &'a Request,
    states: States,
    children: Vec<Child>,
    /// The guest waits for one at a time.
    sending: Option<Sending<'a>>,
    cancelled: bool,
}

/// A task on its way to the broker, and the question that its id answers.
struct Sending<'a> {
    answer: Pin<Box<dyn Future<Output = Answer> + Send + 'a>>,
    question: Question,
}

/// Whether it makes sense to store another state of a run.
#[derive(PartialEq, Eq)]
enum States {
    Stored,
    /// One was not stored in time; a task that sets a thousand must not wait a thousand times.
    GivenUp,
}

impl<'a> Ear<'a> {
    async fn hear(&mut self, notice: Notice) {
        let (id, task) = (&self.request.id, &self.request.task);
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
            Notice::State { .. } if self.states == States::GivenUp => {}
            Notice::State { state, meta } => match custom_state(id, &state, meta) {
                Some(record) => self.states = store(self.worker, self.request, record).await,
                None => {
                    tracing::warn!(id, task, "a state was not stored: its name is Celery's own, or its meta no JSON")
                }
            },
        }
    }

    fn send(&mut self, signature: String, question: Question) {
        let (worker, request): (&'a Worker, &'a Request) = (self.worker, self.request);
        let answer = Box::pin(async move { send::send(worker, request, &signature).await });
        self.sending = Some(Sending { answer, question });
    }

    /// Wait for what is being sent, for ever if that is nothing, and tell the guest. May be dropped while it waits, and
    /// loses nothing.
    async fn sent(&mut self) {
        let Some(sending) = &mut self.sending else {
            return std::future::pending().await;
        };
        let answer = sending.answer.as_mut().await;
        self.children.extend(answer.iter().cloned().map(Child::Task));
        if let Some(Sending { question, .. }) = self.sending.take() {
            question.answer(answer);
        }
    }

    fn ended(self, exit: Exit) -> Ended {
        Ended { exit, children: self.children }
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
async fn store(worker: &Worker, request: &Request, record: Record) -> States {
    let record = record.of(request);
    let store = worker.ports.backend.store(&record, request.reply_to.as_deref());
    match tokio::time::timeout(STATE_STORE_TIME, store).await {
        Ok(Ok(())) => return States::Stored,
        Ok(Err(error)) => tracing::warn!(id = record.task_id, %error, "a state could not be stored"),
        Err(_) => tracing::warn!(id = record.task_id, "a state could not be stored in time"),
    }
    States::GivenUp
}

fn job(options: &Options, request: &Request, route: &Route, rules: &Rules, origin: &Origin) -> Job {
    let body = &request.body;
    let (args, kwargs) = (body.args.get(), body.kwargs.get());
    let mut payload = String::with_capacity(args.len() + kwargs.len() + 20);
    for part in [r#"{"args":"#, args, r#","kwargs":"#, kwargs, "}"] {
        payload.push_str(part);
    }
    Job {
        task: request.task.clone(),
        payload,
        request: context(options, request, route, rules, origin),
        limits: rules.limits.clone(),
    }
}

/// What `context.request` answers; see sdk/wit/task.wit.
fn context(options: &Options, request: &Request, route: &Route, rules: &Rules, origin: &Origin) -> String {
    #[derive(Serialize)]
    struct Context<'a> {
        id: &'a str,
        task: &'a str,
        retries: u32,
        max_retries: Option<u32>,
        root_id: &'a str,
        parent_id: Option<&'a str>,
        group: Option<&'a str>,
        group_index: Option<i64>,
        eta: Option<String>,
        expires: Option<String>,
        timelimit: [Option<f64>; 2],
        priority: u8,
        correlation_id: Option<&'a str>,
        reply_to: Option<&'a str>,
        origin: Option<&'a str>,
        shadow: Option<&'a str>,
        stamped_headers: &'a [String],
        stamps: &'a rtask_protocol::Headers,
        replaced_task_nesting: u32,
        ignore_result: bool,
        delivery_info: DeliveryInfo<'a>,
        hostname: &'a str,
        headers: &'a rtask_protocol::Headers,
        module: &'a str,
        version: u32,
    }
    #[derive(Serialize)]
    struct DeliveryInfo<'a> {
        exchange: &'a str,
        routing_key: &'a str,
        priority: u8,
        redelivered: bool,
    }
    let context = Context {
        id: &request.id,
        task: &request.task,
        retries: request.retries,
        max_retries: rules.max_retries.into(),
        root_id: &request.root_id,
        parent_id: request.parent_id.as_deref(),
        group: request.group.as_deref(),
        group_index: request.group_index,
        eta: request.eta.map(rtask_protocol::time::format),
        expires: request.expires.map(rtask_protocol::time::format),
        timelimit: [Some(rules.limits.time.as_secs_f64()), rules.limits.soft_time.map(|soft| soft.as_secs_f64())],
        priority: request.priority,
        correlation_id: request.correlation_id.as_deref(),
        reply_to: request.reply_to.as_deref(),
        origin: request.origin.as_deref(),
        shadow: request.shadow.as_deref(),
        stamped_headers: &request.stamped_headers,
        stamps: &request.stamps,
        replaced_task_nesting: request.replaced_task_nesting,
        ignore_result: rules.ignore_result,
        delivery_info: DeliveryInfo {
            exchange: &origin.routing.exchange,
            routing_key: &origin.routing.routing_key,
            priority: request.priority,
            redelivered: origin.redelivered,
        },
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
    fn a_task_cannot_pretend_to_have_ended() {
        for state in ["SUCCESS", "FAILURE", "REVOKED", "RETRY", "", &"X".repeat(65)] {
            assert!(custom_state("t", state, "1".into()).is_none(), "{state}");
        }
        assert!(custom_state("t", "PROGRESS", "{not json".into()).is_none());
        assert_eq!(custom_state("t", "PROGRESS", r#"{"done":1}"#.into()).unwrap().status.name(), "PROGRESS");
    }
}
