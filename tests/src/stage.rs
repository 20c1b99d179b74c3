//! Where a test plays: a broker, a result backend and a registry that no other test touches, a home folder, the
//! binary and a Python.

use std::{ffi::OsStr, path::Path, process::Command};

use serde_json::Value;
use tempfile::TempDir;
use xtask::{process, servers::Redis, workspace::folder_for_workers};

use crate::{
    environment::{BINARY, PYTHON, path},
    rtask::Outcome,
    servers::{Database, VirtualHost},
    worker::Worker,
};

/// Everything is given back on drop.
#[derive(Debug)]
pub struct Stage {
    pub broker: String,
    pub backend: String,
    pub virtual_host: Option<VirtualHost>,
    /// A server of the test's own, which it may stop.
    pub redis: Option<Redis>,
    _database: Option<Database>,
    folder: TempDir,
}

impl Stage {
    /// RabbitMQ and Redis, as a fleet has them.
    pub fn servers() -> Self {
        let (virtual_host, database) = (VirtualHost::create(), Database::claim());
        Self {
            broker: virtual_host.url(),
            backend: database.url(),
            virtual_host: Some(virtual_host),
            redis: None,
            _database: Some(database),
            folder: folder(),
        }
    }

    /// The same with a Redis of its own.
    pub fn own_redis() -> Self {
        let (virtual_host, folder) = (VirtualHost::create(), folder());
        let redis = Redis::start(&folder.path().join("redis")).unwrap_or_else(|error| panic!("{error:#}"));
        Self {
            broker: virtual_host.url(),
            backend: format!("{}/0", redis.url()),
            virtual_host: Some(virtual_host),
            redis: Some(redis),
            _database: None,
            folder,
        }
    }

    /// One SQLite file, with no server.
    pub fn sqlite() -> Self {
        let folder = folder();
        let url = format!("sqlite:{}", folder.path().join("rtask.db").display());
        Self { broker: url.clone(), backend: url, virtual_host: None, redis: None, _database: None, folder }
    }

    /// A folder that workers may write to.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Run `rtask` with these arguments to its end.
    pub fn rtask<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Outcome {
        Outcome::of(self.command().args(arguments))
    }

    /// `rtask` at home on this stage, not yet started.
    pub fn command(&self) -> Command {
        let mut command = Command::new(path(BINARY));
        command.env_clear().current_dir(self.folder()).env("HOME", self.folder());
        command.envs(std::env::var_os("PATH").map(|folders| ("PATH", folders)));
        command.env("RTASK_BROKER_URL", &self.broker).env("RTASK_RESULT_BACKEND", &self.backend);
        command
    }

    /// A worker that is ready, with these flags.
    pub fn worker(&self, name: &str, flags: &[&str]) -> Worker {
        Worker::start(self, name, flags)
    }

    /// Deploy a component, which must work; live workers are ready to run it then.
    pub fn deploy(&self, component: &Path) {
        self.rtask([OsStr::new("deploy"), component.as_os_str()]).succeeded();
    }

    /// Run a Python script that begins where tests/python/stage.py ends, and answer its `answer`.
    ///
    /// # Panics
    /// When the script fails, with what it complained of.
    pub fn celery(&self, script: &str) -> Value {
        let mut python = Command::new(path(PYTHON));
        python.args(["-c", &format!("from stage import *\n{script}")]).current_dir(self.folder());
        python.env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/python")).env("PYTHONDONTWRITEBYTECODE", "1");
        python.env("STAGE_BROKER", &self.broker).env("STAGE_BACKEND", &self.backend);
        let said = process::output(&mut python).unwrap_or_else(|error| panic!("{error:#}"));
        let last = said.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|_| panic!("the script answered nothing, but said: {said}"))
    }
}

fn folder() -> TempDir {
    folder_for_workers("rtask-test-").unwrap_or_else(|error| panic!("{error:#}"))
}
