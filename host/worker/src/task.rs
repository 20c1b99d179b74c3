//! One delivery's way through the worker.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use rtask_broker::{Attempts, Delivery, backoff::Backoff};
use rtask_protocol::{Request, State};
use tokio::sync::SemaphorePermit;

use crate::{
    admit::{self, Admission, Facts, Reason, Refusal},
    apply::{self, Held},
    catalogue::{Catalogue, Destination, Route},
    control,
    follow::{FollowUps, Parent},
    options::UNAVAILABLE_WAIT,
    rules::Rules,
    run,
    settle::{self, Case, Settlement},
    worker::Worker,
};

/// From delivery to settlement. Whatever cannot be finished while the worker stops goes back to its queue.
pub(crate) async fn walk(worker: Arc<Worker>, delivery: Delivery) {
    let request = match Request::decode(&delivery.message, &worker.options.accept) {
        Ok(request) => Arc::new(request),
        Err(poison) => {
            // Poison quotes the message, and the message may be anybody's.
            let reason = poison.to_string();
            tracing::warn!(id = poison.id, reason, queue = &*delivery.queue, "message refused");
            let settlement = settle::poison(&poison, deliveries(&delivery), Timestamp::now());
            return apply::apply(&worker, settlement, Held::Unacked(delivery), None).await;
        }
    };
    let (follow_ups, follow_up_refused) = match FollowUps::parse(&request.body.embed) {
        Ok(follow_ups) => (follow_ups, None),
        Err(refusal) => (FollowUps::default(), Some(refusal)),
    };
    let task = Task {
        follow_ups,
        follow_up_refused,
        succeeded: deliveries(&delivery) > 1 && has_succeeded(&worker, &request).await,
        request,
    };
    let turn = tokio::select! {
        turn = task.wait_for_turn(&worker) => turn,
        () = worker.shutdown.warm.cancelled() => Turn::GiveBack,
    };
    match turn {
        Turn::Run(route, permit) => execute(&worker, delivery, &task, &route, permit).await,
        Turn::Settle(settlement) => {
            let reply_to = task.request.reply_to.as_deref();
            apply::apply(&worker, *settlement, Held::Unacked(delivery), reply_to).await;
        }
        Turn::Postpone(until) => postpone(&worker, delivery, until).await,
        // Perhaps another worker has the module.
        Turn::GiveBack => drop(delivery),
    }
}

/// A message that could be read, with what is known of it from the start.
struct Task {
    request: Arc<Request>,
    follow_ups: FollowUps,
    /// Why what is to follow the task cannot be sent.
    follow_up_refused: Option<Refusal>,
    succeeded: bool,
}

/// What a request has waited for.
enum Turn<'a> {
    Run(Arc<Route>, SemaphorePermit<'a>),
    Settle(Box<Settlement>),
    Postpone(Timestamp),
    GiveBack,
}

