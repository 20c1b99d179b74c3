//! A RabbitMQ node of one's own, with its own name service (epmd) and administration script.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use super::free_ports;
use crate::process::{Running, find_program, output};

/// How long it may take to start.
const START: Duration = Duration::from_secs(120);
/// Debian's `rabbitmq-server` in PATH insists on being root or the user `rabbitmq`; the real one is here.
const DEBIAN: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

/// Dropping it stops it.
#[derive(Debug)]
pub struct RabbitMq {
    // Stopped in this order.
    _server: Running,
    _epmd: Running,
    ctl: PathBuf,
    port: u16,
}

/// Where the server's start script is, if it is installed.
pub fn program() -> Option<PathBuf> {
    Some(PathBuf::from(DEBIAN)).filter(|path| path.is_file()).or_else(|| find_program("rabbitmq-server"))
}

impl RabbitMq {
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start(folder: &Path) -> Result<Self> {
        let program = program().context("rabbitmq-server is not installed")?;
        let [port, distribution, epmd] = free_ports()?;
        fs::create_dir_all(folder).with_context(|| format!("failed to make {}", folder.display()))?;
        fs::write(folder.join("rabbitmq.conf"), format!("listeners.tcp.local = 127.0.0.1:{port}\n"))?;
        fs::write(folder.join("enabled_plugins"), "[].\n")?;
        let environment = environment(folder, port, distribution, epmd);
        let ctl = write_ctl(folder, &program, &environment)?;

        // Erlang would start one by itself, as a daemon that outlives everybody.
        let mut command = Command::new("epmd");
        command.args(["-port", &epmd.to_string(), "-address", "127.0.0.1"]);
        let epmd = Running::start("epmd", &mut command, &folder.join("epmd.log"))?;
        let mut command = Command::new(program);
        command.envs(environment).current_dir(folder);
        let mut server = Running::start("rabbitmq-server", &mut command, &folder.join("server.log"))?;
        server.wait_until("its start was complete", START, |_| {
            output(Command::new(&ctl).args(["--quiet", "await_startup", "--timeout", "10"])).ok()
        })?;
        Ok(Self { _server: server, _epmd: epmd, ctl, port })
    }

    /// With the account that every fresh node has, for the default virtual host.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}", self.port)
    }

    /// This node's `rabbitmqctl`.
    pub fn ctl(&self) -> &Path {
        &self.ctl
    }
}

/// Everything that would else be shared with another node on this machine.
fn environment(folder: &Path, port: u16, distribution: u16, epmd: u16) -> Vec<(&'static str, String)> {
    let path = |name: &str| folder.join(name).display().to_string();
    vec![
        // Erlang's cookie lives there.
        ("HOME", folder.display().to_string()),
        ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
        ("ERL_EPMD_PORT", epmd.to_string()),
        ("RABBITMQ_NODENAME", format!("rtask-{port}@localhost")),
        ("RABBITMQ_NODE_PORT", port.to_string()),
        ("RABBITMQ_DIST_PORT", distribution.to_string()),
        ("RABBITMQ_MNESIA_BASE", path("mnesia")),
        ("RABBITMQ_LOG_BASE", path("log")),
        ("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf")),
        ("RABBITMQ_CONF_ENV_FILE", path("no-such-file")),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", path("enabled_plugins")),
        ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}".to_owned()),
    ]
}

fn write_ctl(folder: &Path, program: &Path, environment: &[(&str, String)]) -> Result<PathBuf> {
    let real = program.with_file_name("rabbitmqctl");
    let exports: String = environment.iter().map(|(name, value)| format!("export {name}='{value}'\n")).collect();
    let path = folder.join("rabbitmqctl");
    fs::write(&path, format!("#!/bin/sh\n{exports}exec '{}' \"$@\"\n", real.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}
