//! `limits`: what one task, or one module, may use.

use std::{num::NonZeroU32, time::Duration};

use rtask_sandbox::CompileLimits;
use rtask_worker::LONGEST_RUN;
use serde::{Deserialize, Serialize};

use super::{
    Seconds, Settings, Size,
    units::{bounded, value},
};

/// What one task, or one module, may use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Of a task that asks for no other.
    pub memory: Size,
    /// The longest time limit that a task or a message may ask for; 0 for any.
    pub max_time: Seconds,
    /// The most memory that a task may ask for.
    pub max_memory: Size,
    /// A result's JSON.
    #[serde(deserialize_with = "bounded")]
    pub result: Size,
    /// Log lines and standard output of one run.
    pub log: Size,
    /// The body of a message: arguments and what is to follow.
    #[serde(deserialize_with = "bounded")]
    pub arguments: Size,
    /// A component that is deployed or compiled.
    #[serde(deserialize_with = "bounded")]
    pub component: Size,
    /// Whole seconds that compiling one may take.
    #[serde(deserialize_with = "value")]
    pub compile_time: NonZeroU32,
}

impl Default for Limits {
    fn default() -> Self {
        let (worker, compile) = (rtask_worker::Options::default(), CompileLimits::default());
        let compile_seconds = u32::try_from(compile.time.as_secs()).unwrap_or(u32::MAX);
        Self {
            memory: Size(worker.limits.memory),
            max_time: worker.max_time.into(),
            max_memory: Size(worker.max_memory),
            result: Size(worker.limits.result),
            log: Size(worker.limits.log),
            arguments: Size(worker.accept.max_body as u64),
            component: Size(compile.component),
            compile_time: NonZeroU32::new(compile_seconds).unwrap_or(NonZeroU32::MIN),
        }
    }
}

impl Settings {
    /// Of a run of a task that sets none itself.
    pub fn run_limits(&self) -> rtask_sandbox::Limits {
        rtask_sandbox::Limits {
            time: self.task_time_limit.limit().unwrap_or(LONGEST_RUN),
            soft_time: self.task_soft_time_limit.limit(),
            memory: self.limits.memory.0,
            result: self.limits.result.0,
            log: self.limits.log.0,
            ..rtask_sandbox::Limits::default()
        }
    }
}

impl Limits {
    pub fn longest_run(&self) -> Duration {
        self.max_time.limit().unwrap_or(LONGEST_RUN)
    }
}
