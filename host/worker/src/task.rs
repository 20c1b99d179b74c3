//! One delivery's way through the worker.

use std::sync::Arc;

use jiff::Timestamp;
use rtask_broker::{Attempts, Delivery};
use rtask_protocol::{Request, State};

use crate::{
    admit::{self, Admission, Facts, Refusal},
    catalogue::Route,
    run,
    settle::{self, Held, Settlement},
    worker::Worker,
};

/// From delivery to settlement. Whatever cannot be finished while the worker stops goes back to its queue.
pub(crate) async fn walk(worker: Arc<Worker>, delivery: Delivery) {
    let request = match Request::decode(&delivery.message, worker.options.max_body) {
        Ok(request) => request,
        Err(poison) => {
            tracing::warn!(id = poison.id, reason = %poison, queue = &*delivery.queue, "message refused");
            let settlement = settle::poison(&poison, attempt_of(&delivery), Timestamp::now());
            return settle::apply(&worker, settlement, Held::Unacked(delivery)).await;
        }
    };
    // An ETA that comes is admitted anew: the task may have expired or been replaced meanwhile.
    loop {
        let route = worker.catalogue.route(&request.task);
        let facts = facts(&worker, &delivery, &request, route.is_some()).await;
        match (admit::admit(&request, &facts, Timestamp::now()), route) {
            (Admission::Run, Some(route)) => return execute(worker, delivery, request, route, facts).await,
            (Admission::Run, None) => unreachable!("admit refuses a task without a route"),
            (Admission::Hold { until }, _) => {
                let wait = until.duration_since(Timestamp::now()).unsigned_abs();
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = worker.stopping.cancelled() => return drop(delivery),
                }
            }
            (Admission::Drop(reason), _) => {
                tracing::info!(id = request.id, task = request.task, ?reason, "task dropped");
                let settlement = settle::dropped(&request, reason, Timestamp::now());
                return settle::apply(&worker, settlement, Held::Unacked(delivery)).await;
            }
            (Admission::Refuse(refusal), _) => {
                tracing::warn!(id = request.id, task = request.task, %refusal, "task refused");
                let settlement = settle::refused(&request, &refusal, facts.attempt, Timestamp::now());
                return settle::apply(&worker, settlement, Held::Unacked(delivery)).await;
            }
        }
    }
}

/// Run an admitted task once there is room for it.
async fn execute(worker: Arc<Worker>, delivery: Delivery, request: Request, route: Arc<Route>, facts: Facts) {
    let permit = tokio::select! {
        permit = worker.permits.acquire() => permit,
        () = worker.stopping.cancelled() => return drop(delivery),
    };
    let Ok(permit) = permit else { return };
    let Some((delivery, attempt)) = begin(&worker, delivery, &request, &facts).await else { return };

    let acks_late = route.spec.options.acks_late.unwrap_or(worker.options.acks_late);
    let held = if acks_late { Held::Unacked(delivery) } else { Held::ack_now(delivery).await };
    let exit = run::run(&worker, &request, &route).await;
    drop(permit);
    let options = settle::Policy {
        ignore_result: request.ignore_result.or(route.spec.options.ignore_result).unwrap_or(false),
        acks_late,
        attempt,
        delivery_limit: worker.options.delivery_limit,
    };
    let settlement: Settlement = settle::plan(&request, exit, &options, Timestamp::now());
    settle::apply(&worker, settlement, held).await;
}

/// Count the attempt where the broker does not, just before it is made: a message that was only held when a
/// worker died has not been tried. None if that was one too many.
async fn begin(worker: &Worker, delivery: Delivery, request: &Request, facts: &Facts) -> Option<(Delivery, u32)> {
    if delivery.attempts != Attempts::Again {
        return Some((delivery, facts.attempt));
    }
    let key = format!("{}:{}", request.id, request.retries);
    match worker.ports.backend.count_attempt(&key).await {
        // The first attempt was not counted, since nobody could know that another would follow.
        Ok(count) if count < worker.options.delivery_limit => Some((delivery, count + 1)),
        Ok(count) => {
            let refusal = Refusal::TooManyAttempts { limit: worker.options.delivery_limit };
            tracing::warn!(id = request.id, task = request.task, %refusal, "task refused");
            let settlement = settle::refused(request, &refusal, count, Timestamp::now());
            settle::apply(worker, settlement, Held::Unacked(delivery)).await;
            None
        }
        Err(error) => {
            tracing::warn!(id = request.id, %error, "an attempt could not be counted; it is made all the same");
            Some((delivery, facts.attempt))
        }
    }
}

/// What `admit` needs to know besides the request.
async fn facts(worker: &Worker, delivery: &Delivery, request: &Request, registered: bool) -> Facts {
    Facts {
        registered,
        attempt: attempt_of(delivery),
        delivery_limit: worker.options.delivery_limit,
        succeeded: delivery.attempts != Attempts::First && has_succeeded(worker, request).await,
    }
}

fn attempt_of(delivery: &Delivery) -> u32 {
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
        // To run twice is allowed; to wait for a store that is down would hold everything up.
        Err(_) => false,
    }
}
