//! Where a test plays: a broker, a result backend and a registry that no other test touches, a home folder, the
//! binary and a Python.

use std::{ffi::OsStr, fs, path::Path, process::Command};

use serde_json::Value;
use tempfile::TempDir;
use uuid::Uuid;
use xtask::{
    process,
    servers::{RabbitMq, Redis},
    workspace::folder_for_workers,
};

use crate::{
    environment::{self, BINARY, PYTHON, path},
    rtask::Outcome,
    servers::{self, Database, VirtualHost},
    worker::Worker,
};

/// Everything is given back on drop.
#[derive(Debug)]
pub struct Stage {
    pub broker: String,
    pub backend: String,
    /// Where modules are, if not beside the results.
    registry: Option<String>,
    pub virtual_host: Option<VirtualHost>,
    pub database: Option<Database>,
    /// Servers of the test's own, which it may stop.
    pub redis: Option<Redis>,
    pub rabbitmq: Option<RabbitMq>,
    /// Redis announces results to all databases, so ids that a test chooses must differ from other tests'.
    name: String,
    folder: TempDir,
}

impl Stage {
    /// RabbitMQ and Redis, as a fleet has them.
    pub fn servers() -> Self {
        let (virtual_host, database) = (VirtualHost::create(), Database::claim());
        let stage = Self::at(virtual_host.url(), database.url());
        Self { virtual_host: Some(virtual_host), database: Some(database), ..stage }
    }

    /// One database of Redis, for messages as for results.
    pub fn redis() -> Self {
        let database = Database::claim();
        let stage = Self::at(database.url(), database.url());
        Self { database: Some(database), ..stage }
    }

    /// RabbitMQ, with results that travel as messages. Redis keeps the modules.
    pub fn rpc() -> Self {
        let stage = Self::servers();
        Self { backend: "rpc://".to_owned(), registry: Some(stage.backend.clone()), ..stage }
    }

    /// RabbitMQ, and a Redis of its own.
    pub fn own_redis() -> Self {
        let (virtual_host, folder) = (VirtualHost::create(), folder());
        let redis = Redis::start(&folder.path().join("redis")).unwrap_or_else(|error| panic!("{error:#}"));
        let stage = Self::at(virtual_host.url(), format!("{}/0", redis.url()));
        Self { virtual_host: Some(virtual_host), redis: Some(redis), folder, ..stage }
    }

    /// A Redis of its own, for messages as for results.
    pub fn own_redis_alone() -> Self {
        let folder = folder();
        let redis = Redis::start(&folder.path().join("redis")).unwrap_or_else(|error| panic!("{error:#}"));
        let url = format!("{}/0", redis.url());
        Self { redis: Some(redis), folder, ..Self::at(url.clone(), url) }
    }

    /// A RabbitMQ and a Redis of its own.
    pub fn own_servers() -> Self {
        let folder = folder();
        let redis = Redis::start(&folder.path().join("redis")).unwrap_or_else(|error| panic!("{error:#}"));
        let rabbitmq = RabbitMq::start(&folder.path().join("rabbitmq")).unwrap_or_else(|error| panic!("{error:#}"));
        let stage = Self::at(rabbitmq.url(), format!("{}/0", redis.url()));
        Self { redis: Some(redis), rabbitmq: Some(rabbitmq), folder, ..stage }
    }

    /// One SQLite file, with no server.
    pub fn sqlite() -> Self {
        let folder = folder();
        let url = format!("sqlite:{}", folder.path().join("rtask.db").display());
        Self { folder, ..Self::at(url.clone(), url) }
    }

    fn at(broker: String, backend: String) -> Self {
        Self {
            broker,
            backend,
            registry: None,
            virtual_host: None,
            database: None,
            redis: None,
            rabbitmq: None,
            name: Uuid::new_v4().to_string(),
            folder: folder(),
        }
    }

    /// A folder that workers may write to.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// An id that no other test has; `own` in a script makes the same of the same.
    pub fn own(&self, id: &str) -> String {
        format!("{id}-{}", self.name)
    }

    /// Settings of every `rtask` that starts from now on, as in `rtask.toml`.
    ///
    /// # Panics
    /// When they cannot be written down.
    pub fn configure(&self, settings: &str) {
        let path = self.folder().join("rtask.toml");
        fs::write(&path, settings).unwrap_or_else(|error| panic!("failed to write {}: {error}", path.display()));
    }

