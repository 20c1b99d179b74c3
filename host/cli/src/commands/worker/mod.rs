//! `rtask worker`: give up root, connect, hand over to the worker room, and turn signals into shutdowns.

mod shutdown;

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use rtask_broker::{
    Broker, Patience, Queue, backoff::Backoff, connect_backend_over, connect_broker, connect_ledger,
    error::without_password,
};
use rtask_protocol::names::node_name;
use rtask_registry::{DEFAULT_TENANT, SharedRegistry};
use rtask_sandbox::{Sandbox, SandboxOptions, privileges};
use rtask_worker::{Options, Ports, Shutdown, TaskDefaults};

use super::{embedded_path, host_name, run_on, runtime, sandbox_options, unprivileged};
use crate::{
    embedded,
    failure::{Attempt, Failure},
    logging::{self, Level},
    output::Output,
    settings::{Names, Seconds, Settings, Text},
};
use shutdown::{Signals, Stage};

/// Run tasks until told to stop
///
/// TERM or one Ctrl-C: take no more tasks, finish those that run, and exit with 0. QUIT or a second Ctrl-C: stop at
/// once, or after worker_soft_shutdown_timeout, and exit with 1; the tasks that were running go back to their queues.
/// With REMAP_SIGTERM=SIGQUIT in the environment, TERM does what QUIT does.
#[derive(Debug, Args)]
pub struct Worker {
    /// Queues to consume, with commas between them; without it, task_queues or task_default_queue
    #[arg(short = 'Q', long, value_name = "QUEUES")]
    queues: Option<Names>,
    /// Queues not to consume, with commas between them
    #[arg(short = 'X', long, value_name = "QUEUES")]
    exclude_queues: Option<Names>,
    /// Remove the messages that wait in these queues, before the first is taken. There is no undo
    #[arg(long, visible_alias = "discard")]
    purge: bool,
    /// Tasks to run at the same time; without it, one a processor
    #[arg(short, long, value_name = "NUMBER")]
    concurrency: Option<NonZeroUsize>,
    /// The node's name; %h is the host name, %n its first part, %d the rest
    #[arg(short = 'n', long, value_name = "NODENAME", default_value = "celery@%h")]
    hostname: String,
    /// The least severe messages to log
    #[arg(short, long, value_name = "LEVEL", default_value = "info", ignore_case = true)]
    loglevel: Level,
    /// Messages to hold for each task that can run at the same time; 0 for any number
    #[arg(long, value_name = "NUMBER")]
    prefetch_multiplier: Option<u16>,
    /// Hold no more messages than tasks that can run
    #[arg(long)]
    disable_prefetch: bool,
    /// The hard time limit, in seconds, of tasks and messages that set none
    #[arg(long, value_name = "SECONDS")]
    time_limit: Option<Seconds>,
    /// When such tasks are told to come to an end, in seconds
    #[arg(long, value_name = "SECONDS")]
    soft_time_limit: Option<Seconds>,
    /// Who to become when started as root; without it, nobody
    #[arg(long)]
    user: Option<String>,
}

impl Worker {
    fn apply(&self, settings: &mut Settings) {
        if self.concurrency.is_some() {
            settings.worker_concurrency = self.concurrency;
        }
        if let Some(multiplier) = self.prefetch_multiplier {
            settings.worker_prefetch_multiplier = multiplier;
        }
        settings.worker_disable_prefetch |= self.disable_prefetch;
        if let Some(limit) = self.time_limit {
            settings.task_time_limit = limit;
        }
        if let Some(limit) = self.soft_time_limit {
            settings.task_soft_time_limit = limit;
        }
        if self.user.is_some() {
            settings.worker_user.clone_from(&self.user);
        }
    }

    fn options(&self, settings: &Settings) -> Result<Options, Failure> {
        let name = node_name(&self.hostname, &host_name());
        let mut queues = settings.queues(self.queues.as_ref(), self.exclude_queues.as_ref())?;
        if settings.worker_direct {
            queues.push(settings.direct_queue(&name));
        }
        options(settings, name, queues)
    }
}

