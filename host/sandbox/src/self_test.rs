//! A component that is made on the spot, for seeing whether the sandbox works on this machine.

use std::time::{Duration, Instant};

use serde::Serialize;
use wit_component::{ComponentEncoder, StringEncoding};
use wit_parser::Resolve;

use crate::{Exit, Job, Limit, Limits, Sandbox, contract, engine};

/// What [`run`] saw.
#[derive(Clone, Debug, Serialize)]
pub struct SelfTest {
    /// How long the compiler child took.
    pub compile: Duration,
    /// How long one echo took, from order to report.
    pub echo: Duration,
    /// How far an endless loop got beyond its limit.
    pub overshoot: Duration,
    /// Whether the kernel lets memory be cleared page by page between runs; without it each run costs more.
    pub pagemap_scan: bool,
    /// The kernel's word on the runner process.
    pub runner_uids: Vec<u32>,
    pub runner_no_new_privs: bool,
}

/// How long the endless loop may run.
const SPIN: Duration = Duration::from_millis(100);

/// Compile and run a good task and an endless one.
///
/// # Errors
/// What did not work, for people.
pub async fn run(sandbox: &Sandbox) -> Result<SelfTest, String> {
    let component = component(ECHO_OR_SPIN).map_err(|error| format!("failed to make a component: {error}"))?;
    let began = Instant::now();
    let code = sandbox.compile(&component).await.map_err(|error| format!("failed to compile: {error}"))?;
    let compile = began.elapsed();
    let runner = sandbox.runner().await.map_err(|error| error.to_string())?;
    let module = runner.load(&code).await.map_err(|error| format!("failed to load: {error}"))?;

    let began = Instant::now();
    let echoed = module.run(job("echo", Limits::default())).exit().await;
    let echo = began.elapsed();
    if echoed != Exit::Returned(PAYLOAD.to_owned()) {
        return Err(format!("an echo came back as {echoed:?}"));
    }
    let began = Instant::now();
    let spun = module.run(job("spin", Limits { time: SPIN, ..Limits::default() })).exit().await;
    let overshoot = began.elapsed().saturating_sub(SPIN);
    if spun != Exit::Exceeded(Limit::Time(SPIN)) {
        return Err(format!("an endless loop ended as {spun:?}"));
    }
    let (runner_uids, runner_no_new_privs) = status(runner.pid())?;
    let pagemap_scan = engine::clears_touched_pages_only();
    Ok(SelfTest { compile, echo, overshoot, pagemap_scan, runner_uids, runner_no_new_privs })
}

const PAYLOAD: &str = r#"{"args":[],"kwargs":{}}"#;

fn job(task: &str, limits: Limits) -> Job {
    Job { task: task.to_owned(), payload: PAYLOAD.to_owned(), request: "{}".to_owned(), limits }
}

/// Real, effective, saved and file-system uid, and no_new_privs, from /proc.
fn status(pid: u32) -> Result<(Vec<u32>, bool), String> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).map_err(|error| format!("failed to read {path}: {error}"))?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("").trim();
    let uids = field("Uid:").split_whitespace().filter_map(|uid| uid.parse().ok()).collect();
    Ok((uids, field("NoNewPrivs:") == "1"))
}

/// Make a component of a core module in text form that exports the handler's functions under their canonical
/// names (see [`ECHO_OR_SPIN`]).
///
/// # Errors
/// What is wrong with the module, for whoever wrote it.
pub fn component(core: &str) -> Result<Vec<u8>, String> {
    let text = |error: &dyn std::fmt::Display| format!("{error:#}");
    let mut module = wat::parse_str(core).map_err(|error| text(&error))?;
    let mut resolve = Resolve::default();
    let package = resolve.push_str("task.wit", contract::TEXT).map_err(|error| text(&error))?;
    let world = resolve.select_world(&[package], Some("task")).map_err(|error| text(&error))?;
    wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)
        .map_err(|error| text(&error))?;
    let mut encoder = ComponentEncoder::default().validate(true).module(&module).map_err(|error| text(&error))?;
    encoder.encode().map_err(|error| text(&error))
}

/// Task `spin` (or any other of four letters starting with `s`) never ends; all others return their payload.
pub const ECHO_OR_SPIN: &str = r#"
(module
  (memory (export "memory") 1)
  (global $next (mut i32) (i32.const 4096))
  (data (i32.const 16) "{\"module\":\"self-test\",\"sdk\":\"wat\",\"tasks\":[{\"name\":\"echo\"},{\"name\":\"spin\"}]}")
  (data (i32.const 8) "\10\00\00\00\4c\00\00\00")

  (func (export "cabi_realloc") (param i32 i32 i32) (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
    (global.set $next (i32.add (local.get $at) (local.get $size)))
    (block $room
      (loop $grow
        (br_if $room (i32.le_u (global.get $next) (i32.shl (memory.size) (i32.const 16))))
        (br_if $grow (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))
        unreachable))
    (local.get $at))

  (func (export "rtask:task/handler@0.2.0#describe") (result i32)
    (i32.const 8))

  (func (export "rtask:task/handler@0.2.0#run")
    (param $task i32) (param i32) (param $payload i32) (param $length i32) (result i32)
    (if (i32.eq (i32.load8_u (local.get $task)) (i32.const 115)) (then (loop $for_ever (br $for_ever))))
    ;; The case ok, then the payload itself as the result.
    (i32.store8 (i32.const 1024) (i32.const 0))
    (i32.store (i32.const 1028) (local.get $payload))
    (i32.store (i32.const 1032) (local.get $length))
    (i32.const 1024)))
"#;
