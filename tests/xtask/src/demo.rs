//! `cargo xtask demo`: rtask's main job on one machine with no server, with good tasks and bad ones.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    interrupt,
    process::{Running, output, tree, user},
    steps::{Steps, seconds},
    table,
    workspace::{Profile, Workspace, folder_for_workers},
};

const NODE: &str = "demo@localhost";
/// How long a worker may take to start.
const START: Duration = Duration::from_secs(60);

/// One call, and what is to come of it.
struct Call {
    what: &'static str,
    /// After `rtask call`.
    arguments: &'static [&'static str],
    expected: Expected,
}

enum Expected {
    /// This number.
    Value(i64),
    /// A failure of this type.
    Failure(&'static str),
}

const CALLS: [Call; 7] = [
    Call { what: "a good task", arguments: &["hello.add", "--args", "[2, 2]"], expected: Expected::Value(4) },
    Call {
        what: "an exception",
        arguments: &["hello.fail", "--args", r#"["no", 1]"#],
        expected: Expected::Failure("ValueError"),
    },
    Call {
        what: "an endless loop",
        arguments: &["hello.spin", "--time-limit", "1"],
        expected: Expected::Failure("TimeLimitExceeded"),
    },
    Call { what: "a memory bomb", arguments: &["hello.hoard"], expected: Expected::Failure("MemoryLimitExceeded") },
    Call {
        what: "endless recursion",
        arguments: &["hello.recurse"],
        expected: Expected::Failure("StackLimitExceeded"),
    },
    Call { what: "a trap", arguments: &["hello.trap"], expected: Expected::Failure("Trap") },
    Call { what: "the good task again", arguments: &["hello.add", "--args", "[2, 2]"], expected: Expected::Value(4) },
];

/// What every step works with. The worker is stopped before the folder goes.
struct Demo {
    rtask: PathBuf,
    folder: TempDir,
}

/// Build, deploy and call; whether every call came out as it should.
///
/// # Errors
/// When something cannot be built or started.
pub fn run(workspace: &Workspace) -> Result<bool> {
    let steps = Steps::default();
    workspace.ensure_guest_target(&steps)?;
    let rtask = workspace.build_rtask(Profile::Dev, &steps)?;
    let hello = workspace.build_guest(&rtask, "examples/hello", &steps)?;
    let demo = Demo { rtask, folder: folder_for_workers("rtask-demo-")? };

    let mut worker = demo.start_worker(&steps)?;
    demo.deploy(&hello, &steps)?;
    let before = tree(worker.pid())?;
    let rows = CALLS.iter().map(|call| demo.call(call, &steps)).collect::<Result<Vec<_>>>()?;
    let after = tree(worker.pid())?;
    let stopped = worker.stop()?;

    let all_well = rows.iter().all(|row| row.as_expected);
    let cells: Vec<_> = rows.into_iter().map(Row::cells).collect();
    println!("\n{}", table::markdown(["called", "rtask call", "came back", "took", ""], &cells));
    println!("The worker's processes before: {}", list(&before));
    println!("                    and after: {}", list(&after));
    println!("Asked to end, the worker ended with {stopped}.");
    Ok(all_well && before == after && stopped.success())
}

/// A line of the final table.
struct Row {
    what: &'static str,
    arguments: String,
    came_back: String,
    took: Duration,
    as_expected: bool,
}

impl Row {
    fn cells(self) -> [String; 5] {
        let verdict = if self.as_expected { "as expected" } else { "NOT EXPECTED" };
        [self.what.to_owned(), self.arguments, self.came_back, seconds(self.took), verdict.to_owned()]
    }
}

impl Demo {
    fn start_worker(&self, steps: &Steps) -> Result<Running> {
        let step = steps.begin("rtask worker, on an embedded SQLite file");
        let log = self.folder.path().join("worker.log");
        let mut worker = Running::start("the worker", self.rtask().args(["worker", "-n", NODE, "-c", "2"]), &log)?;
        let ready = format!("{NODE} ready.");
        worker.wait_until("it was ready", START, |worker| worker.log().contains(&ready).then_some(()))?;
        step.done(&format!("ready, process {} of user {}", worker.pid(), user(worker.pid())?));
        Ok(worker)
    }

    fn deploy(&self, component: &Path, steps: &Steps) -> Result<()> {
        let step = steps.begin("rtask deploy hello.wasm");
        output(self.rtask().arg("deploy").arg(component))?;
        step.done("deployed, and the worker is ready to run it");
        Ok(())
    }

    fn call(&self, call: &Call, steps: &Steps) -> Result<Row> {
        interrupt::check()?;
        let arguments = call.arguments.join(" ");
        let step = steps.begin(format!("rtask call {arguments}"));
        let started = Instant::now();
        let mut command = self.rtask();
        command.args(["--json", "call"]).args(call.arguments).args(["--wait", "--timeout", "60"]);
        let output = command.stdin(Stdio::null()).output().context("failed to start rtask")?;
        let took = started.elapsed();
        let record: Value = serde_json::from_slice(&output.stdout).with_context(|| {
            format!("`rtask call` answered no record: {}", String::from_utf8_lossy(&output.stderr).trim())
        })?;
        let came_back = shown(&record);
        let as_expected = call.expected.is(&record) && output.status.success() == (record["status"] == "SUCCESS");
        step.done(&came_back);
        Ok(Row { what: call.what, arguments, came_back, took, as_expected })
    }

    fn rtask(&self) -> Command {
        let mut command = Command::new(&self.rtask);
        let folder = self.folder.path();
        command.current_dir(folder).env("HOME", folder);
        command.env("RTASK_BROKER_URL", format!("sqlite:{}", folder.join("rtask.db").display()));
        command
    }
}

impl Expected {
    fn is(&self, record: &Value) -> bool {
        match self {
            Self::Value(value) => record["status"] == "SUCCESS" && record["result"] == *value,
            Self::Failure(kind) => record["status"] == "FAILURE" && record["result"]["exc_type"] == *kind,
        }
    }
}

/// A result as itself, an exception as Python would write it.
fn shown(record: &Value) -> String {
    let result = &record["result"];
    match (result["exc_type"].as_str(), result["exc_message"].as_array()) {
        (Some(kind), Some(arguments)) => {
            let arguments: Vec<String> = arguments.iter().map(Value::to_string).collect();
            format!("{kind}({})", arguments.join(", "))
        }
        _ => result.to_string(),
    }
}

fn list(processes: &[u32]) -> String {
    processes.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
}
