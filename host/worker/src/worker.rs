//! The worker's loop: one enum of what can happen, one call for each.

use std::sync::Arc;

use rtask_broker::{BrokerError, Consumer, Delivery, Subscription};
use rtask_registry::RegistryError;
use rtask_sandbox::RunnerError;
use tokio::{
    sync::Semaphore,
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::{Options, Ports, catalogue::Catalogue, keeper::Keeper, task};

/// Why a worker cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("failed to consume from {queues}")]
    Consume { queues: String, source: BrokerError },
    #[error("the broker no longer lets this worker consume from {0}")]
    Consumer(String),
    #[error("failed to read the registry")]
    Registry(#[from] RegistryError),
    #[error("failed to start a sandbox")]
    Sandbox(#[from] RunnerError),
}

/// What every task of a worker shares.
pub(crate) struct Worker {
    pub(crate) options: Options,
    pub(crate) ports: Ports,
    pub(crate) catalogue: Catalogue,
    /// One permit for each task that may run.
    pub(crate) permits: Arc<Semaphore>,
    /// Cancelled when no further task is to start.
    pub(crate) stopping: CancellationToken,
}

/// What can happen to a worker.
#[expect(clippy::large_enum_variant, reason = "there is one at a time, and it is moved on at once")]
enum Event {
    Delivered(Delivery),
    /// The consumer was given up by the broker for good.
    Abandoned,
    /// A task's handling has ended.
    Settled(Result<(), JoinError>),
    Stop,
}

/// Work until `stopping` is cancelled; then take no more, finish what runs, and say goodbye.
///
/// # Errors
/// See [`WorkerError`]. Tasks that were running are finished first.
pub async fn run(options: Options, ports: Ports, stopping: CancellationToken) -> Result<(), WorkerError> {
    let keeper = Keeper::open(&options, &ports).await?;
    let mut consumer = consume(&options, &ports).await?;
    let name = options.name.clone();
    let worker = Arc::new(Worker {
        catalogue: keeper.catalogue(),
        permits: Arc::new(Semaphore::new(options.concurrency)),
        stopping,
        options,
        ports,
    });
    let keeping = tokio::spawn(keeper.run());
    tracing::info!("{name} ready.");

    let mut tasks = JoinSet::new();
    let outcome = receive(&worker, &mut consumer, &mut tasks).await;
    worker.stopping.cancel();
    tracing::info!(running = tasks.len(), "{name} stops; tasks that run are finished first");
    consumer.cancel().await;
    while let Some(settled) = tasks.join_next().await {
        note(settled);
    }
    keeping.abort();
    if let Err(error) = worker.ports.registry.retire(&worker.options.instance()).await {
        tracing::warn!(%error, "the registry could not be told that this worker is gone; it will notice");
    }
    worker.ports.broker.close().await;
    tracing::info!("{name} gone.");
    outcome
}

async fn receive(worker: &Arc<Worker>, consumer: &mut Consumer, tasks: &mut JoinSet<()>) -> Result<(), WorkerError> {
    loop {
        match next(worker, consumer, tasks).await {
            Event::Delivered(delivery) => {
                tasks.spawn(task::walk(worker.clone(), delivery));
            }
            Event::Settled(settled) => note(settled),
            Event::Abandoned => return Err(WorkerError::Consumer(worker.options.queues.join(", "))),
            Event::Stop => return Ok(()),
        }
    }
}

async fn next(worker: &Worker, consumer: &mut Consumer, tasks: &mut JoinSet<()>) -> Event {
    tokio::select! {
        biased;
        () = worker.stopping.cancelled() => Event::Stop,
        Some(settled) = tasks.join_next() => Event::Settled(settled),
        delivery = consumer.next() => delivery.map_or(Event::Abandoned, Event::Delivered),
    }
}

/// Tasks handle their own failures. One that panicked has dropped its delivery, so the message comes back.
fn note(settled: Result<(), JoinError>) {
    if let Err(error) = settled {
        tracing::error!(%error, "a task's handling broke off; its message is delivered again");
    }
}

async fn consume(options: &Options, ports: &Ports) -> Result<Consumer, WorkerError> {
    let prefetch = options.concurrency.saturating_mul(options.prefetch_multiplier.into());
    let subscription = Subscription {
        queues: options.queues.clone(),
        prefetch: u16::try_from(prefetch).unwrap_or(u16::MAX).max(1),
        tag: options.name.clone(),
    };
    let queues = options.queues.join(", ");
    ports.broker.consume(subscription).await.map_err(|source| WorkerError::Consume { queues, source })
}
