//! Compiles components and runs them, each in a process that holds nothing worth taking.
//!
//! The supervisor side ([`Sandbox`], [`Runner`]) never parses or runs wasm; the child side (`guest`, `compiler`'s
//! child half) never sees a credential, a socket or a file of the supervisor's. Both are the same executable:
//! [`child::dispatch`] decides at the top of `main` which half this process is. Nothing here has heard of queues,
//! tenants or Celery.
//!
//! Read `exit` first (what a run can end as), then `runner` and `compiler` (the supervisor's side), then
//! [`child`] (how a child is locked in), then `guest` (one instance from its first page to its last).

pub mod child;
mod code;
mod compiler;
mod contract;
mod engine;
mod exit;
mod frames;
mod guest;
pub mod privileges;
mod runner;
pub mod self_test;

use std::{path::PathBuf, sync::Arc};

use tokio::sync::Semaphore;

pub use code::{CacheError, Code};
pub use compiler::{CompileError, CompileLimits};
pub use exit::{Answer, Ask, Exception, Exit, Job, Level, Limit, Limits, Notice};
pub use frames::MAX_PAYLOAD;
pub use privileges::Account;
pub use runner::{ComponentId, Event, LoadError, Question, Run, Runner, RunnerError};

/// How children are started and what they may use.
#[derive(Clone, Debug)]
pub struct SandboxOptions {
    /// Who the children of a root process become; without one, `nobody`. Other processes' children stay who
    /// their parent is.
    pub account: Option<Account>,
    /// Where machine code is kept between starts; none compiles anew each time.
    pub cache: Option<PathBuf>,
    /// Threads of a runner that run guests.
    pub threads: usize,
    /// Runs of a runner at the same time; more wait.
    pub slots: usize,
    /// The most memory that any run may be given, in bytes.
    pub max_memory: u64,
    pub compile: CompileLimits,
}

impl Default for SandboxOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            account: None,
            cache: None,
            threads: cores,
            slots: 16,
            max_memory: 1 << 30,
            compile: CompileLimits::default(),
        }
    }
}

/// Starts compilers and runners.
#[derive(Clone)]
pub struct Sandbox {
    options: Arc<SandboxOptions>,
    /// Compilers run one at a time: each may use all cores and much memory.
    compiling: Arc<Semaphore>,
    cache: Option<Arc<code::Cache>>,
}

impl Sandbox {
    /// # Errors
    /// When the cache folder cannot be made or is somebody else's.
    pub fn new(options: SandboxOptions) -> Result<Self, CacheError> {
        let cache = options.cache.as_deref().map(code::Cache::open).transpose()?.map(Arc::new);
        Ok(Self { options: Arc::new(options), compiling: Arc::new(Semaphore::new(1)), cache })
    }

    /// Machine code for a component, from the cache or made by a compiler child.
    ///
    /// # Errors
    /// See [`CompileError`]; a component that the compiler died of is refused like one that it rejects.
    pub async fn compile(&self, component: &[u8]) -> Result<Code, CompileError> {
        if let Some(code) = self.cache.as_deref().and_then(|cache| cache.get(component)) {
            return Ok(code);
        }
        let turn = self.compiling.acquire().await;
        let code = compiler::compile(component, &self.options).await?;
        drop(turn);
        if let Some(cache) = self.cache.as_deref()
            && let Err(error) = cache.put(component, &code)
        {
            tracing::warn!(%error, "the machine code could not be kept; the next start compiles it again");
        }
        Ok(code)
    }

    /// A fresh runner process.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub async fn runner(&self) -> Result<Runner, RunnerError> {
        Runner::spawn(&self.options).await
    }
}
