//! What a Celery worker does with a single task, row by row of golden/07_worker_semantics/semantics.md: asserted
//! through Celery's own client, on RabbitMQ (with results in Redis) and on Redis alone.
//!
//! Where rtask differs from Celery on purpose (DESIGN, section 7), the name of the test says so.

/// Tests of functions of `&Stage`, on both brokers.
macro_rules! facts {
    [$($fact:ident),* $(,)?] => {
        rtask_tests::facts![rabbitmq = servers, redis = redis; [$($fact),*]];
    };
}

mod acks;
mod callbacks;
mod content;
mod control;
mod limits;
mod prefetch;
mod protocols;
mod refusals;
mod results;
mod retries;
mod revokes;
mod routing;
mod rpc;
mod states;
mod time;
