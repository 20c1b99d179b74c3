//! `cargo xtask bench`: rtask beside Celery's prefork worker, in turns, on one RabbitMQ and one Redis, with one
//! client. It measures and judges nothing.

use std::{path::Path, process::Command};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    process::output,
    python,
    servers::Servers,
    steps::Steps,
    workspace::{Profile, Workspace},
};

mod contender;
mod report;

use contender::{CONTENDERS, Contender};
use report::{Measurement, Report};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Size {
    rounds: usize,
    /// Messages that wait in the queue when the worker starts.
    tasks: u32,
    /// Round trips, one at a time.
    round_trips: u32,
}

const QUICK: Size = Size { rounds: 3, tasks: 10_000, round_trips: 300 };
const FULL: Size = Size { rounds: 5, tasks: 50_000, round_trips: 2_000 };
/// A worker that has not emptied the queue by then has stalled (seconds).
const DRAIN_LIMIT: u32 = 300;

/// What every process of a bench needs to know.
#[derive(Debug)]
struct Bench<'a> {
    workspace: &'a Workspace,
    rtask: std::path::PathBuf,
    python: std::path::PathBuf,
    servers: Servers,
    folder: tempfile::TempDir,
}

/// Measure, print a table in Markdown, and write all numbers to `json`.
///
/// # Errors
/// When something cannot be set up, or a worker does not do its tasks.
pub fn run(workspace: &Workspace, quick: bool, json: Option<&Path>) -> Result<()> {
    let steps = Steps::default();
    let size = if quick { QUICK } else { FULL };
    let bench = Bench::set_up(workspace, &steps)?;
    let mut report = Report::new(size);
    for round in 1..=size.rounds {
        for contender in CONTENDERS {
            let step = steps.begin(format!("Round {round} of {}: {}", size.rounds, contender.name()));
            let measurement = bench.measure(contender, size)?;
            step.done(&measurement.to_string());
            report.add(contender, measurement);
        }
    }
    println!("{}", report.markdown());
    if let Some(path) = json {
        let text = format!("{:#}\n", report.json());
        std::fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}

impl<'a> Bench<'a> {
    fn set_up(workspace: &'a Workspace, steps: &Steps) -> Result<Self> {
        workspace.ensure_guest_target(steps)?;
        let python = python::ensure_venv(workspace, steps)?;
        let rtask = workspace.build_rtask(Profile::Release, steps)?;
        let hello = workspace.build_guest(&rtask, "examples/hello", steps)?;
        let servers = Servers::start(steps)?;
        let folder = crate::workspace::folder_for_workers("rtask-bench-")?;
        let bench = Self { workspace, rtask, python, servers, folder };
        output(bench.rtask().arg("deploy").arg(hello))?;
        Ok(bench)
    }

    /// Fill the queue, start the worker, time how it empties the queue, then single round trips.
    fn measure(&self, contender: Contender, size: Size) -> Result<Measurement> {
        self.client("publish", &[size.tasks])?;
        let mut worker = contender.start(self)?;
        let drained = self.client("drain", &[size.tasks, DRAIN_LIMIT])?;
        let round_trips = self.client("latency", &[size.round_trips])?;
        worker.stop()?;
        let number = |from: &Value, name: &str| from[name].as_f64().with_context(|| format!("no {name} in {from}"));
        Ok(Measurement {
            tasks_per_second: number(&drained, "tasks_per_second")?,
            p50_ms: number(&round_trips, "p50_ms")?,
            p99_ms: number(&round_trips, "p99_ms")?,
        })
    }

    fn client(&self, action: &str, numbers: &[u32]) -> Result<Value> {
        let mut command = Command::new(&self.python);
        command.arg(self.workspace.root.join("tests/xtask/bench/client.py")).arg(action);
        command.args(numbers.iter().map(u32::to_string));
        let answer = output(self.addresses(&mut command))?;
        serde_json::from_str(&answer).with_context(|| format!("the client answered `{answer}`"))
    }

    /// `rtask`, with the servers in its environment.
    fn rtask(&self) -> Command {
        let mut command = Command::new(&self.rtask);
        command.current_dir(self.folder.path()).env("HOME", self.folder.path());
        command.env("RTASK_BROKER_URL", &self.servers.amqp_url).env("RTASK_RESULT_BACKEND", self.backend());
        command.env("RTASK_REGISTRY", format!("{}/2", self.servers.redis_url));
        command
    }

    /// The servers for the Python side.
    fn addresses<'b>(&self, command: &'b mut Command) -> &'b mut Command {
        command.env("BENCH_BROKER", &self.servers.amqp_url).env("BENCH_BACKEND", self.backend())
    }

    /// Emptied before each measurement; the registry is elsewhere.
    fn backend(&self) -> String {
        format!("{}/1", self.servers.redis_url)
    }
}
