//! One delivery's way through the worker.

use std::sync::Arc;

use jiff::Timestamp;
use rtask_broker::{Attempts, Delivery};
use rtask_protocol::{Request, State};

use crate::{
    admit::{self, Admission, Facts, Refusal},
    catalogue::{Catalogue, Destination, Route},
    options::UNAVAILABLE_WAIT,
    run,
    settle::{self, Held, Settlement},
    worker::Worker,
};

/// From delivery to settlement. Whatever cannot be finished while the worker stops goes back to its queue.
pub(crate) async fn walk(worker: Arc<Worker>, delivery: Delivery) {
    let request = match Request::decode(&delivery.message, worker.options.max_body) {
        Ok(request) => request,
        Err(poison) => {
            // Poison quotes the message, and the message may be anybody's.
            let reason = poison.to_string();
            tracing::warn!(id = poison.id, reason, queue = &*delivery.queue, "message refused");
            let settlement = settle::poison(&poison, deliveries(&delivery), Timestamp::now());
            return settle::apply(&worker, settlement, Held::Unacked(delivery)).await;
        }
    };
    let succeeded = deliveries(&delivery) > 1 && has_succeeded(&worker, &request).await;
    tokio::select! {
        step = wait_for_turn(&worker, &request, succeeded) => match step {
            Turn::Run(route, permit) => execute(&worker, delivery, &request, &route, permit).await,
            Turn::Settle(settlement) => settle::apply(&worker, settlement, Held::Unacked(delivery)).await,
            // Perhaps another worker has the module.
            Turn::GiveBack => drop(delivery),
        },
        () = worker.stopping.cancelled() => drop(delivery),
    }
}

/// What a request has waited for.
enum Turn<'a> {
    Run(Arc<Route>, tokio::sync::SemaphorePermit<'a>),
    Settle(Settlement),
    GiveBack,
}

/// Wait for the ETA, for the module and for room, in this order; admit anew after each, since a wait can be long
/// enough for the task to expire or for its module to be replaced.
async fn wait_for_turn<'a>(worker: &'a Worker, request: &Request, succeeded: bool) -> Turn<'a> {
    let mut catalogue = worker.catalogue.clone();
    let mut permit = None;
    loop {
        let destination = catalogue.find(&request.task);
        let facts = Facts { registered: !matches!(destination, Destination::Unknown), succeeded };
        let now = Timestamp::now();
        match admit::admit(request, &facts, now) {
            Admission::Hold { until } => {
                permit = None;
                tokio::time::sleep(until.duration_since(now).unsigned_abs()).await;
            }
            Admission::Drop(reason) => {
                tracing::info!(id = request.id, task = request.task, ?reason, "task dropped");
                return Turn::Settle(settle::dropped(request, reason, now));
            }
            Admission::Refuse(refusal) => {
                tracing::warn!(id = request.id, task = request.task, %refusal, "task refused");
                return Turn::Settle(settle::refused(request, &refusal, 1, now));
            }
            Admission::Run => match (destination, permit.take()) {
                (Destination::Ready(route), Some(permit)) => return Turn::Run(route, permit),
                (Destination::Failed(reason), _) => {
                    let refusal = Refusal::NotLoaded(reason.to_string());
                    tracing::warn!(id = request.id, task = request.task, %refusal, "task refused");
                    return Turn::Settle(settle::refused(request, &refusal, 1, now));
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

/// False if nothing has changed for too long.
async fn becomes_available(catalogue: &mut Catalogue) -> bool {
    tokio::time::timeout(UNAVAILABLE_WAIT, catalogue.changed()).await.is_ok()
}

/// Run an admitted task, and settle what became of it.
async fn execute(
    worker: &Worker,
    delivery: Delivery,
    request: &Request,
    route: &Route,
    permit: tokio::sync::SemaphorePermit<'_>,
) {
    let attempt = match count_attempt(worker, &delivery, request).await {
        Ok(attempt) => attempt,
        Err(refusal) => {
            tracing::warn!(id = request.id, task = request.task, %refusal, "task refused");
            let settlement = settle::refused(request, &refusal, worker.options.delivery_limit, Timestamp::now());
            return settle::apply(worker, settlement, Held::Unacked(delivery)).await;
        }
    };
    let acks_late = route.spec.options.acks_late.unwrap_or(worker.options.acks_late);
    let held = if acks_late { Held::Unacked(delivery) } else { Held::ack_now(delivery).await };
    let exit = run::run(worker, request, route).await;
    let policy = settle::Policy {
        ignore_result: request.ignore_result.or(route.spec.options.ignore_result).unwrap_or(false),
        acks_late,
        attempt,
        delivery_limit: worker.options.delivery_limit,
    };
    let settlement = settle::plan(request, exit, &policy, Timestamp::now());
    // An unacked message bounds what waits for a store that is down; without one, the permit has to.
    let _permit = (!acks_late).then_some(permit);
    settle::apply(worker, settlement, held).await;
}

/// Count an attempt at a message that came before, just as it is made: one that was only held when a worker died
/// has not been tried. The first is never counted, since nobody can know that another will follow.
async fn count_attempt(worker: &Worker, delivery: &Delivery, request: &Request) -> Result<u32, Refusal> {
    if deliveries(delivery) == 1 {
        return Ok(1);
    }
    let limit = worker.options.delivery_limit;
    let key = format!("{}:{}", request.id, request.retries);
    match worker.ports.backend.count_attempt(&key).await {
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
