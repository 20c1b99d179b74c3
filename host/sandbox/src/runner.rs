//! The supervisor's side of a runner process: start it, load components into it, run them, notice its end.

use std::{
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rustix::net::{self, AddressFamily, SocketFlags, SocketType};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::{UnixStream, unix},
    process::{Child, ChildStderr},
    sync::{Notify, mpsc, watch},
};

use crate::{
    Code, Exit, Job, Limits, Notice, SandboxOptions,
    child::{self, Role},
    frames::{self, Batch, Load, Loaded, Order, Report},
    guest,
};

/// How long a runner may take to load one component.
const LOAD_TIME: Duration = Duration::from_secs(30);
/// A line of a runner's own complaints is cut here (bytes).
const MAX_COMPLAINT: u64 = 4 << 10;
/// A runner's answer to [`Load`] is at most this long (bytes).
pub(crate) const MAX_ANSWER: usize = 16 << 10;

#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    #[error("failed to start a runner process: {0}")]
    NotStarted(#[from] std::io::Error),
}

/// Why a runner cannot run a component.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("it has no tasks: it does not export rtask:task/handler (was it built with an rtask SDK?)")]
    NoHandler,
    #[error("{0}")]
    Refused(String),
    #[error("the runner process was lost: {0}")]
    Lost(String),
}

/// A runner process. Dropping it ends the process, with everything that still runs in it.
#[derive(Debug)]
pub struct Runner {
    link: Arc<Link>,
    modules: Arc<Mutex<OwnedFd>>,
    pid: u32,
    next_component: AtomicU32,
    kill: Arc<Notify>,
    /// Why the process ended, once it has.
    ended: watch::Receiver<Option<String>>,
}

/// A component in a runner, identified by number there. Dropping it makes the runner forget it.
#[derive(Debug)]
pub struct ComponentId {
    number: u32,
    link: Arc<Link>,
}

/// What a run says; an exit is the last.
#[derive(Debug)]
pub enum Event {
    Notice(Notice),
    Exit(Exit),
}

/// One run in progress.
#[derive(Debug)]
pub struct Run {
    events: mpsc::UnboundedReceiver<Event>,
}

impl Run {
    /// The next event; after the exit, and if the process is lost, [`Exit::Lost`].
    pub async fn next(&mut self) -> Event {
        let lost = || Event::Exit(Exit::Lost("the runner process has ended".to_owned()));
        self.events.recv().await.unwrap_or_else(lost)
    }

    /// The exit, with the notices before it dropped.
    pub async fn exit(mut self) -> Exit {
        loop {
            if let Event::Exit(exit) = self.next().await {
                return exit;
            }
        }
    }
}

/// What the tasks of one runner share. Its channels need no bounds of their own: orders are bounded by the runs
/// that callers have under way, notices by each run's limits.
#[derive(Debug)]
struct Link {
    orders: mpsc::UnboundedSender<Order>,
    runs: Mutex<Runs>,
}

#[derive(Debug, Default)]
struct Runs {
    events: HashMap<u64, mpsc::UnboundedSender<Event>>,
    next: u64,
    /// Why the process ended. Set in the same step that tells the runs under way, so that none slips between.
    lost: Option<String>,
}

impl Link {
    fn runs(&self) -> MutexGuard<'_, Runs> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, order: impl FnOnce(u64) -> Order) -> Run {
        let (sender, events) = mpsc::unbounded_channel();
        let mut runs = self.runs();
        if let Some(reason) = &runs.lost {
            let _ = sender.send(Event::Exit(Exit::Lost(reason.clone())));
            return Run { events };
        }
        let run = runs.next;
        runs.next += 1;
        runs.events.insert(run, sender);
        drop(runs);
        // Fails only while the process is ending, and the run is told of that.
        let _ = self.orders.send(order(run));
        Run { events }
    }

    fn take(&self, report: Report) {
        // A caller that lost interest has dropped its end.
        match report {
            Report::Notice { run, notice } => {
                if let Some(events) = self.runs().events.get(&run) {
                    let _ = events.send(Event::Notice(notice));
                }
            }
            Report::Exit { run, exit } => {
                if let Some(events) = self.runs().events.remove(&run) {
                    let _ = events.send(Event::Exit(exit));
                }
            }
        }
    }

    fn lose(&self, reason: &str) {
        let mut runs = self.runs();
        runs.lost = Some(reason.to_owned());
        for (_, events) in runs.events.drain() {
            let _ = events.send(Event::Exit(Exit::Lost(reason.to_owned())));
        }
    }
}

