//! Programs that the tests need and a machine may lack.

use std::process::Command;

use anyhow::{Result, bail, ensure};
use nix::unistd::Uid;

use crate::{interrupt, process::find_program, steps::Steps};

/// Install Debian packages.
///
/// # Errors
/// Where this process may not, or there is no apt: with `otherwise`, what to do by hand.
pub fn install(names: &[&str], otherwise: &str, steps: &Steps) -> Result<()> {
    let list = names.join(" ");
    if !Uid::effective().is_root() || find_program("apt-get").is_none() {
        bail!("this machine lacks {list} and only root on a Debian-like system can install it here; {otherwise}");
    }
    let step = steps.begin(format!("Installing {list}"));
    apt(&["update"])?;
    apt(&[["install", "--yes", "--no-install-recommends"].as_slice(), names].concat())?;
    step.done("installed");
    Ok(())
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.arg("--quiet=2").args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    // So that the packages' own services are not started: ours run beside, on ports of their own.
    command.env("RUNLEVEL", "1");
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    let status = interrupt::run(&mut command)?;
    ensure!(status.success(), "`apt-get {}` failed ({status})", arguments.join(" "));
    Ok(())
}
