//! `rtask deploy`: a component becomes a module's next version, or nothing changes.
//!
//! Whatever could refuse it comes before the one step that changes something, [`Registry::deploy`]: the file is
//! compiled in a compiler child, described in a runner child, and its manifest read and compared.

use std::{
    collections::BTreeSet,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use bytes::Bytes;
use clap::Args;
use nix::unistd::{Uid, User};
use rtask_registry::{
    DEFAULT_TENANT, Deployment, Manifest, Registry, Version, WorkerStatus,
    manifest::{Changes, MAX_SIZE, OptionChange, TaskChange},
    module::Readiness,
};
use rtask_sandbox::{Exit, Limit, Limits, Sandbox};
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use super::sandbox_options;
use crate::{
    failure::{Attempt, Failure},
    output::Output,
    progress::Step,
    settings::{Seconds, Settings, Size},
    visible,
};

/// How long a module may take to say what it is.
const DESCRIBE_TIME: Duration = Duration::from_secs(10);
/// How often the workers are asked whether they are ready.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// Make a component the current version of its module, while workers run
///
/// The component is checked, described in a sandbox, and stored; then the command waits until every live worker is
/// ready to run it. A component that is refused changes nothing.
#[derive(Debug, Args)]
pub struct Deploy {
    /// The component that `rtask build` made
    #[arg(value_name = "FILE.wasm")]
    file: PathBuf,
    /// The module's name; without it, the one that the component gives itself
    #[arg(long)]
    name: Option<String>,
    /// Take task names over from other modules that have them
    #[arg(long)]
    take_over: bool,
    /// Wait no longer than so many seconds for the workers
    #[arg(long, value_name = "SECONDS", default_value = "60")]
    timeout: Seconds,
}

/// What the command answers.
#[derive(Debug, Serialize)]
struct Deployed<'a> {
    module: &'a str,
    version: u32,
    digest: String,
    /// None for a module's first version.
    changes: Option<Changes>,
    /// The workers that are ready to run it.
    workers: BTreeSet<String>,
}

pub async fn run(deploy: Deploy, settings: Settings, output: Output) -> Result<ExitCode, Failure> {
    let file = deploy.file.display();
    let component = read(&deploy.file, settings.limits.component)?;
    let registry = super::connect_registry(&settings).await?;
    let refused = format!("{file} is refused; nothing has changed");
    let manifest = examine(&component, &settings, output).await.attempt(&refused)?;
    let module = deploy.name.unwrap_or_else(|| manifest.module.clone());
    let before = current(registry.as_ref(), &module).await?;

    let deployment = Deployment {
        tenant: DEFAULT_TENANT.to_owned(),
        module,
        component,
        manifest,
        by: login_name(),
        take_over: deploy.take_over,
    };
    let version = registry.deploy(deployment).await.attempt(&refused)?;
    let changes = before.as_ref().map(|before| version.manifest.changes_since(&before.manifest));
    output.note(news(&version, before.as_ref(), changes.as_ref()));

    let workers = wait_for_workers(registry.as_ref(), &version, deploy.timeout.0, output).await?;
    if output.is_json() {
        let (module, number) = (version.module.as_str(), version.number);
        output.json(&Deployed { module, version: number, digest: version.digest.to_string(), changes, workers })?;
    }
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path, limit: Size) -> Result<Bytes, Failure> {
    let attempted = || format!("failed to read {}", path.display());
    let mut component = Vec::new();
    let file = File::open(path).attempt(attempted())?;
    file.take(limit.0.saturating_add(1)).read_to_end(&mut component).attempt(attempted())?;
    if component.len() as u64 > limit.0 {
        return Err(Failure::new(format!("{} has more than the {limit} allowed", path.display()))
            .hint("build it without debug information, or split the module"));
    }
    Ok(component.into())
}

/// What the component says of itself, asked where it can do no harm.
async fn examine(component: &[u8], settings: &Settings, output: Output) -> Result<Manifest, Failure> {
    let sandbox = Sandbox::new(sandbox_options(settings, 1)?)?;
    let step = Step::begin(output, "Compiling");
    let code = sandbox.compile(component).await?;
    step.done(&format!("{} of machine code", Size(code.size())));

    let step = Step::begin(output, "Asking it for its tasks");
    let runner = sandbox.runner().await?;
    let loaded = runner.load(&code).await?;
    let limits = Limits { time: DESCRIBE_TIME, soft_time: None, result: MAX_SIZE as u64, ..settings.run_limits() };
    let described = loaded.describe(&limits).await;
    let manifest = Manifest::parse(&described.map_err(|exit| Failure::new(blunder(&exit)))?)?;
    step.done(&counted(manifest.tasks.len(), "task"));
    Ok(manifest)
}

