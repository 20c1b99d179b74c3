//! A `redis-server` of one's own.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use super::free_ports;
use crate::process::{Running, find_program};

/// How long it may take to start.
const START: Duration = Duration::from_secs(30);
/// How long an answer to PING may take.
const ANSWER: Duration = Duration::from_secs(1);
/// Databases; each test takes one.
const DATABASES: &str = "1024";

/// It keeps what it was told over [`Redis::restart`]. Dropping it stops it.
#[derive(Debug)]
pub struct Redis {
    server: Running,
    folder: PathBuf,
    port: u16,
}

/// Where the server's binary is, if it is installed.
pub fn program() -> Option<PathBuf> {
    find_program("redis-server")
}

impl Redis {
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("failed to make {}", folder.display()))?;
        let [port] = free_ports()?;
        Ok(Self { server: launch(folder, port)?, folder: folder.to_owned(), port })
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Where it keeps its data.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Stop it in good order and start it again, on the same port with the same data.
    ///
    /// # Errors
    /// When it does not stop or start.
    pub fn restart(&mut self) -> Result<()> {
        self.server.stop()?;
        self.server = launch(&self.folder, self.port)?;
        Ok(())
    }
}

fn launch(folder: &Path, port: u16) -> Result<Running> {
    let mut command = Command::new(program().context("redis-server is not installed")?);
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--databases", DATABASES]);
    // A log of every write, since a snapshot is only of some moment.
    command.args(["--save", "", "--appendonly", "yes", "--dir"]).arg(folder);
    let mut server = Running::start("redis-server", &mut command, &folder.join("log"))?;
    server.wait_until("it answers", START, |_| answers(port).ok().filter(|&answers| answers))?;
    Ok(server)
}

/// False while it loads its data.
fn answers(port: u16) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    Ok(&answer == b"+PONG")
}
