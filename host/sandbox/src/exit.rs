//! What is asked of a run, and every way in which it can end.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a run may use. One limit reached ends the run with [`Exit::Exceeded`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Wall time of instantiation, run and post-return together.
    pub time: Duration,
    /// When the run is told to come to an end. One that does not listen is ended a second later. None is the same as
    /// one that `time` does not leave room for.
    pub soft_time: Option<Duration>,
    /// Bytes, summed over all linear memories.
    pub memory: u64,
    /// Elements, summed over all tables.
    pub table_elements: u64,
    /// Bytes of the result's JSON, or of the options of a retry.
    pub result: u64,
    /// Bytes of an exception's parts, together; longer ones are cut.
    pub exception: u64,
    /// Bytes of log lines, standard output and standard error together; what is over is dropped and said so.
    pub log: u64,
    /// States that the task sets itself: how many, and bytes together.
    pub states: u32,
    pub states_size: u64,
    /// Tasks that the task sends: how many, and bytes of each one's signature.
    pub sends: u32,
    pub send_size: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(300),
            soft_time: None,
            memory: 64 << 20,
            table_elements: 100_000,
            result: 16 << 20,
            exception: 64 << 10,
            log: 64 << 10,
            states: 1_000,
            states_size: 1 << 20,
            sends: 1_000,
            send_size: 4 << 20,
        }
    }
}

/// One call of a component's `run`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    pub task: String,
    /// `{"args": [...], "kwargs": {...}}`.
    pub payload: String,
    /// What `context.request` answers.
    pub request: String,
    pub limits: Limits,
}

/// An exception in the three parts of Celery's record, as a guest raised it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception {
    pub kind: String,
    pub module: Option<String>,
    /// A JSON array, as far as the guest is to be believed.
    pub arguments: String,
    pub traceback: Option<String>,
}

impl Exception {
    /// What a guest is told when nobody takes its question.
    pub(crate) fn unanswered() -> Self {
        Self {
            kind: "RuntimeError".to_owned(),
            module: Some("builtins".to_owned()),
            arguments: r#"["the worker did not answer"]"#.to_owned(),
            traceback: None,
        }
    }
}

/// Every way in which a run ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Exit {
    /// JSON, as far as the guest is to be believed.
    Returned(String),
    Raised(Exception),
    /// The task asks to be run again.
    Retry {
        cause: Option<Exception>,
        /// A JSON object, as far as the guest is to be believed; see `retry-request` in sdk/wit/task.wit.
        options: String,
    },
    Rejected {
        reason: String,
        requeue: bool,
    },
    Ignored,
    /// The guest broke a rule of wasm or of its host. `panicked` is what it said of it before.
    Trapped {
        reason: String,
        backtrace: Option<String>,
        panicked: Option<Exception>,
    },
    Exceeded(Limit),
    /// It was ended from outside ([`crate::Run::cancel`]).
    Cancelled,
    /// The runner process died under it.
    Lost(String),
}

/// Which limit was exceeded, with its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Limit {
    Time(Duration),
    /// The run had not asked for it, so that nobody could tell it.
    SoftTime(Duration),
    /// Bytes.
    Memory(u64),
    /// Elements.
    Table(u64),
    /// The native stack.
    Stack,
    /// Bytes.
    Result(u64),
    /// Updates of a run's own state.
    States(u32),
    /// Bytes of these.
    StatesSize(u64),
    /// Tasks sent.
    Sends(u32),
    /// Bytes of one of these.
    SendSize(u64),
}

/// Severity of a guest's log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Level {
    Debug,
    Info,
    Warning,
    Critical,
}

/// What a run says before it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    Log {
        level: Level,
        message: String,
    },
    /// JSON meta, as far as the guest is to be believed.
    State {
        state: String,
        meta: String,
    },
}

/// What a run asks of its host, and waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Send a task: a signature in JSON, as far as the guest is to be believed. The answer is the new task's id.
    Send(String),
}

/// What a host answers: a text, or an exception that is raised in the guest.
pub type Answer = Result<String, Exception>;
