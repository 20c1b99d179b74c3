//! One instance, from its first page to its last: made for one call, and gone with it.

use std::{sync::Arc, time::Instant};

use wasmtime::{Store, Trap, UpdateDeadline, WasmBacktrace};
use wasmtime_wasi::{WasiCtxView, WasiView};

use super::{
    context::{Failure, Sends, TaskPre},
    conversation::Conversation,
    deadlines::Deadlines,
    limiter::Limiter,
    output::Notices,
    wasi::Wasi,
};
use crate::{Exception, Exit, Job, Limit, Limits, engine};

/// Bytes that one call may hand over, beside a result or a signature.
const HOST_CALL_FUEL: usize = 2 << 20;
/// A function's name is cut here (bytes).
const MAX_NAME: usize = 200;
/// A reason is cut here (bytes).
const MAX_REASON: usize = 4 << 10;

/// What a runner is to call.
pub(super) struct Call {
    limits: Limits,
    target: Target,
}

enum Target {
    Run { task: String, payload: String, request: String },
    Describe,
}

impl Call {
    pub(super) fn describe(limits: Limits) -> Self {
        // It has nothing to clean up.
        Self { limits: Limits { soft_time: None, ..limits }, target: Target::Describe }
    }
}

impl From<Job> for Call {
    fn from(job: Job) -> Self {
        let Job { task, payload, request, limits } = job;
        Self { limits, target: Target::Run { task, payload, request } }
    }
}

/// What host functions of one run work on.
pub(super) struct State {
    pub(super) request: String,
    pub(super) deadlines: Arc<Deadlines>,
    pub(super) conversation: Arc<Conversation>,
    pub(super) notices: Arc<Notices>,
    pub(super) sends: Sends,
    pub(super) exception_limit: usize,
    pub(super) panicked: Option<Exception>,
    /// A limit that a host function or the epoch found exceeded.
    pub(super) exceeded: Option<Limit>,
    limiter: Limiter,
    wasi: Option<Box<Wasi>>,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let wasi = self.wasi.get_or_insert_with(|| Box::new(Wasi::new(&self.notices)));
        WasiCtxView { ctx: &mut wasi.ctx, table: &mut wasi.table }
    }
}

/// Run `call` in a fresh instance of `task`, within its limits; the instance is gone when this returns, or is dropped.
pub(super) async fn run(task: &TaskPre<State>, call: Call, conversation: Arc<Conversation>) -> Exit {
    let Call { limits, mut target } = call;
    let deadlines = Deadlines::new(Instant::now(), &limits);
    let request = match &mut target {
        Target::Run { request, .. } => std::mem::take(request),
        Target::Describe => "{}".to_owned(),
    };
    let mut store = store(task, request, deadlines.clone(), &limits, conversation);
    // The epoch ends a guest that computes, the deadlines one that waits in a host call. The guest goes first, so that
    // one whose sleep is over at the same moment as its time hears of the former.
    let outcome = tokio::select! {
        biased;
        outcome = invoke(&mut store, task, &target) => outcome,
        limit = deadlines.pass() => return Exit::Exceeded(limit),
    };
    match (outcome, deadlines.exceeded(Instant::now())) {
        (Err(error), _) => explain(&error, store.into_data()),
        // A call that came back too late is late, even if nothing could stop it before.
        (Ok(_), Some(limit)) => Exit::Exceeded(limit),
        (Ok(outcome), None) => judge(outcome, store.data(), &limits),
    }
}

