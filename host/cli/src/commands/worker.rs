//! `rtask worker`: give up root, connect, hand over to the worker room, and turn signals into shutdowns.

use std::{
    num::{NonZeroU16, NonZeroUsize},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use rtask_broker::{Patience, backoff::Backoff, connect_backend, connect_broker, error::without_password};
use rtask_protocol::names::node_name;
use rtask_registry::{DEFAULT_TENANT, SharedRegistry};
use rtask_sandbox::{Sandbox, SandboxOptions, privileges};
use rtask_worker::{LONGEST_RUN, Options, Ports};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{embedded_path, host_name, run_on, runtime, sandbox_options, unprivileged};
use crate::{
    embedded,
    failure::{Attempt, Failure},
    logging::{self, Level},
    output::Output,
    settings::{Names, Seconds, Settings},
};

/// Run tasks until told to stop
///
/// TERM or one Ctrl-C: take no more tasks, finish those that run, and exit with 0. QUIT or a second Ctrl-C: stop at
/// once; the tasks that were running go back to their queues.
#[derive(Debug, Args)]
pub struct Worker {
    /// Queues to consume, with commas between them; without it, task_queues or task_default_queue
    #[arg(short = 'Q', long, value_name = "QUEUES")]
    queues: Option<Names>,
    /// Tasks to run at the same time; without it, one a processor
    #[arg(short, long, value_name = "NUMBER")]
    concurrency: Option<NonZeroUsize>,
    /// The node's name; %h is the host name, %n its first part, %d the rest
    #[arg(short = 'n', long, value_name = "NODENAME", default_value = "celery@%h")]
    hostname: String,
    /// The least severe messages to log
    #[arg(short, long, value_name = "LEVEL", default_value = "info", ignore_case = true)]
    loglevel: Level,
    /// Messages to hold for each task that can run at the same time
    #[arg(long, value_name = "NUMBER")]
    prefetch_multiplier: Option<NonZeroU16>,
    /// The hard time limit, in seconds, of tasks and messages that set none
    #[arg(long, value_name = "SECONDS")]
    time_limit: Option<Seconds>,
    /// Who to become when started as root; without it, nobody
    #[arg(long)]
    user: Option<String>,
}

impl Worker {
    fn apply(&self, settings: &mut Settings) {
        if let Some(queues) = &self.queues {
            settings.task_queues = queues.clone();
        }
        if self.concurrency.is_some() {
            settings.worker_concurrency = self.concurrency;
        }
        if let Some(multiplier) = self.prefetch_multiplier {
            settings.worker_prefetch_multiplier = multiplier;
        }
        if let Some(limit) = self.time_limit {
            settings.task_time_limit = limit;
        }
        if self.user.is_some() {
            settings.worker_user.clone_from(&self.user);
        }
    }
}

pub fn run(worker: Worker, mut settings: Settings, output: Output) -> Result<ExitCode, Failure> {
    worker.apply(&mut settings);
    logging::start(worker.loglevel, output);
    // Before the first thread: what binds a process's rights binds only threads that start later.
    leave_root(&settings)?;
    let options = options(&settings, node_name(&worker.hostname, &host_name()));
    let runtime = runtime(std::thread::available_parallelism().map_or(1, usize::from))?;
    run_on(runtime, serve(options, settings))?;
    Ok(ExitCode::SUCCESS)
}

/// Become somebody who is not root, having handed over what that somebody must be able to write.
fn leave_root(settings: &Settings) -> Result<(), Failure> {
    let Some(account) = unprivileged(settings)? else {
        stay_as(settings.worker_user.as_deref())?;
        privileges::gain_nothing()?;
        return Ok(privileges::hide()?);
    };
    for path in embedded_stores(settings)? {
        embedded::hand_over(path, &account)?;
    }
    embedded::make_folder(&cache_folder(settings), &account)?;
    privileges::drop_root(&account)?;
    privileges::hide()?;
    tracing::info!(user = account.name, uid = account.uid, gid = account.gid, "gave up root for good");
    Ok(())
}

/// Only root can become somebody else.
fn stay_as(user: Option<&str>) -> Result<(), Failure> {
    let Some(user) = user else { return Ok(()) };
    let account = privileges::account(user)?;
    match privileges::standing().uids {
        [uid, ..] if uid == account.uid => Ok(()),
        [uid, ..] => Err(Failure::new(format!("a worker of uid {uid} cannot become user `{user}`"))
            .hint(format!("start it as `{user}` or as root, or leave out --user and `worker_user`"))),
    }
}

fn embedded_stores(settings: &Settings) -> Result<Vec<&Path>, Failure> {
    let urls = [settings.broker(), settings.backend()?, settings.registry()?];
    let mut paths: Vec<&Path> = urls.into_iter().filter_map(embedded_path).collect();
    paths.sort_unstable();
    paths.dedup();
    Ok(paths)
}

fn cache_folder(settings: &Settings) -> PathBuf {
    settings.worker_cache.clone().unwrap_or_else(|| PathBuf::from(Settings::DEFAULT_CACHE))
}

fn options(settings: &Settings, name: String) -> Options {
    let processors = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    Options {
        name,
        tenant: DEFAULT_TENANT.to_owned(),
        queues: settings.queues(),
        concurrency: settings.worker_concurrency.unwrap_or(processors).get(),
        prefetch_multiplier: settings.worker_prefetch_multiplier.get(),
        delivery_limit: settings.delivery_limit.get(),
        acks_late: settings.task_acks_late,
        track_started: settings.task_track_started,
        limits: settings.run_limits(),
        max_time: settings.limits.max_time.limit().unwrap_or(LONGEST_RUN),
        max_memory: settings.limits.max_memory.0,
        max_body: usize::try_from(settings.limits.arguments.0).unwrap_or(usize::MAX),
    }
}

async fn serve(options: Options, settings: Settings) -> Result<(), Failure> {
    let shutdown = CancellationToken::new();
    let mut signals = Signals::listen().attempt("failed to listen for signals")?;
    announce(&options, &settings)?;
    let work = async {
        let ports = tokio::select! {
            ports = connect(&settings, options.concurrency) => ports?,
            () = shutdown.cancelled() => return Ok(()),
        };
        Ok(rtask_worker::run(options, ports, shutdown.clone()).await?)
    };
    tokio::select! {
        done = work => done,
        () = signals.until_cold(&shutdown) => {
            Err(Failure::new("stopped at once, as asked; the tasks that were running go back to their queues"))
        }
    }
}

fn announce(options: &Options, settings: &Settings) -> Result<(), Failure> {
    let [uid, ..] = privileges::standing().uids;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = options.name,
        broker = without_password(settings.broker()),
        results = without_password(settings.backend()?),
        registry = without_password(settings.registry()?),
        queues = options.queues.join(","),
        concurrency = options.concurrency,
        uid,
        "rtask worker starts"
    );
    Ok(())
}

