//! A task to be sent, as Celery writes signatures.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    Error,
    object::{self, Object},
};

/// A task with arguments and options, to [`send`](crate::Context::send) or to [`link`](Self::link); see [`signature`].
///
/// What it leaves open is as the task's own options and the settings say.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a signature is only written down: pass it to `context.send` or `link`"]
pub struct Signature {
    task: String,
    args: Result<Value, Error>,
    kwargs: Object,
    options: Object,
    headers: Object,
    links: Vec<Signature>,
    error_links: Vec<Signature>,
    immutable: bool,
}

/// The task of this name, which may be any that a worker of the fleet knows.
///
/// ```
/// use std::time::Duration;
/// use rtask::signature;
///
/// let greeting = signature("shop.greet").args(("Ada", 3)).kwarg("word", "Hello").countdown(Duration::from_secs(5));
/// ```
pub fn signature(task: impl Into<String>) -> Signature {
    Signature {
        task: task.into(),
        args: Ok(Value::Array(Vec::new())),
        kwargs: Object::default(),
        options: Object::default(),
        headers: Object::default(),
        links: Vec::new(),
        error_links: Vec::new(),
        immutable: false,
    }
}

impl Signature {
    /// The positional arguments: a tuple, array or `Vec`; anything else is the one argument.
    #[track_caller]
    pub fn args(mut self, arguments: impl Serialize) -> Self {
        self.args = object::arguments(&arguments);
        self
    }

    /// One keyword argument.
    #[track_caller]
    pub fn kwarg(mut self, name: &str, value: impl Serialize) -> Self {
        self.kwargs.set(name, object::value(name, &value));
        self
    }

    /// All keyword arguments: a map, or a struct of one's own.
    #[track_caller]
    pub fn kwargs(mut self, arguments: impl Serialize) -> Self {
        self.kwargs = object::keywords(&arguments).into();
        self
    }

    /// The task's id; a new one otherwise.
    pub fn task_id(self, id: impl Into<String>) -> Self {
        self.option("task_id", id.into())
    }

    /// Do not begin before this has passed.
    pub fn countdown(self, wait: Duration) -> Self {
        self.option("countdown", wait.as_secs_f64())
    }

    /// Do not begin before this time, in ISO 8601.
    pub fn eta(self, time: impl Into<String>) -> Self {
        self.option("eta", time.into())
    }

    /// Do not begin after this has passed.
    pub fn expires(self, after: Duration) -> Self {
        self.option("expires", after.as_secs_f64())
    }

    pub fn priority(self, priority: u8) -> Self {
        self.option("priority", priority)
    }

    pub fn queue(self, name: impl Into<String>) -> Self {
        self.option("queue", name.into())
    }

    pub fn exchange(self, name: impl Into<String>) -> Self {
        self.option("exchange", name.into())
    }

    pub fn routing_key(self, key: impl Into<String>) -> Self {
        self.option("routing_key", key.into())
    }

    /// One header of the message, for the task to find in [`headers`](crate::Context::headers).
    #[track_caller]
    pub fn header(mut self, name: &str, value: impl Serialize) -> Self {
        self.headers.set(name, object::value(name, &value));
        self
    }

    pub fn time_limit(self, limit: Duration) -> Self {
        self.option("time_limit", limit.as_secs_f64())
    }

    pub fn soft_time_limit(self, limit: Duration) -> Self {
        self.option("soft_time_limit", limit.as_secs_f64())
    }

    /// Whether to store no result, in place of the task's own option.
    pub fn ignore_result(self, ignore: bool) -> Self {
        self.option("ignore_result", ignore)
    }

    /// The name under which logs and monitors show the task.
    pub fn shadow(self, name: impl Into<String>) -> Self {
        self.option("shadow", name.into())
    }

    /// Any other option by Celery's name, such as `compression`.
    #[track_caller]
    pub fn option(mut self, name: &str, value: impl Serialize) -> Self {
        self.options.set(name, object::value(name, &value));
        self
    }

    /// A task that is sent when this one succeeds, with the result before its own arguments; may be said again.
    pub fn link(mut self, callback: impl Into<Signature>) -> Self {
        self.links.push(callback.into());
        self
    }

    /// A task that is sent when this one fails, with the id of this one as its argument; may be said again.
    pub fn link_error(mut self, errback: impl Into<Signature>) -> Self {
        self.error_links.push(errback.into());
        self
    }

    /// As a callback, take no result: Celery's `.si()`.
    pub fn immutable(mut self) -> Self {
        self.immutable = true;
        self
    }

    pub(crate) fn into_json(self) -> Result<Value, Error> {
        let mut options = self.options.finish()?;
        let headers = self.headers.finish()?;
        if !headers.is_empty() {
            options.insert("headers".to_owned(), headers.into());
        }
        for (name, links) in [("link", self.links), ("link_error", self.error_links)] {
            if !links.is_empty() {
                let links: Result<Vec<Value>, Error> = links.into_iter().map(Self::into_json).collect();
                options.insert(name.to_owned(), links?.into());
            }
        }
        Ok(json!({
            "task": self.task,
            "args": self.args?,
            "kwargs": self.kwargs.finish()?,
            "options": options,
            "subtask_type": null,
            "immutable": self.immutable,
        }))
    }
}

impl From<&str> for Signature {
    fn from(task: &str) -> Self {
        signature(task)
    }
}

impl From<String> for Signature {
    fn from(task: String) -> Self {
        signature(task)
    }
}
