//! What a task may do in its run besides returning.

use std::{
    cell::OnceCell,
    fmt::{self, Display},
    time::Duration,
};

use serde::Serialize;
use serde_json::Value;

use crate::{Error, Retry, Signature, host, request::Request};

/// This run: who asked for it, what time is left, how to tell of progress, and how to send another task.
///
/// A task that wants it takes `&Context` as its first parameter. Nothing is read from the host before it is asked for.
pub struct Context {
    pub(crate) host: host::Host,
    request: OnceCell<Request>,
}

impl Context {
    pub(crate) fn current() -> Self {
        Self::on(host::Host::new())
    }

    pub(crate) fn on(host: host::Host) -> Self {
        Self { host, request: OnceCell::new() }
    }

    pub(crate) fn known(&self) -> &Request {
        self.request.get_or_init(|| {
            serde_json::from_str(&self.host.request()).expect("the host tells of a run as task.wit says")
        })
    }

    /// All that the host tells of the run, as an object with Celery's names.
    pub fn request(&self) -> Value {
        serde_json::from_str(&self.host.request()).expect("the host tells of a run as task.wit says")
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

    /// Ask for another run of this task, under the same id. What the [`Retry`] leaves open is as in this run, or as
    /// the task's options say.
    ///
    /// ```
    /// # use std::{io, time::Duration};
    /// # use rtask::{Context, Error, task};
    /// # fn fetch(url: &str) -> io::Result<String> { Ok(url.to_owned()) }
    /// #[task(max_retries = 5)]
    /// fn load(context: &Context, url: String) -> Result<usize, Error> {
    ///     match fetch(&url) {
    ///         Ok(page) => Ok(page.len()),
    ///         Err(error) => Err(context.retry().cause(error).countdown(Duration::from_secs(5)).into()),
    ///     }
    /// }
    /// ```
    pub fn retry(&self) -> Retry {
        Retry::new()
    }

    /// Send a task, and answer its id once the broker keeps it. The result of this task tells of it as its child.
    ///
    /// ```
    /// # use rtask::{Context, Error, signature, task};
    /// #[task]
    /// fn order(context: &Context, item: String) -> Result<String, Error> {
    ///     context.send("shop.count")?;
    ///     context.send(signature("shop.pack").args([item]).link("shop.tell").queue("packers"))
    /// }
    /// ```
    ///
    /// # Errors
    /// `TypeError` for arguments that JSON cannot hold, and what the host answers: the task may not be sent, or the
    /// broker does not take it.
    #[track_caller]
    pub fn send(&self, signature: impl Into<Signature>) -> Result<String, Error> {
        let json = signature.into().into_json()?;
        self.host.send(&json.to_string())
    }

    /// What is left until the hard time limit ends this run.
    pub fn remaining(&self) -> Duration {
        Duration::from_millis(self.host.remaining_ms().into())
    }

    /// What is left until the soft time limit, which asks this run to come to an end; zero from then on, none without
    /// one.
    ///
    /// A run that was told, here or by [`check`](Self::check) or [`sleep`](Self::sleep), may go on until the hard limit.
    /// One that did not ask is ended a second after the soft limit.
    pub fn soft_remaining(&self) -> Option<Duration> {
        self.host.soft_remaining_ms().map(|left| Duration::from_millis(left.into()))
    }

    /// For a loop that computes: `context.check()?` at every turn ends the task in time.
    ///
    /// # Errors
    /// When the soft time limit is over.
    pub fn check(&self) -> Result<(), SoftTimeLimitExceeded> {
        match self.host.soft_remaining_ms() {
            Some(0) => Err(SoftTimeLimitExceeded),
            Some(_) | None => Ok(()),
        }
    }

    /// Wait without using the processor, rounded up to milliseconds.
    ///
    /// No more than 49 days at once.
    ///
    /// # Errors
    /// When the soft time limit has passed. The first sleep that meets it ends there, or at once; later ones take
    /// their time, so that a task can wait while it cleans up.
    pub fn sleep(&self, duration: Duration) -> Result<(), SoftTimeLimitExceeded> {
        let milliseconds = duration.as_nanos().div_ceil(1_000_000);
        match self.host.sleep(u32::try_from(milliseconds).unwrap_or(u32::MAX)) {
            true => Err(SoftTimeLimitExceeded),
            false => Ok(()),
        }
    }
}

/// The soft time limit is over: what is left of the hard one is for coming to an end.
///
/// `?` makes it the failure that Celery's clients know, `billiard.exceptions.SoftTimeLimitExceeded`:
///
/// ```
/// # use std::time::Duration;
/// # use rtask::{Context, Error, task};
/// #[task(soft_time_limit = 10, time_limit = 12)]
/// fn count(context: &Context) -> Result<u64, Error> {
///     let mut count = 0;
///     while context.check().is_ok() {
///         count += 1;
/// #       if count == 3 { break }
///     }
///     context.sleep(Duration::from_millis(1))?; // for those who do not catch it
///     Ok(count)
/// }
/// ```
///
/// It is no `std::error::Error`, so that it can choose that class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoftTimeLimitExceeded;

impl Display for SoftTimeLimitExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the soft time limit is over")
    }
}

impl From<SoftTimeLimitExceeded> for Error {
    #[track_caller]
    fn from(SoftTimeLimitExceeded: SoftTimeLimitExceeded) -> Self {
        Self::new("SoftTimeLimitExceeded").module("billiard.exceptions")
    }
}
