//! Ctrl-C and its kin: the command in the foreground is ended, and the work ends as it does on any error.

use std::{
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus},
    sync::atomic::{AtomicBool, AtomicI32, Ordering},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

static HAPPENED: AtomicBool = AtomicBool::new(false);
/// The process group of the command in the foreground; 0 without one.
static FOREGROUND: AtomicI32 = AtomicI32::new(0);

/// Listen for interrupts from now on. The first asks the command in the foreground to end, the next ends it.
///
/// # Errors
/// When the handlers cannot be set.
pub fn watch() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("failed to listen for interrupts")?;
    std::thread::spawn(move || {
        for _ in signals.forever() {
            let again = HAPPENED.swap(true, Ordering::SeqCst);
            end_foreground(if again { Signal::SIGKILL } else { Signal::SIGTERM });
        }
    });
    Ok(())
}

fn end_foreground(signal: Signal) {
    let group = FOREGROUND.load(Ordering::SeqCst);
    if group > 0 {
        // It may have ended just now.
        let _ = killpg(Pid::from_raw(group), signal);
    }
}

pub fn happened() -> bool {
    HAPPENED.load(Ordering::SeqCst)
}

/// To be called wherever something is waited for.
///
/// # Errors
/// After an interrupt.
pub fn check() -> Result<()> {
    ensure!(!happened(), "interrupted");
    Ok(())
}

/// Run a command to its end in the foreground.
///
/// # Errors
/// When it cannot be started, or after an interrupt.
pub fn run(command: &mut Command) -> Result<ExitStatus> {
    run_with(command, |_| Ok(()))
}

/// The same, with `meanwhile` reading what the command writes.
///
/// # Errors
/// As [`run`], and those of `meanwhile`.
pub fn run_with(command: &mut Command, meanwhile: impl FnOnce(&mut Child) -> Result<()>) -> Result<ExitStatus> {
    check()?;
    let name = command.get_program().to_string_lossy().into_owned();
    // A group of its own, so that what the command itself starts is ended with it.
    let mut child = command.process_group(0).spawn().with_context(|| format!("failed to start `{name}`"))?;
    FOREGROUND.store(child.id().cast_signed(), Ordering::SeqCst);
    if happened() {
        // The interrupt came before there was a group to tell.
        end_foreground(Signal::SIGTERM);
    }
    let seen = meanwhile(&mut child);
    let status = child.wait();
    FOREGROUND.store(0, Ordering::SeqCst);
    check()?;
    seen?;
    status.with_context(|| format!("failed to wait for `{name}`"))
}
