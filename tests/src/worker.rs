//! A worker process under test.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use xtask::process;

use crate::{PATIENCE, Stage};

/// A worker that was ready. Dropping it kills it.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    log: Arc<Log>,
}

/// What a worker has logged, line by line.
#[derive(Debug, Default)]
struct Log {
    state: Mutex<LogState>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct LogState {
    lines: Vec<String>,
    ended: bool,
}

impl Log {
    fn state(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(&self, stderr: impl Read) {
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            self.state().lines.push(String::from_utf8_lossy(&line).into_owned());
            self.grown.notify_all();
        }
        self.state().ended = true;
        self.grown.notify_all();
    }
}

impl Worker {
    /// Start it as `name@localhost`, and wait until it consumes.
    ///
    /// # Panics
    /// When it does not become ready, with its log.
    pub fn start(stage: &Stage, name: &str, flags: &[&str]) -> Self {
        Self::launch(stage.command(), name, flags)
    }

    /// The same with a variable in its environment.
    ///
    /// # Panics
    /// As [`Worker::start`].
    pub fn start_with(stage: &Stage, variable: (&str, &str), name: &str, flags: &[&str]) -> Self {
        let mut command = stage.command();
        command.env(variable.0, variable.1);
        Self::launch(command, name, flags)
    }

    /// The same as a job of its own, as a shell starts it on a terminal.
    ///
    /// # Panics
    /// As [`Worker::start`].
    pub fn start_as_job(stage: &Stage, name: &str, flags: &[&str]) -> Self {
        let mut command = stage.command();
        command.process_group(0);
        Self::launch(command, name, flags)
    }

    /// A worker of Celery's own, with the tasks of tests/python/peer.py, beside or instead of one of ours.
    ///
    /// # Panics
    /// As [`Worker::start`].
    pub fn start_celery(stage: &Stage, name: &str, flags: &[&str]) -> Self {
        let mut command = stage.python();
        command.args(["-m", "celery", "-A", "peer"]);
        Self::launch(command, name, &[&["-l", "INFO"], flags].concat())
    }

    fn launch(mut command: Command, name: &str, flags: &[&str]) -> Self {
        let node = format!("{name}@localhost");
        command.args(["worker", "-n", &node]).args(flags);
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("failed to start a worker: {error}"));
        let log = Arc::new(Log::default());
        let stderr = child.stderr.take().expect("its standard error is a pipe");
        let reader = log.clone();
        std::thread::spawn(move || reader.follow(stderr));
        let worker = Self { child, log };
        worker.wait_for_log(&format!("{node} ready."));
        worker
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The worker and all that it started, by process id.
    pub fn processes(&self) -> BTreeSet<u32> {
        let tree = process::tree(self.pid()).unwrap_or_else(|error| panic!("{error:#}"));
        tree.into_iter().collect()
    }

    /// The processes that it started.
    pub fn children(&self) -> BTreeSet<u32> {
        let mut processes = self.processes();
        processes.remove(&self.pid());
        processes
    }

    /// Wait until a line of the log contains `text`, and answer the first that does.
    ///
    /// # Panics
    /// When the worker ends before, or after [`PATIENCE`]; with the log.
    pub fn wait_for_log(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.log.state();
        loop {
            if let Some(line) = state.lines.iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!state.ended && !left.is_zero(), "no `{text}` in the worker's log:\n{}", state.lines.join("\n"));
            state = self.log.grown.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Everything that it has logged so far.
    pub fn log(&self) -> String {
        self.log.state().lines.join("\n")
    }

    /// Ask it to end in good order (TERM), without waiting.
    pub fn ask_to_end(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// As a supervisor does, or a person with `kill`: to the worker alone.
    pub fn signal(&self, signal: Signal) {
        // A worker that has ended already is found out by whoever waits for it.
        let _ = kill(Pid::from_raw(self.pid().cast_signed()), signal);
    }

    /// What a terminal does to a job: every process of it gets the signal.
    pub fn press_ctrl_c(&self) {
        // As above.
        let _ = killpg(Pid::from_raw(self.pid().cast_signed()), Signal::SIGINT);
    }

    /// End its runner process with KILL, as the kernel does when memory runs out.
    pub fn kill_runner(&self) {
        for child in self.children() {
            // A compiler that has just ended is no loss.
            let _ = kill(Pid::from_raw(child.cast_signed()), Signal::SIGKILL);
        }
    }

    /// Wait for its end.
    ///
    /// # Panics
    /// When it does not come.
    pub fn wait(mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.log.state();
        while !state.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the worker did not end; its log:\n{}", state.lines.join("\n"));
            state = self.log.grown.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        self.child.wait().expect("a child can be waited for")
    }

    /// Kill it (KILL): no goodbye to anyone.
    pub fn kill(self) {
        drop(self);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the log of worker {}:\n{}", self.pid(), self.log());
        }
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
