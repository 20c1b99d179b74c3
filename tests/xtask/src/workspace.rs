//! This repository and its cargo: where things are, and how they are built.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use nix::unistd::{Uid, User, chown};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    interrupt,
    process::output,
    steps::{Step, Steps},
};

/// What guests are compiled for.
pub const GUEST_TARGET: &str = "wasm32-wasip2";
/// How many of cargo's last lines are shown when a build fails.
const SHOWN_LINES: usize = 60;

/// Where things are.
#[derive(Debug)]
pub struct Workspace {
    pub root: PathBuf,
    /// Cargo's target directory, wherever CARGO_TARGET_DIR and its kin have put it.
    pub target: PathBuf,
    /// What `cargo metadata` says of the workspace's own packages.
    pub packages: Vec<Value>,
}

/// The profile of a build of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    Dev,
    Release,
}

impl Workspace {
    /// # Errors
    /// When cargo does not know of it.
    pub fn find() -> Result<Self> {
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let arguments = ["metadata", "--no-deps", "--format-version", "1", "--manifest-path", manifest];
        let metadata = output(Command::new(cargo()).args(arguments))?;
        let mut metadata: Value = serde_json::from_str(&metadata).context("failed to read cargo's metadata")?;
        let path = |name: &str| metadata[name].as_str().map(PathBuf::from).with_context(|| format!("no {name}"));
        let (root, target) = (path("workspace_root")?, path("target_directory")?);
        let packages = match metadata["packages"].take() {
            Value::Array(packages) => packages,
            other => anyhow::bail!("cargo's metadata names no packages but {other}"),
        };
        Ok(Self { root, target, packages })
    }

    /// Cargo, at home in this workspace.
    pub fn cargo(&self) -> Command {
        self.command(cargo())
    }

    /// A command in this workspace, without what `cargo run` says of xtask itself: build scripts that look at
    /// those variables would run again each time.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        let of_xtask = |name: &str| ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|start| name.starts_with(start));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_xtask)) {
            command.env_remove(name);
        }
        command
    }

    /// The binary `rtask` of a profile, built or not.
    pub fn rtask(&self, profile: Profile) -> PathBuf {
        let folder = match profile {
            Profile::Dev => "debug",
            Profile::Release => "release",
        };
        self.target.join(folder).join("rtask")
    }

    /// The component that `rtask build` makes of a guest crate.
    pub fn component(&self, crate_name: &str) -> PathBuf {
        self.target.join(GUEST_TARGET).join("release").join(format!("{crate_name}.wasm"))
    }

    /// Install the target that guests are compiled for; rustup does not do so by itself where RUSTUP_AUTO_INSTALL
    /// is 0.
    ///
    /// # Errors
    /// When rustup is missing or cannot install it.
    pub fn ensure_guest_target(&self, steps: &Steps) -> Result<()> {
        let step = steps.begin(format!("Target {GUEST_TARGET}"));
        let installed = output(self.command("rustup").args(["target", "list", "--installed"]));
        let installed = installed.context("rustup is needed to install the target that guests are compiled for")?;
        if installed.lines().any(|line| line.trim() == GUEST_TARGET) {
            step.done("is there");
            return Ok(());
        }
        follow(self.command("rustup").args(["target", "add", GUEST_TARGET]), &step)?;
        step.done("installed");
        Ok(())
    }

    /// Build the binary `rtask`.
    ///
    /// # Errors
    /// When it does not build, with cargo's words.
    pub fn build_rtask(&self, profile: Profile, steps: &Steps) -> Result<PathBuf> {
        let step = steps.begin("Building rtask (wasmtime takes a while, the first time)");
        let mut cargo = self.cargo();
        cargo.args(["build", "--package", "rtask-cli"]);
        if profile == Profile::Release {
            cargo.arg("--release");
        }
        follow(&mut cargo, &step)?;
        step.done("built");
        Ok(self.rtask(profile))
    }

    /// Build a guest crate with `rtask build`, as users do.
    ///
    /// # Errors
    /// When it does not build.
    pub fn build_guest(&self, rtask: &Path, folder: &str, steps: &Steps) -> Result<PathBuf> {
        let step = steps.begin(format!("rtask build {folder}"));
        follow(self.command(rtask).args(["build", folder]), &step)?;
        let crate_name = Path::new(folder).file_name().and_then(OsStr::to_str).context("a guest crate has a name")?;
        let component = self.component(&crate_name.replace('-', "_"));
        ensure!(component.is_file(), "`rtask build {folder}` made no {}", component.display());
        step.done("built");
        Ok(component)
    }
}

/// A temporary folder that a worker can write to, also one that gives up root for `nobody` at its start.
///
/// # Errors
/// When it cannot be made or handed over.
pub fn folder_for_workers(prefix: &str) -> Result<TempDir> {
    let folder = tempfile::Builder::new().prefix(prefix).tempdir()?;
    if Uid::effective().is_root() {
        let nobody = User::from_name("nobody")?.context("there is no user `nobody` for the worker to become")?;
        chown(folder.path(), Some(nobody.uid), Some(nobody.gid)).context("failed to hand a folder over to `nobody`")?;
    }
    Ok(folder)
}

/// The cargo that runs this, or the one in PATH.
fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// Run a command that tells its progress on its standard error, and show the latest of it.
fn follow(command: &mut Command, step: &Step) -> Result<()> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut lines = Vec::new();
    let status = interrupt::run_with(command, |child: &mut Child| {
        let Some(stderr) = child.stderr.take() else {
            return Ok(());
        };
        for line in BufReader::new(stderr).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
            step.says(line.trim());
            lines.push(line);
        }
        Ok(())
    })?;
    let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
    ensure!(status.success(), "`{}` failed ({status}):\n{}", command.get_program().display(), shown.join("\n"));
    Ok(())
}