impl Task {
    /// Wait for the ETA, for the module, for the task's rate and for room, in this order; admit anew after each, since a
    /// wait can be long enough for the task to expire, to be revoked, or for its module to be replaced.
    async fn wait_for_turn<'a>(&self, worker: &'a Worker) -> Turn<'a> {
        let request = &*self.request;
        let mut catalogue = worker.catalogue.clone();
        let (mut in_rate, mut permit) = (false, None);
        loop {
            let destination = catalogue.find(&request.task);
            let now = Timestamp::now();
            let facts = self.facts(worker, !matches!(destination, Destination::Unknown), now).await;
            match admit::admit(request, &facts, now) {
                Admission::Hold { until } => {
                    permit = None;
                    let _held = Holding::one_more(&worker.holding);
                    tokio::time::sleep(until.duration_since(now).unsigned_abs()).await;
                }
                Admission::Postpone { until } => return Turn::Postpone(until),
                Admission::Drop(reason) => {
                    tracing::info!(id = request.id, task = request.task, ?reason, "task dropped");
                    return Turn::Settle(Box::new(settle::dropped(&self.parent(worker), reason, now)));
                }
                Admission::Refuse(refusal) => return self.refuse(worker, &refusal, now),
                Admission::Run => match (destination, permit.take()) {
                    (Destination::Ready(route), Some(permit)) => return Turn::Run(route, permit),
                    (Destination::Failed(reason), _) => {
                        return self.refuse(worker, &Refusal::NotLoaded(reason.to_string()), now);
                    }
                    (Destination::Ready(route), None) if !in_rate => {
                        in_rate = true;
                        let rate = route.spec.options.rate_limit.as_deref().and_then(|rate| rate.parse().ok());
                        let waited =
                            worker.rates.wait(&worker.options, &worker.ports.ledger, &request.task, rate).await;
                        if !waited {
                            permit = worker.permits.acquire().await.ok();
                        }
                    }
                    (Destination::Ready(_), None) => match worker.permits.acquire().await {
                        Ok(acquired) => permit = Some(acquired),
                        Err(_) => return Turn::GiveBack,
                    },
                    (Destination::Unavailable | Destination::Unknown, held) => {
                        drop(held);
                        if !becomes_available(&mut catalogue).await {
                            tracing::warn!(id = request.id, task = request.task, "its module is not available here");
                            return Turn::GiveBack;
                        }
                    }
                },
            }
        }
    }

    fn refuse<'a>(&self, worker: &Worker, refusal: &Refusal, now: Timestamp) -> Turn<'a> {
        tracing::warn!(id = self.request.id, task = self.request.task, %refusal, "task refused");
        Turn::Settle(Box::new(settle::refused(&self.parent(worker), refusal, 1, now)))
    }

    fn parent<'a>(&'a self, worker: &'a Worker) -> Parent<'a> {
        Parent {
            request: &self.request,
            follow_ups: &self.follow_ups,
            catalogue: &worker.catalogue,
            options: &worker.options,
        }
    }

    async fn facts(&self, worker: &Worker, registered: bool, now: Timestamp) -> Facts<'_> {
        Facts {
            registered,
            succeeded: self.succeeded,
            revoked: worker.revoked.contains(&self.request) || self.was_revoked_long_ago(worker, now).await,
            follow_up_refused: self.follow_up_refused.as_ref(),
            horizon: horizon(worker),
        }
    }

    /// A task that was held for its ETA can be older than what workers keep in mind, and if that is full, so can any;
    /// just before it runs, the ledger is asked.
    async fn was_revoked_long_ago(&self, worker: &Worker, now: Timestamp) -> bool {
        let (is_early, was_held) = match self.request.eta {
            Some(eta) => (eta > now, true),
            None => (false, false),
        };
        if is_early || !(was_held || worker.revoked.is_full()) {
            return false;
        }
        match worker.ports.ledger.is_revoked(&self.request.id).await {
            Ok(revoked) => revoked,
            Err(error) => {
                tracing::warn!(id = self.request.id, %error, "could not look up whether a task is revoked");
                false
            }
        }
    }
}

/// As far as an ETA may lie ahead to be waited for here. Nothing is held when held messages take up half of what may
/// be held at all: brokers postpone to the second, and a task that is late by less than one is better than a worker
/// with nothing to do.
fn horizon(worker: &Worker) -> Duration {
    let most = match worker.options.prefetch() {
        0 => usize::from(u16::MAX),
        prefetch => usize::from(prefetch) * worker.options.queues.len(),
    };
    if worker.holding.load(Ordering::Relaxed) * 2 < most { worker.options.eta_horizon } else { Duration::ZERO }
}

/// Counts a message that is held for as long as it is.
struct Holding<'a>(&'a AtomicUsize);

