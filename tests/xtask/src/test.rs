//! `cargo xtask test`: everything that the tests need, then all of them.

use std::path::Path;

use anyhow::Result;

use crate::{
    interrupt, python,
    servers::{self, Servers},
    steps::Steps,
    workspace::{Profile, Workspace, folder_for_workers},
};

/// The guest crates that tests deploy, each with the variable that names its component.
const GUESTS: [(&str, &str); 2] = [("examples/hello", "RTASK_TEST_HELLO"), ("tests/guests/probe", "RTASK_TEST_PROBE")];

/// Run all tests, or those of some packages, or those whose names contain `filter`; whether they passed. `full` has them
/// take the time that the whole of what they try takes.
///
/// # Errors
/// When the tests cannot be set up.
pub fn run(workspace: &Workspace, filter: Option<&str>, packages: &[String], full: bool) -> Result<bool> {
    let steps = Steps::default();
    workspace.ensure_guest_target(&steps)?;
    let python = python::ensure_venv(workspace, &steps)?;
    let rtask = workspace.build_rtask(Profile::Dev, &steps)?;
    let mut cargo = workspace.cargo();
    for (folder, variable) in GUESTS {
        cargo.env(variable, workspace.build_guest(&rtask, folder, &steps)?);
    }
    let servers = Servers::start(&steps)?;
    pass_on(&mut cargo, &rtask, &python, &servers);
    // So that tests which are cut short leave nothing behind.
    let temporary = folder_for_workers("rtask-tests-")?;
    cargo.env("TMPDIR", temporary.path());
    if full {
        cargo.env("RTASK_TEST_FULL", "1");
    }
    cargo.args(["test", "--no-fail-fast"]);
    match packages {
        [] => cargo.arg("--workspace"),
        named => cargo.args(named.iter().flat_map(|name| ["--package", name])),
    };
    cargo.args(filter);
    Ok(interrupt::run(&mut cargo)?.success())
}

fn pass_on(cargo: &mut std::process::Command, rtask: &Path, python: &Path, servers: &Servers) {
    cargo.env("RTASK_TEST_BIN", rtask).env("RTASK_TEST_PYTHON", python);
    cargo.env(servers::AMQP_URL, &servers.amqp_url).env(servers::RABBITMQCTL, &servers.rabbitmqctl);
    cargo.env(servers::REDIS_URL, &servers.redis_url);
}