/// Why there is no manifest.
fn blunder(exit: &Exit) -> String {
    let reason = match exit {
        Exit::Returned(_) => "it answered".to_owned(),
        Exit::Raised(exception) => format!("it raised {}: {}", exception.kind, exception.arguments),
        Exit::Rejected { reason, .. } => format!("it rejected the question: {reason}"),
        Exit::Ignored => "it ignored the question".to_owned(),
        Exit::Retry { .. } => "it asked to be asked again".to_owned(),
        Exit::Cancelled => "it was ended from outside".to_owned(),
        Exit::Trapped { panicked: Some(panic), .. } => format!("it panicked: {}", panic.arguments),
        Exit::Trapped { reason, .. } => format!("it trapped: {reason}"),
        Exit::Lost(reason) => format!("the runner process was lost: {reason}"),
        Exit::Exceeded(limit) => match limit {
            Limit::Time(limit) | Limit::SoftTime(limit) => format!("it took more time than the {limit:?} allowed"),
            Limit::Memory(limit) => {
                format!("it used more memory than the {} allowed", Size(*limit))
            }
            Limit::Table(limit) => format!("its tables grew beyond the {limit} elements allowed"),
            Limit::Stack => "it used up its stack".to_owned(),
            Limit::Result(limit) => {
                format!("its manifest is larger than the {} allowed", Size(*limit))
            }
            Limit::States(_) | Limit::StatesSize(_) => "it set states, as only a running task may".to_owned(),
            Limit::Sends(_) | Limit::SendSize(_) => "it sent tasks, as only a running task may".to_owned(),
        },
    };
    format!("it could not say what tasks it has: {}", visible::line(&reason))
}

async fn current(registry: &dyn Registry, module: &str) -> Result<Option<Version>, Failure> {
    let modules = registry.modules(DEFAULT_TENANT).await?;
    let found = modules.into_iter().find(|found| found.name == module);
    Ok(found.and_then(|found| found.versions.into_iter().find(|version| version.number == found.current)))
}

/// What has become current, and what a caller should know of it.
fn news(version: &Version, before: Option<&Version>, changes: Option<&Changes>) -> String {
    let (module, number) = (&version.module, version.number);
    let headline = match before {
        Some(before) if before.number == number => {
            format!("{module} is at version {number} already")
        }
        Some(before) => format!("{module} is at version {number} now, after {}", before.number),
        None => format!("{module} is at version {number} now, its first"),
    };
    let added = |task: &String| format!("  + {}", visible::line(task));
    let details: Vec<String> = match changes {
        None => version.manifest.tasks.iter().map(|task| added(&task.name)).collect(),
        Some(changes) => {
            let removed = |task: &String| format!("  - {}", visible::line(task));
            let lines = changes.added.iter().map(added);
            let lines = lines.chain(changes.removed.iter().map(removed));
            lines.chain(changes.changed.iter().map(changed)).collect()
        }
    };
    [vec![headline], details].concat().join("\n")
}

/// `  ~ hello.add: parameters, time_limit default -> 5.0`.
fn changed(change: &TaskChange) -> String {
    let shown = |value: &Option<serde_json::Value>| match value {
        Some(value) => value.to_string(),
        None => "default".to_owned(),
    };
    let option =
        |change: &OptionChange| format!("{} {} -> {}", change.option, shown(&change.before), shown(&change.after));
    let parameters = change.parameters.then(|| "parameters".to_owned());
    let parts: Vec<String> = parameters.into_iter().chain(change.options.iter().map(option)).collect();
    format!("  ~ {}: {}", visible::line(&change.task), parts.join(", "))
}

/// Who of those that are alive is ready to run the version, once all are.
async fn wait_for_workers(
    registry: &dyn Registry,
    version: &Version,
    timeout: Duration,
    output: Output,
) -> Result<BTreeSet<String>, Failure> {
    let deadline = Instant::now() + timeout;
    let step = Step::begin(output, "Waiting for the workers");
    let seen = loop {
        let workers = registry.workers().await.attempt("the version is stored, but the workers cannot be asked for")?;
        let seen = Outlook::of(&workers, version);
        if !seen.failed.is_empty() {
            return Err(seen.failure(version));
        }
        if seen.waiting.is_empty() {
            break seen;
        }
        if Instant::now() >= deadline {
            return Err(seen.late(version, timeout));
        }
        step.says(&format!("{} of {} ready", seen.ready.len(), seen.ready.len() + seen.waiting.len()));
        sleep_until(deadline.min(Instant::now() + ASK_EVERY)).await;
    };
    match seen.ready.len() {
        0 => step.done("none is running; the next one to start will serve it"),
        count => step.done(&format!("{} ready", counted(count, "worker"))),
    }
    Ok(seen.ready)
}

