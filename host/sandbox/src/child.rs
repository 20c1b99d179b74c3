//! The two kinds of child process, how they are started, and how they are locked in before their first thread.
//!
//! A child is this same executable. It gets its role and its settings as arguments, an empty environment, and
//! three descriptors: 0 and 1 as its role defines them, 2 a pipe for complaints.

use std::{
    os::fd::OwnedFd,
    process::{ExitCode, Stdio},
};

use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::{SigSet, Signal},
};
use serde::{Deserialize, Serialize};

use crate::{
    Account, compiler, guest,
    privileges::{self, PrivilegeError},
};

/// What a child is for, with everything that it needs to know.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Role {
    Compiler(compiler::Settings),
    Runner(guest::Settings),
}

/// The first argument of a child; chosen so that nobody types it by accident.
const MARK: &str = "sandbox-child";

/// Descriptors a child may have open at once: its sockets, the epoll instances of its runtime, and one per loaded
/// loaded component, whose memory images it maps.
const MAX_DESCRIPTORS: u64 = 8_192;

/// The arguments after [`MARK`].
#[derive(Debug, Serialize, Deserialize)]
struct Orders {
    role: Role,
    /// Who to become, if the parent is root.
    account: Account,
}

/// If this process was started as a child, do the child's work and answer with its exit code. To be called
/// first in `main`, before any thread and any reading of arguments.
pub fn dispatch() -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(MARK) {
        return None;
    }
    let orders = arguments.next().and_then(|text| serde_json::from_str::<Orders>(&text).ok());
    let Some(orders) = orders else {
        eprintln!("`{MARK}` is for rtask's own use");
        return Some(ExitCode::from(2));
    };
    if let Err(error) = lock_in(&orders.account) {
        eprintln!("failed to lock the sandbox: {error}");
        return Some(ExitCode::FAILURE);
    }
    let name = match orders.role {
        Role::Compiler(_) => c"rtask-compiler",
        Role::Runner(_) => c"rtask-runner",
    };
    // What `ps` and `top` show; a kernel that refuses shows `exe`.
    let _ = nix::sys::prctl::set_name(name);
    Some(match orders.role {
        Role::Compiler(settings) => compiler::child(&settings),
        Role::Runner(settings) => {
            leave_signals_to_the_supervisor();
            guest::main(settings)
        }
    })
}

/// Give up everything that a child does not need. The order matters: descriptors first, since nothing later
/// may fail with one of the parent's still open; Landlock, seccomp and namespaces belong at the end, when
/// nothing else needs to be opened.
fn lock_in(account: &Account) -> Result<(), PrivilegeError> {
    close_inherited();
    if privileges::is_root() {
        privileges::drop_root(account)?;
    }
    privileges::gain_nothing()?;
    let refused = |source| PrivilegeError::Refused { step: "limit resources", source };
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(refused)?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(refused)?;
    let descriptors = MAX_DESCRIPTORS.min(most);
    setrlimit(Resource::RLIMIT_NOFILE, descriptors, descriptors).map_err(refused)?;
    // If memory runs out it is for one of these to go, and not for a supervisor or a server; where there is no
    // /proc, the kernel decides.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    Ok(())
}

/// A runner ends when its supervisor closes the socket. Signals to a whole group or control group, from a terminal
/// or a service manager, are for the supervisor, which finishes what runs.
fn leave_signals_to_the_supervisor() {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        signals.add(signal);
    }
    // Threads inherit the mask. It cannot fail for signals that exist.
    let _ = signals.thread_block();
}

/// The parent's descriptors are close-on-exec; this is for those that its own parent left open.
fn close_inherited() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let open: Vec<i32> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|&descriptor| descriptor > 2) {
        // The listing's own descriptor is among them and is closed already.
        let _ = nix::unistd::close(descriptor);
    }
}

/// Start a child with `input` as its descriptor 0 and `output` as its descriptor 1.
pub(crate) fn spawn(
    role: Role,
    account: Option<&Account>,
    input: OwnedFd,
    output: OwnedFd,
) -> std::io::Result<tokio::process::Child> {
    let orders = Orders { role, account: account.cloned().unwrap_or_else(Account::nobody) };
    let orders = serde_json::to_string(&orders).expect("plain values always serialise");
    // The link leads to this executable even where the path does not: after an upgrade on disk, and where an
    // unprivileged user may not walk to it.
    tokio::process::Command::new("/proc/self/exe")
        .arg0("rtask")
        .args([MARK, &orders])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output))
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        // Ctrl-C on a terminal reaches every process of the foreground group; it is for the supervisor alone,
        // which lets its runs finish.
        .process_group(0)
        .spawn()
}
