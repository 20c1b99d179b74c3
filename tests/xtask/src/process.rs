//! Processes that run beside the work and must not outlive it.

use std::{
    fs::File,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::{Pid, Uid, User},
};

use crate::interrupt;

/// How long a process may take to end after TERM.
const GRACE: Duration = Duration::from_secs(15);
/// How often something without a signal of its own is looked at.
const GLANCE: Duration = Duration::from_millis(20);
/// What of a log is shown when something went wrong (bytes).
const LOG_TAIL: usize = 4 << 10;

/// A process in a group of its own, its output in a file. Dropping it ends the group.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Running {
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log);
        let output = output.with_context(|| format!("failed to open {}", log.display()))?;
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("failed to start {name} ({})", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it has written so far.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Wait until `ready` answers something.
    ///
    /// # Errors
    /// When the process ends before, `limit` passes, or an interrupt comes; with the end of the log.
    pub fn wait_until<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut ready: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T> {
        let started = Instant::now();
        loop {
            if let Some(answer) = ready(self) {
                return Ok(answer);
            }
            interrupt::check()?;
            let name = &self.name;
            if let Some(status) = self.child.try_wait()? {
                bail!("{name} ended ({status}) before {what}; the end of its log:\n{}", self.log_tail());
            }
            if started.elapsed() > limit {
                bail!("{name}: no sign of {what} in {limit:?}; the end of its log:\n{}", self.log_tail());
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// Ask it to end, and make it end if it does not.
    ///
    /// # Errors
    /// When its end cannot be waited for.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM);
        let asked = Instant::now();
        while asked.elapsed() < GRACE {
            if let Some(status) = self.child.try_wait()? {
                // What it had started in the group and left behind.
                self.signal(Signal::SIGKILL);
                return Ok(status);
            }
            std::thread::sleep(GLANCE);
        }
        self.signal(Signal::SIGKILL);
        Ok(self.child.wait()?)
    }

    fn signal(&self, signal: Signal) {
        // A group that is gone needs no signal.
        let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), signal);
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let start = log.len().saturating_sub(LOG_TAIL);
        let start = (start..=log.len()).find(|&at| log.is_char_boundary(at)).unwrap_or(0);
        log[start..].to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None))
            && let Err(error) = self.stop()
        {
            eprintln!("failed to stop {}: {error:#}", self.name);
        }
    }
}

/// Run a short command to its end and answer what it wrote to its standard output.
///
/// # Errors
/// When it cannot be started or fails, with what it complained of.
pub fn output(command: &mut Command) -> Result<String> {
    let name = format!("{} {}", command.get_program().display(), arguments(command));
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("failed to start `{name}`"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("`{name}` failed ({}): {}", output.status, complaint.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{name}` wrote something that is not UTF-8"))
}

fn arguments(command: &Command) -> String {
    command.get_args().map(|argument| argument.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Where a program is, by the PATH of this process.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// A process and everything that it started and those started in turn, oldest first.
///
/// # Errors
/// When /proc cannot be read.
pub fn tree(root: u32) -> Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").context("failed to read /proc")? {
        let pid = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        // One that has just ended has no parent to find.
        if let Some(pid) = pid
            && let Ok(parent) = status_field(pid, "PPid")
        {
            parents.push((pid, parent));
        }
    }
    let mut family = vec![root];
    let mut next = 0;
    while let Some(parent) = family.get(next).map(u32::to_string) {
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    family.sort_unstable();
    Ok(family)
}

/// The name of the user that a process runs as, or the number of a user without a name.
///
/// # Errors
/// When there is no such process.
pub fn user(pid: u32) -> Result<String> {
    let uids = status_field(pid, "Uid")?;
    let real = uids.split_whitespace().next().unwrap_or_default();
    let named = real.parse().ok().and_then(|uid| User::from_uid(Uid::from_raw(uid)).ok().flatten());
    Ok(named.map_or_else(|| real.to_owned(), |user| user.name))
}

fn status_field(pid: u32, field: &str) -> Result<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    Ok(value.with_context(|| format!("no {field} in the status of process {pid}"))?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(folder: &Path) -> Running {
        // The sleep is the shell's child: a second generation.
        let mut shell = Command::new("sh");
        Running::start("a shell", shell.args(["-c", "echo up; sleep 600; echo down"]), &folder.join("log")).unwrap()
    }

    fn wait_for_tree(shell: &mut Running) -> Vec<u32> {
        let pid = shell.pid();
        let family = |_: &Running| tree(pid).ok().filter(|family| family.len() == 2);
        shell.wait_until("it had a child", Duration::from_secs(30), family).unwrap()
    }

    #[test]
    fn dropping_a_process_ends_what_it_started_too() {
        let folder = tempfile::tempdir().unwrap();
        let mut shell = sleeper(folder.path());
        let family = wait_for_tree(&mut shell);
        assert_eq!(family[0], shell.pid());
        assert!(user(family[1]).is_ok());
        drop(shell);
        // The group was killed; the kernel may still be at it.
        let deadline = Instant::now() + Duration::from_secs(30);
        let lives = |pid: &u32| status_field(*pid, "State").is_ok_and(|state| !state.starts_with('Z'));
        while let Some(pid) = family.iter().find(|pid| lives(pid)) {
            assert!(Instant::now() < deadline, "process {pid} still runs");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_process_that_ends_before_it_is_ready_is_an_error_with_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo no room; exit 3"]);
        let mut shell = Running::start("a shell", &mut shell, &folder.path().join("log")).unwrap();
        let error = shell.wait_until("it was ready", Duration::from_secs(30), |_| None::<()>).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("exit status: 3") && error.contains("no room"), "{error}");
    }
}