/// How far the live workers are with one version.
#[derive(Debug, Default)]
struct Outlook {
    ready: BTreeSet<String>,
    waiting: BTreeSet<String>,
    /// Name and reason.
    failed: Vec<(String, String)>,
}

impl Outlook {
    fn of(workers: &[WorkerStatus], version: &Version) -> Self {
        let mut outlook = Self::default();
        for worker in workers.iter().filter(|worker| worker.tenants.contains(&version.tenant)) {
            let name = worker.name.clone();
            match worker.modules.get(&version.digest) {
                Some(Readiness::Ready) => {
                    outlook.ready.insert(name);
                }
                Some(Readiness::Failed(reason)) => outlook.failed.push((name, reason.clone())),
                Some(Readiness::Compiling) | None => {
                    outlook.waiting.insert(name);
                }
            }
        }
        outlook
    }

    fn failure(&self, version: &Version) -> Failure {
        let told: Vec<String> = self.failed.iter().map(|(name, reason)| format!("{name}: {reason}")).collect();
        let what = visible::line(&told.join("; "));
        Failure::new(format!("{} version {} is stored, but cannot be run by {what}", version.module, version.number))
            .hint("deploy a version that runs there, or mend or stop that worker")
    }

    fn late(&self, version: &Version, timeout: Duration) -> Failure {
        let names: Vec<&str> = self.waiting.iter().map(String::as_str).collect();
        let what = visible::line(&names.join(", "));
        let (module, number) = (&version.module, version.number);
        Failure::new(format!("{module} version {number} is stored, but not ready after {timeout:?} at {what}"))
            .hint("the workers go on with it; look into their logs, or wait longer with --timeout")
    }
}

fn counted(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

/// Kept with the version, for people to read.
fn login_name() -> String {
    let user = User::from_uid(Uid::current()).ok().flatten();
    user.map_or_else(|| Uid::current().to_string(), |user| user.name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;
    use rtask_registry::Digest;

    use super::*;

    fn version(number: u32, manifest: &str) -> Version {
        Version {
            tenant: DEFAULT_TENANT.to_owned(),
            module: "m".to_owned(),
            number,
            digest: Digest::of(b"component"),
            size: 9,
            manifest: Manifest::parse(manifest).unwrap(),
            deployed_at: Timestamp::UNIX_EPOCH,
            deployed_by: "me".to_owned(),
        }
    }

    fn worker(name: &str, tenant: &str, readiness: Option<Readiness>) -> WorkerStatus {
        let modules: BTreeMap<_, _> =
            readiness.map(|readiness| (Digest::of(b"component"), readiness)).into_iter().collect();
        WorkerStatus { name: name.to_owned(), tenants: vec![tenant.to_owned()], modules }
    }

    const ONE: &str = r#"{"module": "m", "sdk": "t", "tasks": [{"name": "a"}, {"name": "b"}]}"#;
    const TWO: &str =
        r#"{"module": "m", "sdk": "t", "tasks": [{"name": "b", "options": {"time_limit": 5}}, {"name": "c"}]}"#;

    #[test]
    fn what_has_changed_is_told_by_task() {
        let (one, two) = (version(1, ONE), version(2, TWO));
        assert_eq!(news(&one, None, None), "m is at version 1 now, its first\n  + a\n  + b");
        let changes = two.manifest.changes_since(&one.manifest);
        let told = news(&two, Some(&one), Some(&changes));
        assert_eq!(told, "m is at version 2 now, after 1\n  + c\n  - a\n  ~ b: time_limit default -> 5.0");
        let same = one.manifest.changes_since(&one.manifest);
        assert_eq!(news(&one, Some(&one), Some(&same)), "m is at version 1 already");
    }

    #[test]
    fn a_version_is_ready_when_every_worker_of_its_tenant_says_so() {
        let failed = Readiness::Failed("no".to_owned());
        let workers = [
            worker("ready", DEFAULT_TENANT, Some(Readiness::Ready)),
            worker("busy", DEFAULT_TENANT, Some(Readiness::Compiling)),
            worker("unaware", DEFAULT_TENANT, None),
            worker("broken", DEFAULT_TENANT, Some(failed)),
            worker("stranger", "other", None),
        ];
        let outlook = Outlook::of(&workers, &version(1, ONE));
        assert_eq!(outlook.ready, BTreeSet::from(["ready".to_owned()]));
        assert_eq!(outlook.waiting, BTreeSet::from(["busy".to_owned(), "unaware".to_owned()]));
        assert_eq!(outlook.failed, [("broken".to_owned(), "no".to_owned())]);
    }

    #[test]
    fn a_file_that_is_too_large_is_not_read_further() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large.wasm");
        std::fs::write(&path, [0; 33]).unwrap();
        assert!(read(&path, Size(32)).is_err());
        assert_eq!(read(&path, Size(33)).unwrap().len(), 33);
    }
}
