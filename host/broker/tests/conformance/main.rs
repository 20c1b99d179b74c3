//! What holds for every broker ([`brokers`], [`postponed`], [`exchanges`]), every result backend ([`backends`], and [`rpc`]
//! for those that keep nothing) and every ledger ([`ledgers`]), and what is particular to each server.
//!
//! SQLite needs nothing. RabbitMQ and Redis are those that RTASK_TEST_AMQP_URL and RTASK_TEST_REDIS_URL name;
//! `cargo xtask test` starts both and sets the two.

mod amqp;
mod amqp_delay;
mod amqp_links;
mod backends;
mod brokers;
mod exchanges;
mod hostile;
mod ledgers;
mod postponed;
mod proxy;
mod redis;
mod redis_broker;
mod redis_links;
mod redis_losses;
mod rpc;
mod servers;
mod sqlite;
mod sqlite_queues;
mod tls;
