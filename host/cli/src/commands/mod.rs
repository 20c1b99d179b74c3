//! One file a command: its options first, then its order of events. What several commands need is here.

pub mod build;
pub mod call;
pub mod completions;
pub mod control;
pub mod dead_letters;
pub mod deploy;
pub mod doctor;
pub mod inspect;
pub mod modules;
pub mod purge;
pub mod queues;
mod remote;
pub mod result;
pub mod version;
pub mod worker;

use std::{path::Path, process::ExitCode, time::Duration};

use rtask_registry::SharedRegistry;
use rtask_sandbox::{Account, CompileLimits, SandboxOptions, privileges};
use tokio::runtime::{Builder, Runtime};

use crate::{
    failure::{Attempt, Failure},
    settings::Settings,
};

/// Threads of a command that mostly waits.
const THREADS: usize = 2;
/// What still runs when a command has ended gets so long to end too.
const SHUTDOWN: Duration = Duration::from_secs(1);

/// Run a command to its end.
pub fn wait_for(command: impl Future<Output = Result<ExitCode, Failure>>) -> Result<ExitCode, Failure> {
    run_on(runtime(THREADS)?, command)
}

fn runtime(threads: usize) -> Result<Runtime, Failure> {
    Builder::new_multi_thread().worker_threads(threads).enable_all().build().attempt("failed to start threads")
}

fn run_on<T>(runtime: Runtime, work: impl Future<Output = T>) -> T {
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(SHUTDOWN);
    done
}

/// How children of this process are started, for `slots` runs at the same time.
fn sandbox_options(settings: &Settings, slots: usize) -> Result<SandboxOptions, Failure> {
    let defaults = SandboxOptions::default();
    Ok(SandboxOptions {
        account: unprivileged(settings)?,
        threads: slots.min(defaults.threads),
        slots,
        max_memory: settings.limits.max_memory.0,
        compile: CompileLimits {
            component: settings.limits.component.0,
            time: Duration::from_secs(settings.limits.compile_time.get().into()),
            ..defaults.compile
        },
        ..defaults
    })
}

/// # Errors
/// Of settings, and when the registry is down or refuses.
async fn connect_registry(settings: &Settings) -> Result<SharedRegistry, Failure> {
    Ok(rtask_registry::connect_over_tls(settings.registry()?, &settings.registry_tls()?).await?)
}

/// Who a root process, or its children, become; none if this is no root process.
fn unprivileged(settings: &Settings) -> Result<Option<Account>, Failure> {
    if !privileges::is_root() {
        return Ok(None);
    }
    Ok(Some(match &settings.worker_user {
        Some(user) => privileges::account(user)?,
        None => Account::nobody(),
    }))
}

/// The file of a `sqlite:PATH` URL; none for other URLs, and for one that names no file.
fn embedded_path(url: &str) -> Option<&Path> {
    url.strip_prefix("sqlite:").filter(|path| !matches!(*path, "" | ":memory:")).map(Path::new)
}

/// `1 queue`, `2 queues`.
fn plural(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

/// For arguments: `KEY=VALUE`.
fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("write KEY=VALUE".to_owned()),
    }
}

/// For arguments: a text of 1 to `limit` bytes.
fn text_within(text: &str, limit: usize) -> Result<String, String> {
    match text.len() {
        0 => Err("it is empty".to_owned()),
        length if length > limit => Err(format!("it has {length} bytes, more than the {limit} allowed")),
        _ => Ok(text.to_owned()),
    }
}

/// What `%h` stands for in a node name.
fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "localhost".to_owned())
}
