//! A test's own corner of the shared servers: a virtual host of RabbitMQ, a database of Redis.

use std::process::Command;

use redis::Connection;
use uuid::Uuid;
use xtask::{process, servers};

use crate::environment::{path, variable};

/// The key that marks a database as taken.
const CLAIM: &str = "rtask-tests-claim";

/// A fresh virtual host, deleted on drop.
#[derive(Debug)]
pub struct VirtualHost {
    name: String,
}

impl VirtualHost {
    pub fn create() -> Self {
        let name = format!("rtask-{}", Uuid::new_v4());
        rabbitmqctl(&["add_vhost", &name]);
        rabbitmqctl(&["set_permissions", "--vhost", &name, user(), ".*", ".*", ".*"]);
        Self { name }
    }

    pub fn url(&self) -> String {
        format!("{}/{}", amqp_server(), self.name)
    }

    /// How many messages of a queue some worker holds.
    pub fn unacknowledged(&self, queue: &str) -> u64 {
        count_of(queue, &rabbitmqctl(&["list_queues", "--vhost", &self.name, "name", "messages_unacknowledged"]))
    }
}

impl Drop for VirtualHost {
    fn drop(&mut self) {
        rabbitmqctl(&["delete_vhost", &self.name]);
    }
}

/// Administer the RabbitMQ that all tests share.
///
/// # Panics
/// When it fails.
pub fn rabbitmqctl(arguments: &[&str]) -> String {
    let mut command = Command::new(path(servers::RABBITMQCTL));
    process::output(command.args(["--quiet"]).args(arguments)).unwrap_or_else(|error| panic!("{error:#}"))
}

/// The number beside a queue's name in what `rabbitmqctl list_queues` writes; 0 for a queue that it does not know.
pub fn count_of(queue: &str, table: &str) -> u64 {
    let row = table.lines().find_map(|line| line.strip_prefix(queue)?.strip_prefix('\t'));
    row.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Scheme, account and address, without a virtual host.
pub fn amqp_server() -> String {
    let url = variable(servers::AMQP_URL);
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find('/').map_or(url.len(), |at| start + at);
    url[..end].to_owned()
}

fn user() -> &'static str {
    static USER: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    USER.get_or_init(|| {
        let server = amqp_server();
        let account = server.split_once("://").and_then(|(_, rest)| rest.split_once('@')).map(|(account, _)| account);
        let account = account.unwrap_or("guest");
        account.split_once(':').map_or(account, |(user, _)| user).to_owned()
    })
}

/// A database that was empty, emptied again on drop.
pub struct Database {
    number: i64,
    connection: Connection,
}

impl Database {
    /// # Panics
    /// When the server has no empty database left.
    pub fn claim() -> Self {
        let client = redis::Client::open(variable(servers::REDIS_URL)).expect("the URL of the tests' Redis is valid");
        let mut connection = client.get_connection().expect("the tests' Redis answers");
        for number in 1.. {
            let selected = redis::cmd("SELECT").arg(number).exec(&mut connection);
            selected.unwrap_or_else(|error| panic!("no database of the tests' Redis is free: {error}"));
            if claim(&mut connection).expect("the tests' Redis answers") {
                return Self { number, connection };
            }
        }
        unreachable!("the server refuses a number long before")
    }

    pub fn url(&self) -> String {
        format!("{}/{}", variable(servers::REDIS_URL).trim_end_matches('/'), self.number)
    }
}

/// How many messages of a Redis database somebody holds (golden/02_redis_transport, fact 17).
///
/// # Panics
/// When the server does not answer.
pub fn unacknowledged(url: &str) -> u64 {
    let client = redis::Client::open(url).expect("the URL of the tests' Redis is valid");
    let held = redis::cmd("ZCARD").arg("unacked_index").query(&mut client.get_connection().expect("it answers"));
    held.expect("the tests' Redis answers")
}

/// Take the selected database if nobody has it; whether that worked.
fn claim(connection: &mut Connection) -> redis::RedisResult<bool> {
    let claimed: Option<String> = redis::cmd("SET").arg(CLAIM).arg("taken").arg("NX").query(connection)?;
    if claimed.is_none() {
        return Ok(false);
    }
    let keys: u64 = redis::cmd("DBSIZE").query(connection)?;
    if keys > 1 {
        redis::cmd("DEL").arg(CLAIM).exec(connection)?;
    }
    Ok(keys == 1)
}

impl Drop for Database {
    fn drop(&mut self) {
        // The server may have been stopped; then nothing is left to empty.
        let _ = redis::cmd("FLUSHDB").exec(&mut self.connection);
    }
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("number", &self.number).finish_non_exhaustive()
    }
}