fn store(
    task: &TaskPre<State>,
    request: String,
    deadlines: Arc<Deadlines>,
    limits: &Limits,
    conversation: Arc<Conversation>,
) -> Store<State> {
    let telling = conversation.clone();
    let state = State {
        request,
        deadlines,
        conversation,
        notices: Notices::new(limits, move |notice| telling.tell(notice)),
        sends: Sends::new(limits),
        exception_limit: usize::try_from(limits.exception).unwrap_or(usize::MAX),
        panicked: None,
        exceeded: None,
        limiter: Limiter::new(limits),
        wasi: None,
    };
    let mut store = Store::new(task.engine(), state);
    store.limiter(|state| &mut state.limiter);
    // What a guest may hand over in one call: a result, or what a host function takes.
    let largest = usize::try_from(limits.result.max(limits.send_size)).unwrap_or(usize::MAX);
    store.set_hostcall_fuel(largest.saturating_add(HOST_CALL_FUEL));
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|mut store| {
        let state = store.data_mut();
        if let Some(limit) = state.deadlines.exceeded(Instant::now()) {
            return Err(state.exceed(limit));
        }
        // Tokio's own yield lets timers and sockets be served before the guest goes on.
        Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
    });
    store
}

async fn invoke(
    store: &mut Store<State>,
    task: &TaskPre<State>,
    target: &Target,
) -> wasmtime::Result<Result<String, Failure>> {
    let instance = task.instantiate_async(&mut *store).await?;
    let handler = instance.rtask_task_handler();
    match target {
        Target::Run { task, payload, .. } => handler.call_run(&mut *store, task, payload).await,
        Target::Describe => handler.call_describe(&mut *store).await.map(Ok),
    }
}

fn judge(outcome: Result<String, Failure>, state: &State, limits: &Limits) -> Exit {
    match outcome {
        Ok(result) if result.len() as u64 > limits.result => Exit::Exceeded(Limit::Result(limits.result)),
        Ok(result) => Exit::Returned(result),
        Err(Failure::Failed(exception)) => Exit::Raised(state.bounded(exception)),
        Err(Failure::Retry(retry)) if retry.options.len() as u64 > limits.result => {
            Exit::Exceeded(Limit::Result(limits.result))
        }
        Err(Failure::Retry(retry)) => {
            Exit::Retry { cause: retry.cause.map(|cause| state.bounded(cause)), options: retry.options }
        }
        Err(Failure::Reject(rejection)) => {
            let mut reason = rejection.reason;
            reason.truncate(reason.floor_char_boundary(MAX_REASON));
            Exit::Rejected { reason, requeue: rejection.requeue }
        }
        Err(Failure::Ignore) => Exit::Ignored,
    }
}

/// What ended a call that did not return.
fn explain(error: &wasmtime::Error, state: State) -> Exit {
    if let Some(limit) = state.limiter.exceeded.or(state.exceeded) {
        return Exit::Exceeded(limit);
    }
    if let Some(Trap::StackOverflow) = error.downcast_ref() {
        return Exit::Exceeded(Limit::Stack);
    }
    let mut reason = error.root_cause().to_string();
    reason.truncate(reason.floor_char_boundary(MAX_REASON));
    Exit::Trapped { reason, backtrace: backtrace(error), panicked: state.panicked }
}

/// The guest's frames, innermost first, as far as the component names its functions.
fn backtrace(error: &wasmtime::Error) -> Option<String> {
    let frames = error.downcast_ref::<WasmBacktrace>()?.frames();
    let name = |frame: &wasmtime::FrameInfo| match frame.func_name() {
        Some(name) if name.len() <= engine::MAX_FUNCTION_NAME => {
            let mut name = format!("{:#}", rustc_demangle::demangle(name));
            name.truncate(name.floor_char_boundary(MAX_NAME));
            name
        }
        Some(_) | None => format!("wasm function {}", frame.func_index()),
    };
    let names: Vec<_> = frames.iter().map(name).collect();
    // What Rust does between a panic and its end is the same each time.
    let panicked = names.iter().rposition(|name| name.starts_with("core::panicking::"));
    let lines = names.iter().skip(panicked.map_or(0, |at| at + 1)).enumerate();
    Some(lines.map(|(number, name)| format!("  {number}: {name}\n")).collect())
}
