//! The worker's loop: one enum of what can happen, one call for each.

use std::sync::{Arc, atomic::AtomicUsize};

use rtask_broker::{BrokerError, Consumer, Delivery, Subscription};
use rtask_registry::RegistryError;
use rtask_sandbox::RunnerError;
use tokio::{
    sync::Semaphore,
    task::{JoinError, JoinSet},
};

use crate::{
    Options, Ports, Shutdown,
    active::Active,
    catalogue::Catalogue,
    control::{self, TimeLimits},
    keeper::Keeper,
    options::MAX_REVOKED,
    rates::Rates,
    revoked::Revoked,
    task,
};

/// Why a worker cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("failed to declare queue {queue}")]
    Declare { queue: String, source: BrokerError },
    #[error("failed to consume from {queues}")]
    Consume { queues: String, source: BrokerError },
    #[error("the broker no longer lets this worker consume from {0}")]
    Consumer(String),
    #[error("failed to listen to remote control")]
    Control(#[source] BrokerError),
    #[error("failed to read the ledger")]
    Ledger(#[from] BrokerError),
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
    /// Messages that wait here for an ETA.
    pub(crate) holding: AtomicUsize,
    pub(crate) active: Active,
    pub(crate) revoked: Revoked,
    pub(crate) rates: Rates,
    pub(crate) time_limits: TimeLimits,
    pub(crate) shutdown: Shutdown,
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

/// Work until told to stop; then take no more, finish what runs or stop that too, and say goodbye.
///
/// # Errors
/// See [`WorkerError`]. Tasks that were running are finished first.
pub async fn run(options: Options, ports: Ports, shutdown: Shutdown) -> Result<(), WorkerError> {
    let keeper = Keeper::open(&options, &ports).await?;
    // Heard first and read then, so that no revocation slips between.
    let mailbox = ports.broker.listen(&options.name).await.map_err(WorkerError::Control)?;
    let revoked = Revoked::new(ports.ledger.revocations(MAX_REVOKED).await?);
    let mut consumer = consume(&options, &ports).await?;
    let worker = Arc::new(Worker {
        catalogue: keeper.catalogue(),
        permits: Arc::new(Semaphore::new(options.concurrency)),
        holding: AtomicUsize::new(0),
        active: Active::default(),
        revoked,
        rates: Rates::default(),
        time_limits: TimeLimits::default(),
        shutdown,
        options,
        ports,
    });
    let name = &worker.options.name;
    let keeping = tokio::spawn(keeper.run());
    let controlled = tokio::spawn(control::serve(worker.clone(), mailbox));
    tracing::info!("{name} ready.");

    let mut tasks = JoinSet::new();
    let outcome = receive(&worker, &mut consumer, &mut tasks).await;
    worker.shutdown.warm.cancel();
    tracing::info!(held = tasks.len(), "{name} stops");
    tokio::select! {
        // Remote control still works meanwhile: a task that does not end can be terminated.
        () = finish(consumer, &mut tasks) => {}
        () = worker.shutdown.cold.cancelled() => {
            tracing::warn!(held = tasks.len(), "{name} stops at once; tasks that are not acknowledged go back to their queues");
            // A task that is dropped drops its delivery.
            tasks.shutdown().await;
        }
    }
    controlled.abort();
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
            Event::Abandoned => return Err(WorkerError::Consumer(queue_names(&worker.options))),
            Event::Stop => return Ok(()),
        }
    }
}

async fn next(worker: &Worker, consumer: &mut Consumer, tasks: &mut JoinSet<()>) -> Event {
    tokio::select! {
        biased;
        () = worker.shutdown.warm.cancelled() => Event::Stop,
        () = worker.shutdown.cold.cancelled() => Event::Stop,
        Some(settled) = tasks.join_next() => Event::Settled(settled),
        delivery = consumer.next() => delivery.map_or(Event::Abandoned, Event::Delivered),
    }
}

async fn finish(consumer: Consumer, tasks: &mut JoinSet<()>) {
    consumer.cancel().await;
    while let Some(settled) = tasks.join_next().await {
        note(settled);
    }
}

/// Tasks handle their own failures. One that panicked has dropped its delivery, so the message comes back.
fn note(settled: Result<(), JoinError>) {
    if let Err(error) = settled {
        tracing::error!(%error, "a task's handling broke off; its message is delivered again");
    }
}

async fn consume(options: &Options, ports: &Ports) -> Result<Consumer, WorkerError> {
    // What tasks send may go to queues whose readers have not come yet.
    for queue in options.routes.queues.iter().filter(|queue| !queue.is_plain()) {
        let declared = ports.broker.declare(queue).await;
        declared.map_err(|source| WorkerError::Declare { queue: queue.name.clone(), source })?;
    }
    let subscription =
        Subscription { queues: options.queues.clone(), prefetch: options.prefetch(), tag: options.name.clone() };
    let consume = ports.broker.consume(subscription).await;
    consume.map_err(|source| WorkerError::Consume { queues: queue_names(options), source })
}

fn queue_names(options: &Options) -> String {
    options.queues.iter().map(|queue| queue.name.as_str()).collect::<Vec<_>>().join(", ")
}
