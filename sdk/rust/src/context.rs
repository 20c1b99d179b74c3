//! What a task may know of its run, and do in it besides returning.

use std::{cell::OnceCell, time::Duration};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::{Error, host};

/// This run: who asked for it, what time is left, and how to tell of progress.
///
/// A task that wants it takes `&Context` as its first parameter. Nothing is read from the host before it is asked for.
pub struct Context {
    pub(crate) host: host::Host,
    request: OnceCell<Request>,
}

/// The object that `context.request` answers, with Celery's names.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Request {
    #[serde(deserialize_with = "null_is_default")]
    id: String,
    #[serde(deserialize_with = "null_is_default")]
    task: String,
    #[serde(deserialize_with = "null_is_default")]
    retries: u32,
    root_id: Option<String>,
    parent_id: Option<String>,
    group: Option<String>,
    eta: Option<String>,
    expires: Option<String>,
    #[serde(deserialize_with = "null_is_default")]
    priority: u8,
    #[serde(deserialize_with = "null_is_default")]
    hostname: String,
    #[serde(deserialize_with = "null_is_default")]
    headers: Map<String, Value>,
    #[serde(deserialize_with = "null_is_default")]
    module: String,
    #[serde(deserialize_with = "null_is_default")]
    version: u32,
}

fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl Context {
    pub(crate) fn current() -> Self {
        Self::on(host::Host::new())
    }

    pub(crate) fn on(host: host::Host) -> Self {
        Self { host, request: OnceCell::new() }
    }

    fn request(&self) -> &Request {
        self.request.get_or_init(|| {
            serde_json::from_str(&self.host.request()).expect("the host tells of a run as task.wit says")
        })
    }

    /// The task's id, by which its result is found.
    pub fn id(&self) -> &str {
        &self.request().id
    }

    /// The name that was called, such as `hello.add`.
    pub fn task(&self) -> &str {
        &self.request().task
    }

    /// How often this task was retried before; 0 in its first run.
    pub fn retries(&self) -> u32 {
        self.request().retries
    }

    /// The id of the first task of the workflow, which may be this one.
    pub fn root_id(&self) -> Option<&str> {
        self.request().root_id.as_deref()
    }

    /// The id of the task that sent this one.
    pub fn parent_id(&self) -> Option<&str> {
        self.request().parent_id.as_deref()
    }

    /// The id of the group that the task is part of.
    pub fn group(&self) -> Option<&str> {
        self.request().group.as_deref()
    }

    /// Not before when the task was to run, in ISO 8601.
    pub fn eta(&self) -> Option<&str> {
        self.request().eta.as_deref()
    }

    /// When the task would not have been run any more, in ISO 8601.
    pub fn expires(&self) -> Option<&str> {
        self.request().expires.as_deref()
    }

    /// The message's priority.
    pub fn priority(&self) -> u8 {
        self.request().priority
    }

    /// The worker's node name, such as `celery@host`.
    pub fn hostname(&self) -> &str {
        &self.request().hostname
    }

    /// The message's headers that are not Celery's own.
    pub fn headers(&self) -> &Map<String, Value> {
        &self.request().headers
    }

    /// The name under which this module is deployed.
    pub fn module(&self) -> &str {
        &self.request().module
    }

    /// The deployed version of this module: 1 for its first.
    pub fn version(&self) -> u32 {
        self.request().version
    }

    /// Store a state of the task's own, such as `PROGRESS`; `meta` is what `AsyncResult.info` answers meanwhile.
    ///
    /// # Errors
    /// `TypeError` for a `meta` that JSON cannot hold.
    #[track_caller]
    pub fn set_state(&self, state: &str, meta: impl Serialize) -> Result<(), Error> {
        match serde_json::to_string(&meta) {
            Ok(meta) => {
                self.host.set_state(state, &meta);
                Ok(())
            }
            Err(error) => Err(Error::type_error(format_args!("the meta of state {state}: {error}"))),
        }
    }

    /// What is left until the hard time limit ends this run.
    pub fn remaining(&self) -> Duration {
        Duration::from_millis(self.host.remaining_ms().into())
    }

    /// Wait without using the processor, rounded up to milliseconds.
    ///
    /// No more than 49 days at once, which no time limit allows.
    pub fn sleep(&self, duration: Duration) {
        let milliseconds = duration.as_nanos().div_ceil(1_000_000);
        self.host.sleep(u32::try_from(milliseconds).unwrap_or(u32::MAX));
    }
}
