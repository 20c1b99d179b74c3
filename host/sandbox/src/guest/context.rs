//! What a guest may ask of its host: interface `rtask:task/context`.

use std::time::{Duration, Instant};

use super::instance::State;
use crate::{Ask, Exception, Level, Limit, Limits};

wasmtime::component::bindgen!({
    world: "task",
    path: "../../sdk/wit",
    imports: {
        "rtask:task/context.sleep": async,
        "rtask:task/context.send": async | trappable,
        "rtask:task/context.set-state": trappable,
        "rtask:task/context.log": trappable,
        "rtask:task/context.request": trappable,
    },
    exports: { default: async },
});

use rtask::task::{context, types};

pub(super) use exports::rtask::task::handler::Failure;

impl types::Host for State {}

impl context::Host for State {
    fn request(&mut self) -> wasmtime::Result<String> {
        self.in_time()?;
        Ok(self.request.clone())
    }

    fn set_state(&mut self, state: String, meta: String) -> wasmtime::Result<()> {
        self.in_time()?;
        self.notices.state(state, meta).map_err(|limit| self.exceed(limit))
    }

    fn log(&mut self, level: context::Level, message: String) -> wasmtime::Result<()> {
        self.in_time()?;
        let level = match level {
            context::Level::Debug => Level::Debug,
            context::Level::Info => Level::Info,
            context::Level::Warning => Level::Warning,
            context::Level::Critical => Level::Critical,
        };
        self.notices.log(level, message);
        Ok(())
    }

    fn remaining_ms(&mut self) -> u32 {
        milliseconds(self.deadlines.remaining())
    }

    fn soft_remaining_ms(&mut self) -> Option<u32> {
        self.deadlines.soft_remaining().map(milliseconds)
    }

    async fn sleep(&mut self, milliseconds: u32) -> bool {
        self.deadlines.sleep(Duration::from_millis(milliseconds.into())).await
    }

    async fn send(&mut self, signature: String) -> wasmtime::Result<Result<String, types::Exception>> {
        self.in_time()?;
        self.sends.spend(signature.len()).map_err(|limit| self.exceed(limit))?;
        let answer = self.conversation.ask(Ask::Send(signature)).await;
        Ok(answer.map_err(types::Exception::from))
    }

    fn panicked(&mut self, exception: types::Exception) {
        self.panicked = Some(self.bounded(exception));
    }
}

impl State {
    /// The epoch is looked at where a function begins and where a loop goes round, so calls in a straight line have
    /// to look at the clock themselves.
    fn in_time(&mut self) -> wasmtime::Result<()> {
        self.deadlines.exceeded(Instant::now()).map_or(Ok(()), |limit| Err(self.exceed(limit)))
    }

    /// The error that ends the run for having exceeded `limit`.
    pub(super) fn exceed(&mut self, limit: Limit) -> wasmtime::Error {
        self.exceeded = Some(limit);
        wasmtime::format_err!("limit exceeded")
    }

    /// A guest's exception, cut to the run's limit for all of its parts together.
    pub(super) fn bounded(&self, exception: types::Exception) -> Exception {
        let mut left = self.exception_limit;
        // A cut array would be no JSON, so an argument list that is too long is replaced as a whole.
        let arguments = match exception.arguments {
            arguments if arguments.len() <= left => arguments,
            _ => r#"["the exception's arguments were larger than the limit allows"]"#.to_owned(),
        };
        left = left.saturating_sub(arguments.len());
        let mut cut = |mut text: String| {
            text.truncate(text.floor_char_boundary(left));
            left -= text.len();
            text
        };
        Exception {
            kind: cut(exception.kind),
            module: exception.module.map(&mut cut),
            traceback: exception.traceback.map(&mut cut),
            arguments,
        }
    }
}

impl From<Exception> for types::Exception {
    fn from(exception: Exception) -> Self {
        let Exception { kind, module, arguments, traceback } = exception;
        Self { kind, module, arguments, traceback }
    }
}

/// Rounded up, so that 0 means that none is left.
fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

/// What a run may still send.
pub(super) struct Sends {
    most: u32,
    left: u32,
    /// Bytes of one signature.
    size: u64,
}

impl Sends {
    pub(super) fn new(limits: &Limits) -> Self {
        Self { most: limits.sends, left: limits.sends, size: limits.send_size }
    }

    fn spend(&mut self, size: usize) -> Result<(), Limit> {
        if size as u64 > self.size {
            return Err(Limit::SendSize(self.size));
        }
        self.left = self.left.checked_sub(1).ok_or(Limit::Sends(self.most))?;
        Ok(())
    }
}
