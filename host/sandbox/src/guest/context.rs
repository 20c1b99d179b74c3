//! What a guest may ask of its host: interface `rtask:task/context`.

use std::time::{Duration, Instant};

use super::instance::State;
use crate::{Exception, Level, Limit};

wasmtime::component::bindgen!({
    world: "task",
    path: "../../sdk/wit",
    imports: {
        "rtask:task/context.sleep": async,
        "rtask:task/context.set-state": trappable,
        "rtask:task/context.log": trappable,
        "rtask:task/context.request": trappable,
    },
    exports: { default: async },
});

use rtask::task::{context, types};

/// The interface that makes a component a module.
pub(super) const HANDLER: &str = "rtask:task/handler@0.1.0";

pub(super) use exports::rtask::task::handler::Failure;

impl types::Host for State {}

impl context::Host for State {
    fn request(&mut self) -> wasmtime::Result<String> {
        self.in_time()?;
        Ok(self.request.clone())
    }

    fn set_state(&mut self, state: String, meta: String) -> wasmtime::Result<()> {
        self.in_time()?;
        self.notices.state(state, meta).map_err(|limit: Limit| {
            self.exceeded = Some(limit);
            wasmtime::format_err!("limit exceeded")
        })
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
        let left = self.deadline.saturating_duration_since(Instant::now());
        u32::try_from(left.as_millis()).unwrap_or(u32::MAX)
    }

    async fn sleep(&mut self, milliseconds: u32) {
        tokio::time::sleep(Duration::from_millis(milliseconds.into())).await;
    }

    fn panicked(&mut self, exception: types::Exception) {
        self.panicked = Some(self.bounded(exception));
    }
}

impl State {
    /// The epoch is looked at where a function begins and where a loop goes round, so calls in a straight line have
    /// to look at the clock themselves.
    fn in_time(&self) -> wasmtime::Result<()> {
        if Instant::now() < self.deadline { Ok(()) } else { Err(wasmtime::Trap::Interrupt.into()) }
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