impl Runner {
    pub(crate) async fn spawn(options: &SandboxOptions) -> Result<Self, RunnerError> {
        let (jobs, jobs_child) = std::os::unix::net::UnixStream::pair()?;
        let (modules, modules_child) =
            net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(std::io::Error::from)?;
        for timeout in [net::sockopt::Timeout::Recv, net::sockopt::Timeout::Send] {
            net::sockopt::set_socket_timeout(&modules, timeout, Some(LOAD_TIME)).map_err(std::io::Error::from)?;
        }
        let role = Role::Runner(guest::Settings::new(options));
        let mut process = child::spawn(role, options.account.as_ref(), jobs_child.into(), modules_child)?;
        jobs.set_nonblocking(true)?;
        let (reading, writing) = UnixStream::from_std(jobs)?.into_split();

        let pid = process.id().unwrap_or_default();
        if let Some(complaints) = process.stderr.take() {
            tokio::spawn(log_complaints(complaints, pid));
        }
        let (orders, queue) = mpsc::unbounded_channel();
        let link = Arc::new(Link { orders, runs: Mutex::default() });
        tokio::spawn(write_orders(queue, writing));
        let (ending, ended) = watch::channel(None);
        let kill = Arc::new(Notify::new());
        tokio::spawn(read_reports(Arc::downgrade(&link), reading, process, ending, kill.clone()));
        let modules = Arc::new(Mutex::new(modules));
        Ok(Self { kill, link, modules, pid, next_component: AtomicU32::new(1), ended })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// End the process, with everything that runs in it.
    pub fn kill(&self) {
        self.kill.notify_one();
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
        let load = move || {
            let modules = modules.lock().unwrap_or_else(PoisonError::into_inner);
            load_over(&modules, number, &code)
        };
        let lost = |reason: String| LoadError::Lost(reason);
        let loaded = tokio::task::spawn_blocking(load).await.map_err(|error| lost(error.to_string()))?;
        match loaded.map_err(|error| lost(error.to_string()))? {
            Loaded::Ready => Ok(ComponentId { number, link: self.link.clone() }),
            Loaded::NoHandler => Err(LoadError::NoHandler),
            Loaded::Refused(reason) => Err(LoadError::Refused(reason)),
        }
    }
}

impl ComponentId {
    /// Run one task in a fresh instance.
    pub fn run(&self, job: Job) -> Run {
        let component = self.number;
        self.link.start(|run| Order::Run { run, component, job })
    }

    /// The component's manifest, as it tells it in a fresh instance.
    ///
    /// # Errors
    /// However else the instance ended.
    pub async fn describe(&self, limits: &Limits) -> Result<String, Exit> {
        let (component, limits) = (self.number, limits.clone());
        match self.link.start(|run| Order::Describe { run, component, limits }).exit().await {
            Exit::Returned(manifest) => Ok(manifest),
            other => Err(other),
        }
    }
}

impl Drop for ComponentId {
    fn drop(&mut self) {
        // A runner that has ended has forgotten everything.
        let _ = self.link.orders.send(Order::Unload { component: self.number });
    }
}

fn load_over(modules: &OwnedFd, component: u32, code: &Code) -> std::io::Result<Loaded> {
    let load = postcard::to_stdvec(&Load { component }).map_err(std::io::Error::other)?;
    let descriptors = [code.descriptor()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = net::SendAncillaryBuffer::new(&mut space);
    if !control.push(net::SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(std::io::Error::other("no room for a descriptor"));
    }
    let flags = net::SendFlags::NOSIGNAL;
    net::sendmsg(modules.as_fd(), &[std::io::IoSlice::new(&load)], &mut control, flags)?;
    let mut answer = vec![0; MAX_ANSWER];
    let (length, _) = net::recv(modules, answer.as_mut_slice(), net::RecvFlags::empty())?;
    if length == 0 {
        return Err(std::io::Error::other("the runner process has ended"));
    }
    postcard::from_bytes(&answer[..length]).map_err(std::io::Error::other)
}

/// Ends when the last [`Runner`] and [`ComponentId`] are gone; the runner sees the end of its stream then.
async fn write_orders(mut orders: mpsc::UnboundedReceiver<Order>, mut to: unix::OwnedWriteHalf) {
    let mut batch = Batch::new();
    while let Some(order) = orders.recv().await {
        batch.push(&order);
        while !batch.is_full()
            && let Ok(order) = orders.try_recv()
        {
            batch.push(&order);
        }
        if batch.send(&mut to).await.is_err() {
            return;
        }
    }
}

/// Ends when the process does, or breaks the protocol, which ends it too.
async fn read_reports(
    link: std::sync::Weak<Link>,
    mut from: unix::OwnedReadHalf,
    mut process: Child,
    ending: watch::Sender<Option<String>>,
    kill: Arc<Notify>,
) {
    let mut buffer = Vec::new();
    let broken = loop {
        let take = |report| {
            if let Some(link) = link.upgrade() {
                link.take(report);
            }
        };
        let received = tokio::select! {
            received = frames::receive(&mut from, &mut buffer, take) => received,
            () = kill.notified() => break None,
        };
        match received {
            Ok(true) => {}
            Ok(false) => break None,
            Err(error) => break Some(error),
        }
    };
    // A process that closed its end but lives on is of no use.
    let _ = process.start_kill();
    let status = process.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string());
    let reason = match broken {
        Some(error) => format!("{error}; {status}"),
        None => status,
    };
    if let Some(link) = link.upgrade() {
        tracing::error!(reason, "a runner process was lost");
        link.lose(&reason);
    }
    ending.send_replace(Some(reason));
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
