//! Redis: the broker, results as Celery keeps them, and the ledger.
//!
//! Read `locator`, `address` and `link` first: how to get there, and the connection that all commands share;
//! `announcements` is another one, on which those who wait for results are told. `broker`, `backend` (with `stored`, what
//! it reads) and `ledger` are the ports.

mod address;
mod announcements;
mod backend;
mod broker;
mod failure;
mod ledger;
mod link;
mod locator;
mod stored;

pub use backend::RedisBackend;
pub use broker::RedisBroker;
pub use ledger::RedisLedger;
pub(crate) use locator::{SCHEMES, is_redis, with_query};