pub fn run(worker: Worker, mut settings: Settings, output: Output) -> Result<ExitCode, Failure> {
    worker.apply(&mut settings);
    logging::start(worker.loglevel, output);
    // As root, if that is who this is: a key that others cannot read is read now.
    let options = worker.options(&settings)?;
    // Before the first thread: what binds a process's rights binds only threads that start later.
    leave_root(&settings)?;
    let runtime = runtime(std::thread::available_parallelism().map_or(1, usize::from))?;
    run_on(runtime, serve(options, settings, worker.purge))?;
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
    let urls = [settings.broker(), settings.backend()?, settings.ledger()?, settings.registry()?];
    let mut paths: Vec<&Path> = urls.into_iter().filter_map(embedded_path).collect();
    paths.sort_unstable();
    paths.dedup();
    Ok(paths)
}

fn cache_folder(settings: &Settings) -> PathBuf {
    settings.worker_cache.clone().unwrap_or_else(|| PathBuf::from(Settings::DEFAULT_CACHE))
}

fn options(settings: &Settings, name: String, queues: Vec<Queue>) -> Result<Options, Failure> {
    let processors = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let (accept, signer) = settings.worker_content()?;
    Ok(Options {
        name,
        tenant: DEFAULT_TENANT.to_owned(),
        queues,
        concurrency: settings.worker_concurrency.unwrap_or(processors).get(),
        prefetch_multiplier: settings.worker_prefetch_multiplier,
        disable_prefetch: settings.worker_disable_prefetch,
        delivery_limit: settings.delivery_limit.get(),
        eta_horizon: settings.worker_eta_horizon.0,
        task: task_defaults(settings),
        limits: settings.run_limits(),
        max_time: settings.limits.longest_run(),
        max_memory: settings.limits.max_memory.0,
        accept,
        signer,
        disable_rate_limits: settings.worker_disable_rate_limits,
        global_rate_limits: settings.global_rate_limits(),
        routes: settings.routes()?,
        result_extended: settings.result_extended,
    })
}

fn task_defaults(settings: &Settings) -> TaskDefaults {
    let on_either = settings.task_acks_on_failure_or_timeout;
    TaskDefaults {
        acks_late: settings.task_acks_late,
        acks_on_failure: settings.task_acks_on_failure.unwrap_or(on_either),
        acks_on_timeout: settings.task_acks_on_timeout.unwrap_or(on_either),
        reject_on_worker_lost: settings.task_reject_on_worker_lost,
        ignore_result: settings.task_ignore_result,
        store_errors_even_if_ignored: settings.task_store_errors_even_if_ignored,
        track_started: settings.task_track_started,
        rate_limit: settings.task_default_rate_limit.map(|Text(rate)| rate),
        ..TaskDefaults::default()
    }
}

async fn serve(options: Options, settings: Settings, purge: bool) -> Result<(), Failure> {
    let shutdown = Shutdown::default();
    let soft = settings.worker_soft_shutdown_timeout.limit();
    let mut signals = Signals::listen(shutdown.clone(), soft).attempt("failed to listen for signals")?;
    announce(&options, &settings)?;
    let work = async {
        let ports = tokio::select! {
            ports = connect(&settings, options.concurrency) => ports?,
            () = shutdown.warm.cancelled() => return Ok(()),
        };
        if purge {
            self::purge(ports.broker.as_ref(), &options.queues).await?;
        }
        Ok::<_, Failure>(rtask_worker::run(options, ports, shutdown.clone()).await?)
    };
    tokio::select! {
        done = work => done?,
        () = signals.until_forced() => {}
    }
    if settings.worker_enable_soft_shutdown_on_idle {
        signals.until_not_soft().await;
    }
    match signals.stage() {
        Stage::Running | Stage::Warm => Ok(()),
        Stage::Soft | Stage::Cold | Stage::Forced => {
            Err(Failure::new("stopped at once, as asked; the tasks that were running go back to their queues"))
        }
    }
}

