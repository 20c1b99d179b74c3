//! The supervisor's side of a runner process: start it, load components into it, run them, notice its end.

mod link;
mod modules;
mod run;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::UnixStream,
    process::ChildStderr,
    sync::{Notify, watch},
};

pub(crate) use self::modules::MAX_ANSWER;
pub use self::run::{Event, Question, Run};
use self::{link::Link, modules::Modules};
use crate::{
    Code, Exit, Job, Limit, Limits, SandboxOptions,
    child::{self, Role},
    contract,
    frames::{Loaded, Order},
    guest,
};

/// How long a runner may take to come up.
const START_TIME: Duration = Duration::from_secs(30);
/// How long a runner may be late with a description.
const DESCRIBE_GRACE: Duration = Duration::from_secs(5);
/// A line of a runner's own complaints is cut here (bytes).
const MAX_COMPLAINT: u64 = 4 << 10;

#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    #[error("failed to start a runner process: {0}")]
    NotStarted(#[from] std::io::Error),
    #[error("the runner process did not come up: {0}")]
    Died(String),
}

/// Why a runner cannot run a component.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("it has no tasks: it does not export rtask:task/handler (was it built with an rtask SDK?)")]
    NoHandler,
    #[error(
        "it was built for version {0} of rtask:task, and this host speaks {version}; \
         build it again with an SDK of this host's version",
        version = contract::VERSION
    )]
    OtherVersion(String),
    #[error("{0}")]
    Refused(String),
    #[error("the runner process was lost: {0}")]
    Lost(String),
}

/// A runner process. Dropping it ends the process, with everything that still runs in it.
#[derive(Debug)]
pub struct Runner {
    link: Arc<Link>,
    modules: Arc<Modules>,
    pid: u32,
    next_component: AtomicU32,
    kill: Arc<Notify>,
    killed: AtomicBool,
    /// Why the process ended, once it has.
    ended: watch::Receiver<Option<String>>,
}

/// A component in a runner, identified by number there. Dropping it makes the runner forget it.
#[derive(Debug)]
pub struct ComponentId {
    number: u32,
    link: Arc<Link>,
}

impl Runner {
    pub(crate) async fn spawn(options: &SandboxOptions) -> Result<Self, RunnerError> {
        let (jobs, jobs_child) = std::os::unix::net::UnixStream::pair()?;
        let (modules, modules_child) = Modules::pair()?;
        let role = Role::Runner(guest::Settings::new(options));
        let mut process = child::spawn(role, options.account.as_ref(), jobs_child.into(), modules_child)?;
        jobs.set_nonblocking(true)?;
        let (reading, writing) = UnixStream::from_std(jobs)?.into_split();

        let pid = process.id().unwrap_or_default();
        if let Some(complaints) = process.stderr.take() {
            tokio::spawn(log_complaints(complaints, pid));
        }
        let (link, queue) = Link::new();
        tokio::spawn(link::write_orders(queue, writing));
        let (ending, ended) = watch::channel(None);
        let kill = Arc::new(Notify::new());
        tokio::spawn(link::read_reports(Arc::downgrade(&link), reading, process, ending, kill.clone()));
        let killed = AtomicBool::new(false);
        let runner =
            Self { kill, killed, link, modules: Arc::new(modules), pid, next_component: AtomicU32::new(1), ended };
        runner.come_up().await?;
        Ok(runner)
    }

    async fn come_up(&self) -> Result<(), RunnerError> {
        let ready = async {
            tokio::select! {
                () = self.link.ready.notified() => Ok(()),
                reason = self.ended() => Err(RunnerError::Died(reason)),
            }
        };
        let late = |_| RunnerError::Died(format!("it was not ready within {} s", START_TIME.as_secs()));
        tokio::time::timeout(START_TIME, ready).await.map_err(late)?
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// End the process, with everything that runs in it.
    pub fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        self.kill.notify_one();
    }

    /// Whether the process has ended or is about to, so that nothing can be run in it.
    pub fn has_ended(&self) -> bool {
        self.killed.load(Ordering::Acquire) || self.ended.borrow().is_some()
    }

    /// Wait for the process to end, and say why it did.
    pub async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "the runner process has ended".to_owned(),
        }
    }

    /// Load machine code.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub async fn load(&self, code: &Code) -> Result<ComponentId, LoadError> {
        let number = self.next_component.fetch_add(1, Ordering::Relaxed);
        let (modules, code) = (self.modules.clone(), code.clone());
        let loaded = tokio::task::spawn_blocking(move || modules.load(number, &code)).await;
        let loaded = loaded.map_err(std::io::Error::from).flatten().map_err(|error| {
            // Whatever it answers now would be taken for the answer to the next question.
            self.kill();
            LoadError::Lost(error.to_string())
        })?;
        match loaded {
            Loaded::Ready => Ok(ComponentId { number, link: self.link.clone() }),
            Loaded::NoHandler => Err(LoadError::NoHandler),
            Loaded::OtherVersion(version) => Err(LoadError::OtherVersion(version)),
            Loaded::Refused(reason) => Err(LoadError::Refused(reason)),
        }
    }
}

impl ComponentId {
    /// Run one task in a fresh instance.
    pub fn run(&self, job: Job) -> Run {
        let component = self.number;
        let limits = job.limits.clone();
        self.link.start(&limits, |run| Order::Run { run, component, job })
    }

    /// The component's manifest, as it tells it in a fresh instance.
    ///
    /// # Errors
    /// However else the instance ended.
    pub async fn describe(&self, limits: &Limits) -> Result<String, Exit> {
        let (component, limits) = (self.number, limits.clone());
        let patience = limits.time + DESCRIBE_GRACE;
        let late = Exit::Exceeded(Limit::Time(limits.time));
        let run = self.link.start(&limits.clone(), |run| Order::Describe { run, component, limits });
        match tokio::time::timeout(patience, run.exit()).await {
            Ok(Exit::Returned(manifest)) => Ok(manifest),
            Ok(other) => Err(other),
            Err(_) => Err(late),
        }
    }
}

impl Drop for ComponentId {
    fn drop(&mut self) {
        // A runner that has ended has forgotten everything.
        let _ = self.link.orders.send(Order::Unload { component: self.number });
    }
}

async fn log_complaints(complaints: ChildStderr, pid: u32) {
    let mut complaints = BufReader::new(complaints);
    let mut line = Vec::new();
    while let Ok(1..) = (&mut complaints).take(MAX_COMPLAINT).read_until(b'\n', &mut line).await {
        let text = String::from_utf8_lossy(&line);
        tracing::warn!(pid, "runner: {}", text.trim_end().escape_debug());
        line.clear();
    }
}