    /// Settings of Celery, in its own words, for every client and worker that starts from now on.
    ///
    /// # Panics
    /// As [`Self::configure`].
    pub fn configure_celery(&self, settings: &Value) {
        let path = self.folder().join("celery.json");
        let written = fs::write(&path, settings.to_string());
        written.unwrap_or_else(|error| panic!("failed to write {}: {error}", path.display()));
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
        command.envs(self.registry.as_ref().map(|registry| ("RTASK_REGISTRY", registry)));
        command
    }

    /// A worker that is ready, with these flags.
    pub fn worker(&self, name: &str, flags: &[&str]) -> Worker {
        Worker::start(self, name, flags)
    }

    /// The worker `w1@localhost`, ready to run tests/guests/probe.
    pub fn probe(&self, flags: &[&str]) -> Worker {
        self.deploy(&environment::probe());
        self.worker("w1", flags)
    }

    /// Deploy a component, which must work; live workers are ready to run it then.
    pub fn deploy(&self, component: &Path) {
        self.rtask([OsStr::new("deploy"), component.as_os_str()]).succeeded();
    }

    /// Administer the RabbitMQ of this stage's own.
    ///
    /// # Panics
    /// When it has none, or the command fails.
    pub fn rabbitmqctl(&self, arguments: &[&str]) -> String {
        let server = self.rabbitmq.as_ref().expect("this stage has a RabbitMQ of its own");
        let mut command = Command::new(server.ctl());
        process::output(command.arg("--quiet").args(arguments)).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Send a task by `rtask call`, under this id, and wait until it has the state.
    ///
    /// # Panics
    /// When the task cannot be sent, or never has that state.
    pub fn call_until(&self, state: &str, id: &str, call: &[&str]) {
        self.rtask([&["call", "--task-id", id], call].concat()).succeeded();
        crate::wait_until(&format!("{id} is {state}"), || self.state(id) == state);
    }

    /// The state of a task, as `rtask result` tells it.
    pub fn state(&self, id: &str) -> String {
        self.rtask(["--json", "result", id]).json()["status"].as_str().unwrap_or_default().to_owned()
    }

    /// How many messages wait in a queue, as `rtask queues` tells it.
    pub fn waiting(&self, queue: &str) -> u64 {
        self.rtask(["--json", "queues", "-Q", queue]).succeeded().json()[0]["messages"].as_u64().unwrap_or_default()
    }

    /// How many messages of a queue some worker holds: of all queues, where the broker is Redis.
    ///
    /// # Panics
    /// Where the broker does not tell.
    pub fn unacknowledged(&self, queue: &str) -> u64 {
        match (&self.virtual_host, &self.rabbitmq) {
            (Some(virtual_host), _) => virtual_host.unacknowledged(queue),
            (None, Some(_)) => {
                servers::count_of(queue, &self.rabbitmqctl(&["list_queues", "name", "messages_unacknowledged"]))
            }
            (None, None) => servers::unacknowledged(&self.broker),
        }
    }

    /// # Panics
    /// When it does not come to that after [`PATIENCE`].
    pub fn wait_until_unacknowledged(&self, queue: &str, count: u64) {
        crate::wait_until(&format!("workers hold {count} messages of {queue}"), || self.unacknowledged(queue) == count);
    }

    /// Run a Python script that begins where tests/python/stage.py ends, and answer its `answer`.
    ///
    /// # Panics
    /// When the script fails, with what it complained of.
    pub fn celery(&self, script: &str) -> Value {
        let mut python = self.python();
        python.args(["-c", &format!("from stage import *\n{script}")]);
        let said = process::output(&mut python).unwrap_or_else(|error| panic!("{error:#}"));
        let last = said.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|_| panic!("the script answered nothing, but said: {said}"))
    }

    /// A Python at home on this stage, with tests/python among its modules, not yet started.
    pub fn python(&self) -> Command {
        let mut python = Command::new(path(PYTHON));
        python.current_dir(self.folder());
        python.env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/python")).env("PYTHONDONTWRITEBYTECODE", "1");
        python.env("STAGE_BROKER", &self.broker).env("STAGE_BACKEND", &self.backend).env("STAGE_NAME", &self.name);
        python
    }
}

fn folder() -> TempDir {
    folder_for_workers("rtask-test-").unwrap_or_else(|error| panic!("{error:#}"))
}
