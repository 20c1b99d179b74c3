//! Inside a runner process: receive jobs, give each an instance of its own, report how it ended.
//!
//! Descriptor 0 is the jobs socket, descriptor 1 the modules socket. The process ends when the supervisor closes
//! the first. Read [`serve`] first, then [`instance`].

mod context;
mod conversation;
mod deadlines;
mod instance;
mod limiter;
mod modules;
mod output;
mod ticker;
mod wasi;

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
    process::ExitCode,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tokio::{
    net::{UnixStream, unix::OwnedWriteHalf},
    sync::{Semaphore, mpsc},
};

use crate::{
    Exit, SandboxOptions, engine,
    frames::{self, Batch, Order, Report},
};
use conversation::Conversations;
use instance::Call;
use modules::Modules;
use ticker::Ticker;

/// What a runner is told at its start.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    threads: usize,
    slots: u32,
    max_memory: u64,
}

impl Settings {
    pub(crate) fn new(options: &SandboxOptions) -> Self {
        let slots = u32::try_from(options.slots.max(1)).unwrap_or(u32::MAX);
        Self { threads: options.threads.max(1), slots, max_memory: options.max_memory }
    }
}

/// The runner's `main`.
pub(crate) fn main(settings: Settings) -> ExitCode {
    match start(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed to serve: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(settings: &Settings) -> wasmtime::Result<()> {
    let jobs = StdUnixStream::from(take_descriptor(std::io::stdin())?);
    let sockets = take_descriptor(std::io::stdout())?;
    jobs.set_nonblocking(true)?;
    let engine = engine::for_running(settings.slots, settings.max_memory)?;
    let modules = Modules::listen(engine.clone(), sockets)?;
    let ticker = Ticker::start(engine)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(settings.threads)
        .enable_io()
        .enable_time()
        .build()?;
    let served = runtime.block_on(serve(jobs, modules, ticker, settings.slots));
    // Guests that still run have nobody left to report to.
    runtime.shutdown_background();
    served
}

/// A copy of a standard descriptor that is not inherited further. The original stays open, as the place holder
/// that keeps the number from being given to something else.
fn take_descriptor(standard: impl AsFd) -> std::io::Result<OwnedFd> {
    standard.as_fd().try_clone_to_owned()
}

/// Until the supervisor closes its end.
async fn serve(jobs: StdUnixStream, modules: Arc<Modules>, ticker: Arc<Ticker>, slots: u32) -> wasmtime::Result<()> {
    let (mut from, to) = UnixStream::from_std(jobs)?.into_split();
    let (reports, queue) = mpsc::unbounded_channel();
    tokio::spawn(write_reports(queue, to));
    // The receiver is the task above, which lives as long as its socket.
    let _ = reports.send(Report::Ready);
    let slots = Arc::new(Semaphore::new(slots as usize));
    let server = Server { modules, ticker, slots, reports, conversations: Arc::default() };
    let mut buffer = Vec::new();
    while frames::receive(&mut from, &mut buffer, |order| server.take(order)).await? {}
    Ok(())
}

/// What orders work on.
struct Server {
    modules: Arc<Modules>,
    ticker: Arc<Ticker>,
    slots: Arc<Semaphore>,
    reports: mpsc::UnboundedSender<Report>,
    conversations: Arc<Conversations>,
}

impl Server {
    fn take(&self, order: Order) {
        match order {
            Order::Run { run, component, job } => self.start(run, component, job.into()),
            Order::Describe { run, component, limits } => self.start(run, component, Call::describe(limits)),
            Order::Cancel { run } => self.conversations.cancel(run),
            Order::Answer { run, answer } => self.conversations.answer(run, answer),
            Order::Unload { component } => self.modules.forget(component),
        }
    }

    fn start(&self, run: u64, component: u32, call: Call) {
        let conversations = self.conversations.clone();
        let conversation = conversations.begin(run, &self.reports);
        let Some(task) = self.modules.get(component) else {
            let exit = Exit::Lost(format!("component {component} is not loaded"));
            conversations.end(&conversation, exit);
            return;
        };
        let (ticker, slots) = (self.ticker.clone(), self.slots.clone());
        tokio::spawn(async move {
            let running = async {
                // The semaphore is never closed, so a permit always comes.
                let _slot = slots.acquire().await;
                let _ticking = ticker.hold();
                instance::run(&task, call, conversation.clone()).await
            };
            // Dropping the rest drops the instance, wherever it is; a guest that computes yields at each tick.
            let exit = tokio::select! {
                biased;
                () = conversation.cancelled() => Exit::Cancelled,
                exit = running => exit,
            };
            conversations.end(&conversation, exit);
        });
    }
}

/// Whatever has queued up goes out as one frame.
async fn write_reports(mut reports: mpsc::UnboundedReceiver<Report>, mut to: OwnedWriteHalf) {
    let mut batch = Batch::new();
    while let Some(report) = reports.recv().await {
        batch.push(&report);
        while !batch.is_full()
            && let Ok(report) = reports.try_recv()
        {
            batch.push(&report);
        }
        if batch.send(&mut to).await.is_err() {
            return;
        }
    }
}
