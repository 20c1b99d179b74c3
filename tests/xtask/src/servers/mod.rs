//! A RabbitMQ and a Redis of the tests' own: private ports on the loopback, data in a temporary folder, stopped
//! on drop. Or other people's, where the environment names them.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{packages, steps::Steps};

pub mod rabbitmq;
pub mod redis;

pub use rabbitmq::RabbitMq;
pub use redis::Redis;

/// Where tests find the servers; [`Servers`] sets them, and takes them as given where they are set already.
pub const AMQP_URL: &str = "RTASK_TEST_AMQP_URL";
/// The `rabbitmqctl` that administers that RabbitMQ.
pub const RABBITMQCTL: &str = "RTASK_TEST_RABBITMQCTL";
pub const REDIS_URL: &str = "RTASK_TEST_REDIS_URL";

/// Both servers, ours or others'.
#[derive(Debug)]
pub struct Servers {
    pub amqp_url: String,
    pub rabbitmqctl: PathBuf,
    pub redis_url: String,
    // Stopped in this order, then the folder goes.
    _rabbitmq: Option<RabbitMq>,
    _redis: Option<Redis>,
    _folder: TempDir,
}

impl Servers {
    /// Start what the environment does not name, after installing it where needed and allowed.
    ///
    /// # Errors
    /// When a server is missing and cannot be installed, or does not start.
    pub fn start(steps: &Steps) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("rtask-servers-").tempdir()?;
        let (amqp_url, rabbitmqctl, rabbitmq) = match std::env::var(AMQP_URL) {
            Ok(url) => {
                let ctl = std::env::var_os(RABBITMQCTL);
                let missing = format!("{AMQP_URL} is set, so {RABBITMQCTL} must name that server's rabbitmqctl");
                (url, PathBuf::from(ctl.context(missing)?), None)
            }
            Err(_) => {
                ensure_installed(rabbitmq::program(), "rabbitmq-server", AMQP_URL, steps)?;
                let step = steps.begin("RabbitMQ");
                let server = RabbitMq::start(&folder.path().join("rabbitmq"))?;
                step.done(&format!("listens at {}", server.url()));
                (server.url(), server.ctl().to_owned(), Some(server))
            }
        };
        let (redis_url, redis) = match std::env::var(REDIS_URL) {
            Ok(url) => (url, None),
            Err(_) => {
                ensure_installed(redis::program(), "redis-server", REDIS_URL, steps)?;
                let step = steps.begin("Redis");
                let server = Redis::start(&folder.path().join("redis"))?;
                step.done(&format!("listens at {}", server.url()));
                (server.url(), Some(server))
            }
        };
        Ok(Self { amqp_url, rabbitmqctl, redis_url, _rabbitmq: rabbitmq, _redis: redis, _folder: folder })
    }
}

fn ensure_installed(program: Option<PathBuf>, package: &str, variable: &str, steps: &Steps) -> Result<()> {
    if program.is_some() {
        return Ok(());
    }
    packages::install(&[package], &format!("install it, or let {variable} name a server that runs"), steps)
}

/// Ports that nothing listens on. Somebody else may take one before its server does; the server then says so.
///
/// # Errors
/// When the machine has none left.
pub fn free_ports<const N: usize>() -> Result<[u16; N]> {
    // All are held until all are chosen, so that they differ.
    let mut held = Vec::with_capacity(N);
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("failed to find a free port")?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}