fn announce(options: &Options, settings: &Settings) -> Result<(), Failure> {
    let [uid, ..] = privileges::standing().uids;
    let queues: Vec<&str> = options.queues.iter().map(|queue| queue.name.as_str()).collect();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = options.name,
        broker = without_password(settings.broker()),
        results = without_password(settings.backend()?),
        registry = without_password(settings.registry()?),
        queues = queues.join(","),
        concurrency = options.concurrency,
        uid,
        "rtask worker starts"
    );
    Ok(())
}

/// A server that is down is waited for; one that refuses ends the worker.
async fn connect(settings: &Settings, concurrency: usize) -> Result<Ports, Failure> {
    let sandbox = sandbox(settings, concurrency)?;
    let broker = connect_broker(settings.broker(), settings.broker_transport(Patience::Forever)?).await?;
    let transport = settings.backend_transport(Patience::Forever)?;
    let backend = connect_backend_over(&broker, settings.backend()?, settings.retention(), transport.clone()).await?;
    let ledger = connect_ledger(settings.ledger()?, transport).await?;
    let registry = connect_registry(settings).await?;
    Ok(Ports { broker, backend, ledger, registry, sandbox })
}

async fn purge(broker: &dyn Broker, queues: &[Queue]) -> Result<(), Failure> {
    let mut removed = 0;
    for queue in queues {
        removed += broker.purge(&queue.name).await.attempt(format_args!("failed to purge queue {}", queue.name))?;
    }
    tracing::info!(removed, "messages were removed from the queues");
    Ok(())
}

async fn connect_registry(settings: &Settings) -> Result<SharedRegistry, Failure> {
    let (url, tls) = (settings.registry()?, settings.registry_tls()?);
    let mut backoff = Backoff::default();
    loop {
        match rtask_registry::connect_over_tls(url, &tls).await {
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
        let line = "-c 3 --prefetch-multiplier 0 --disable-prefetch --time-limit 1.5 --soft-time-limit 1 --user me";
        let worker = worker(&line.split(' ').collect::<Vec<_>>());
        worker.apply(&mut settings);
        let options = worker.options(&settings).unwrap();
        assert_eq!((options.concurrency, options.prefetch_multiplier, options.disable_prefetch), (3, 0, true));
        let limits = (options.limits.time.as_secs_f64(), options.limits.soft_time.map(|soft| soft.as_secs_f64()));
        assert_eq!(limits, (1.5, Some(1.0)));
        assert_eq!(settings.worker_user.as_deref(), Some("me"));
    }

    #[test]
    fn a_worker_consumes_what_it_is_told_and_its_own_queue() {
        let settings = Settings { worker_direct: true, ..Settings::default() };
        let options = worker(&["-Q", "a,b", "-X", "b", "-n", "w@h"]).options(&settings).unwrap();
        let queues: Vec<&str> = options.queues.iter().map(|queue| queue.name.as_str()).collect();
        assert_eq!(queues, ["a", "w@h.dq2"]);
        assert!(worker(&["-Q", "a", "-X", "a"]).options(&settings).is_err());
    }

    #[test]
    fn one_switch_stands_for_two_unless_they_say_otherwise() {
        let acks = |either, failure, timeout| {
            let settings = Settings {
                task_acks_on_failure_or_timeout: either,
                task_acks_on_failure: failure,
                task_acks_on_timeout: timeout,
                ..Settings::default()
            };
            let defaults = task_defaults(&settings);
            (defaults.acks_on_failure, defaults.acks_on_timeout)
        };
        assert_eq!(acks(true, None, None), (true, true));
        assert_eq!(acks(false, None, None), (false, false));
        assert_eq!(acks(false, Some(true), None), (true, false));
        assert_eq!(acks(true, None, Some(false)), (true, false));
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
