//! One instance, from its first page to its last: made for one call, and gone with it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use wasmtime::{Store, Trap, UpdateDeadline, WasmBacktrace};
use wasmtime_wasi::{WasiCtxView, WasiView};

use super::{
    context::{Failure, TaskPre},
    limiter::Limiter,
    output::Notices,
    wasi::Wasi,
};
use crate::{Exception, Exit, Job, Limit, Limits, Notice, engine};

/// Bytes that one call may hand over, beside a result.
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
        Self { limits, target: Target::Describe }
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
    pub(super) deadline: Instant,
    pub(super) notices: Arc<Notices>,
    pub(super) exception_limit: usize,
    pub(super) panicked: Option<Exception>,
    /// A limit that a host function found exceeded.
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

/// Run `call` in a fresh instance of `task`, within its limits; the instance is gone when this returns.
pub(super) async fn run(task: &TaskPre<State>, call: Call, notify: impl Fn(Notice) + Send + Sync + 'static) -> Exit {
    let Call { limits, mut target } = call;
    let deadline = Instant::now() + limits.time;
    let request = match &mut target {
        Target::Run { request, .. } => std::mem::take(request),
        Target::Describe => "{}".to_owned(),
    };
    let mut store = store(task, request, deadline, &limits, notify);
    let invocation = invoke(&mut store, task, &target);
    // The epoch ends a guest that computes, this one that waits in a host call.
    match tokio::time::timeout_at(deadline.into(), invocation).await {
        Err(_) => Exit::Exceeded(Limit::Time(limits.time)),
        Ok(Err(error)) => explain(&error, store.into_data(), limits.time),
        // A call that came back too late is late, even if nothing could stop it before.
        Ok(Ok(_)) if Instant::now() > deadline => Exit::Exceeded(Limit::Time(limits.time)),
        Ok(Ok(outcome)) => judge(outcome, store.data(), &limits),
    }
}

fn store(
    task: &TaskPre<State>,
    request: String,
    deadline: Instant,
    limits: &Limits,
    notify: impl Fn(Notice) + Send + Sync + 'static,
) -> Store<State> {
    let state = State {
        request,
        deadline,
        notices: Notices::new(limits, notify),
        exception_limit: usize::try_from(limits.exception).unwrap_or(usize::MAX),
        panicked: None,
        exceeded: None,
        limiter: Limiter::new(limits),
        wasi: None,
    };
    let mut store = Store::new(task.engine(), state);
    store.limiter(|state| &mut state.limiter);
    // What a guest may hand over in one call: a result, or what a host function takes.
    store.set_hostcall_fuel(usize::try_from(limits.result).unwrap_or(usize::MAX).saturating_add(HOST_CALL_FUEL));
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(move |_| {
        if Instant::now() >= deadline {
            return Ok(UpdateDeadline::Interrupt);
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
        Err(Failure::Reject(rejection)) => {
            let mut reason = rejection.reason;
            reason.truncate(reason.floor_char_boundary(MAX_REASON));
            Exit::Rejected { reason, requeue: rejection.requeue }
        }
        Err(Failure::Ignore) => Exit::Ignored,
    }
}

/// What ended a call that did not return.
fn explain(error: &wasmtime::Error, state: State, time: Duration) -> Exit {
    if let Some(limit) = state.limiter.exceeded.or(state.exceeded) {
        return Exit::Exceeded(limit);
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => return Exit::Exceeded(Limit::Time(time)),
        Some(Trap::StackOverflow) => return Exit::Exceeded(Limit::Stack),
        _ => {}
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