impl<'a> Holding<'a> {
    fn one_more(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// False if nothing has changed for too long.
async fn becomes_available(catalogue: &mut Catalogue) -> bool {
    tokio::time::timeout(UNAVAILABLE_WAIT, catalogue.changed()).await.is_ok()
}

/// Give a message back until `until`. A broker that cannot take it now is asked again; one that never will leaves it
/// to be held here.
async fn postpone(worker: &Worker, mut delivery: Delivery, until: Timestamp) {
    let mut backoff = Backoff::default();
    while let Err(error) = delivery.postpone(until).await {
        let left = until.duration_since(Timestamp::now());
        let pause = match error.is_permanent() {
            true => left.unsigned_abs(),
            false => backoff.pause(),
        };
        tracing::warn!(%error, queue = &*delivery.queue, "a message could not be postponed; it is held here");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = worker.shutdown.warm.cancelled() => return,
        }
        if error.is_permanent() || left.is_negative() {
            // Back in its queue it is due, and runs.
            return;
        }
    }
}

/// Run an admitted task, and settle what became of it.
async fn execute(worker: &Worker, delivery: Delivery, task: &Task, route: &Arc<Route>, permit: SemaphorePermit<'_>) {
    let request = &task.request;
    let reply_to = request.reply_to.as_deref();
    let entry = worker.active.enter(request);
    let attempt = match begin(worker, &delivery, task).await {
        Ok(attempt) => attempt,
        Err(settlement) => return apply::apply(worker, *settlement, Held::Unacked(delivery), reply_to).await,
    };
    let rules = Rules::of(&worker.options, &route.spec.options, request, worker.time_limits.of(&request.task));
    let queue = delivery.queue.clone();
    let origin = run::Origin { routing: delivery.routing.clone(), redelivered: deliveries(&delivery) > 1 };
    let held = if rules.acks_late { Held::Unacked(delivery) } else { Held::ack_now(delivery).await };
    let ended = run::run(worker, &entry, request, route, &rules, &origin).await;
    let case = Case {
        parent: task.parent(worker),
        message: held.message(),
        queue: &queue,
        rules: &rules,
        attempt,
        children: ended.children,
        jitter: jitter(),
        now: Timestamp::now(),
    };
    let settlement = settle::plan(case, ended.exit);
    // The prefetch of unacked messages bounds what waits for a store that is down; without it, the permit has to.
    let is_bounded = rules.acks_late && worker.options.prefetch() > 0;
    let _permit = (!is_bounded).then_some(permit);
    let runs_again = settlement.record.as_ref().is_some_and(|record| record.status == State::Retry);
    apply::apply(worker, settlement, held, reply_to).await;
    drop(entry);
    if runs_again && worker.revoked.contains(request) {
        // A revocation that came while the task was among those that run has left its state alone.
        control::mark_revoked_meanwhile(worker, &request.id).await;
    }
}

/// Which attempt this is; or what becomes of a task that is not to run after all.
async fn begin(worker: &Worker, delivery: &Delivery, task: &Task) -> Result<u32, Box<Settlement>> {
    // A revocation that came after the last look did not find it among those that run, and so did not end it.
    if worker.revoked.contains(&task.request) {
        return Err(Box::new(settle::dropped(&task.parent(worker), Reason::Revoked, Timestamp::now())));
    }
    count_attempt(worker, delivery, &task.request).await.map_err(|refusal| {
        tracing::warn!(id = task.request.id, task = task.request.task, %refusal, "task refused");
        let limit = worker.options.delivery_limit;
        Box::new(settle::refused(&task.parent(worker), &refusal, limit, Timestamp::now()))
    })
}

/// Count an attempt at a message that came before, just as it is made: one that was only held when a worker died
/// has not been tried. The first is never counted, since nobody can know that another will follow.
async fn count_attempt(worker: &Worker, delivery: &Delivery, request: &Request) -> Result<u32, Refusal> {
    if deliveries(delivery) == 1 {
        return Ok(1);
    }
    let limit = worker.options.delivery_limit;
    let key = format!("{}:{}", request.id, request.retries);
    match worker.ports.ledger.count_attempt(&key).await {
        Ok(count) if count >= limit => Err(Refusal::TooManyAttempts { limit }),
        Ok(count) => Ok(count + 1),
        Err(error) => {
            tracing::warn!(id = request.id, %error, "an attempt could not be counted; it is made all the same");
            Ok(1)
        }
    }
}

/// How often the message was handed out, this time included, as far as its broker can tell.
fn deliveries(delivery: &Delivery) -> u32 {
    match delivery.attempts {
        Attempts::First => 1,
        Attempts::Again => 2,
        Attempts::Number(number) => number,
    }
}

/// Whether an earlier attempt got as far as its result, and only the ack was lost.
async fn has_succeeded(worker: &Worker, request: &Request) -> bool {
    match worker.ports.backend.get(&request.id).await {
        Ok(record) => record.is_some_and(|record| record.status == State::Success),
        // To run twice is allowed.
        Err(_) => false,
    }
}

/// At least 0 and below 1, for delays that are to differ.
fn jitter() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    // The standard library seeds each hasher anew, which is random enough; 53 bits are what a double holds.
    (RandomState::new().hash_one(0) >> 11) as f64 / (1_u64 << 53) as f64
}