/// A server that is down is waited for; one that refuses ends the worker.
async fn connect(settings: &Settings, concurrency: usize) -> Result<Ports, Failure> {
    let sandbox = sandbox(settings, concurrency)?;
    let broker = connect_broker(settings.broker(), Patience::Forever).await?;
    let backend = connect_backend(settings.backend()?, settings.retention(), Patience::Forever).await?;
    let registry = connect_registry(settings.registry()?).await?;
    Ok(Ports { broker, backend, registry, sandbox })
}

async fn connect_registry(url: &str) -> Result<SharedRegistry, Failure> {
    let mut backoff = Backoff::default();
    loop {
        match rtask_registry::connect(url).await {
            Err(error) if !error.is_permanent() => {
                tracing::warn!(%error, "trying again");
                backoff.wait().await;
            }
            connected => return Ok(connected?),
        }
    }
}

/// A cache that somebody named must work; without the usual one, each start compiles anew.
fn sandbox(settings: &Settings, concurrency: usize) -> Result<Sandbox, Failure> {
    let options = sandbox_options(settings, concurrency)?;
    let cached = SandboxOptions { cache: Some(cache_folder(settings)), ..options.clone() };
    match Sandbox::new(cached) {
        Err(error) if settings.worker_cache.is_none() => {
            tracing::warn!(%error, "machine code is not kept between starts");
            Ok(Sandbox::new(options)?)
        }
        made => Ok(made?),
    }
}

/// The signals that end a worker.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    /// Cancel `shutdown` at the first signal; end when the worker is to stop at once.
    async fn until_cold(&mut self, shutdown: &CancellationToken) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => if shutdown.is_cancelled() { return },
                _ = self.quit.recv() => return,
            }
            if !shutdown.is_cancelled() {
                tracing::info!("stopping when the running tasks are done; Ctrl-C (again) or QUIT stops at once");
                shutdown.cancel();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        worker: Worker,
    }

    fn worker(arguments: &[&str]) -> Worker {
        let line = Line::try_parse_from([["worker"].as_slice(), arguments].concat());
        line.unwrap_or_else(|error| panic!("{error}")).worker
    }

    #[test]
    fn flags_go_before_settings() {
        let mut settings = Settings { worker_user: Some("daemon".to_owned()), ..Settings::default() };
        let plain = settings.clone();
        worker(&[]).apply(&mut settings);
        assert_eq!(settings, plain);
        worker(&["-Q", "a,b", "-c", "3", "--prefetch-multiplier", "2", "--time-limit", "1.5", "--user", "me"])
            .apply(&mut settings);
        let options = options(&settings, "w@h".to_owned());
        assert_eq!(
            (options.queues, options.concurrency, options.prefetch_multiplier),
            (vec!["a".into(), "b".into()], 3, 2)
        );
        assert_eq!(options.limits.time.as_secs_f64(), 1.5);
        assert_eq!(settings.worker_user.as_deref(), Some("me"));
    }

    #[test]
    fn levels_are_celerys_in_either_case() {
        for (text, level) in [("INFO", Level::Info), ("debug", Level::Debug), ("FATAL", Level::Critical)] {
            assert_eq!(worker(&["-l", text]).loglevel, level);
        }
        assert!(Line::try_parse_from(["worker", "-c", "0"]).is_err());
    }

    #[test]
    fn each_embedded_store_is_handed_over_once() {
        let mut settings = Settings::default();
        assert_eq!(embedded_stores(&settings).unwrap(), [Path::new(".rtask/rtask.db")]);
        settings.broker_url = Some("amqp://h/".to_owned());
        settings.result_backend = Some("redis://h/0".to_owned());
        assert!(embedded_stores(&settings).unwrap().is_empty());
        settings.registry = Some("sqlite:/s/m.db".to_owned());
        assert_eq!(embedded_stores(&settings).unwrap(), [Path::new("/s/m.db")]);
    }
}
