//! A Python with the real Celery in it, beside the build's own output.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    interrupt, packages,
    process::{find_program, output},
    steps::Steps,
    workspace::Workspace,
};

/// Celery 5.7 needs it.
const OLDEST: (u32, u32) = (3, 10);
const BY_HAND: &str = "install Python 3.10 or newer with its venv module";

/// The interpreter of a virtual environment that holds tests/requirements.txt. It is made anew whenever that
/// file or the system's Python has changed.
///
/// # Errors
/// When there is no Python, or PyPI cannot be reached.
pub fn ensure_venv(workspace: &Workspace, steps: &Steps) -> Result<PathBuf> {
    if find_program("python3").is_none() || !can_make_venvs() {
        packages::install(&["python3", "python3-venv"], BY_HAND, steps)?;
    }
    let step = steps.begin("Celery in a virtual environment");
    let folder = workspace.target.join("test-venv");
    let (python, stamp) = (folder.join("bin/python"), folder.join("made-of.txt"));
    let requirements = workspace.root.join("tests/requirements.txt");
    let wanted = std::fs::read_to_string(&requirements).context("failed to read tests/requirements.txt")?;
    let wanted = format!("# Python {}\n{wanted}", version()?);
    if std::fs::read_to_string(&stamp).is_ok_and(|made_of| made_of == wanted) {
        step.done("is there");
        return Ok(python);
    }
    make(&folder, &python, &requirements)?;
    std::fs::write(&stamp, wanted).context("failed to note what the virtual environment was made of")?;
    step.done("made");
    Ok(python)
}

fn make(folder: &Path, python: &Path, requirements: &Path) -> Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).context("failed to remove the old virtual environment")?;
    }
    let mut venv = Command::new("python3");
    let status = interrupt::run(venv.args(["-m", "venv"]).arg(folder))?;
    ensure!(status.success(), "failed to make a virtual environment ({status}); {BY_HAND}");
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]).arg(requirements);
    let status = interrupt::run(&mut pip)?;
    ensure!(status.success(), "failed to install {} from PyPI ({status})", requirements.display());
    Ok(())
}

/// Debian ships Python without them.
fn can_make_venvs() -> bool {
    output(Command::new("python3").args(["-c", "import ensurepip, venv"])).is_ok()
}

fn version() -> Result<String> {
    let version = output(Command::new("python3").args(["-c", "import sys; print(*sys.version_info[:3], sep='.')"]))?;
    let mut numbers = version.trim().split('.').map_while(|number| number.parse::<u32>().ok());
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    ensure!(found >= OLDEST, "python3 is version {}, too old for Celery; {BY_HAND}", version.trim());
    Ok(version.trim().to_owned())
}
