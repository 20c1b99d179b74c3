//! What holds for every broker ([`brokers`]) and every result backend ([`backends`]), and what is particular to
//! each server.
//!
//! SQLite needs nothing. RabbitMQ and Redis are those that RTASK_TEST_AMQP_URL and RTASK_TEST_REDIS_URL name;
//! `cargo xtask test` starts both and sets the two.

mod amqp;
mod backends;
mod brokers;
mod hostile;
mod proxy;
mod redis;
mod servers;
mod sqlite;
