//! What the kernel says of a process, from outside (proc(5)).

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::PATIENCE;

/// What a thread may do.
#[derive(Debug)]
pub struct Standing {
    pub pid: u32,
    pub thread: u32,
    /// Real, effective, saved, file system.
    pub uids: Vec<u32>,
    pub gids: Vec<u32>,
    pub groups: Vec<u32>,
    pub no_new_privs: bool,
    /// Effective capabilities, a bit mask.
    pub capabilities: u64,
}

/// What a process has open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// Between this process and another on the machine.
    Unix,
    /// TCP, UDP and whatever else leaves the machine.
    Network,
    Pipe,
    /// Memory without a name on disk.
    Memory,
    /// The kernel's own: event, timer and poll descriptors.
    Kernel,
    /// Something with a path.
    File(PathBuf),
}

/// Of every thread of a process.
///
/// # Errors
/// When the process has ended or may not be looked at.
pub fn standings(pid: u32) -> io::Result<Vec<Standing>> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))?;
    threads.map(|thread| standing(pid, &thread?.path())).collect()
}

fn standing(pid: u32, thread: &Path) -> io::Result<Standing> {
    let status = fs::read_to_string(thread.join("status"))?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let numbers = |name: &str| field(name).split_whitespace().map_while(|number| number.parse().ok()).collect();
    Ok(Standing {
        pid,
        thread: thread.file_name().and_then(|name| name.to_str()?.parse().ok()).unwrap_or(pid),
        uids: numbers("Uid:"),
        gids: numbers("Gid:"),
        groups: numbers("Groups:"),
        no_new_privs: field("NoNewPrivs:") == "1",
        capabilities: u64::from_str_radix(field("CapEff:"), 16).unwrap_or(u64::MAX),
    })
}

/// How much memory a process has in use, in bytes.
///
/// # Errors
/// As [`standings`].
pub fn memory(pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB"));
    let kilobytes: Option<u64> = field.and_then(|number| number.trim().parse().ok());
    Ok(kilobytes.ok_or_else(|| io::Error::other(format!("process {pid} tells nothing of its memory")))? << 10)
}

/// The environment that a process was started with.
///
/// # Errors
/// As [`standings`].
pub fn environment(pid: u32) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/environ"))?).into_owned())
}

/// Everything that a process has open.
///
/// # Errors
/// As [`standings`].
pub fn descriptors(pid: u32) -> io::Result<Vec<Descriptor>> {
    let network = network_sockets(pid)?;
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        match fs::read_link(entry?.path()) {
            Ok(link) => found.push(descriptor(&link, &network)),
            // Closed since the listing.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn descriptor(link: &Path, network: &BTreeSet<String>) -> Descriptor {
    let text = link.to_string_lossy();
    match text.split_once(':') {
        Some(("socket", inode)) if network.contains(inode.trim_matches(['[', ']'])) => Descriptor::Network,
        Some(("socket", _)) => Descriptor::Unix,
        Some(("pipe", _)) => Descriptor::Pipe,
        Some(("anon_inode", _)) => Descriptor::Kernel,
        Some(("/memfd", _)) => Descriptor::Memory,
        _ => Descriptor::File(link.to_owned()),
    }
}

/// The inodes of every socket in the process's network that is not a Unix one.
fn network_sockets(pid: u32) -> io::Result<BTreeSet<String>> {
    let mut inodes = BTreeSet::new();
    for table in ["tcp", "tcp6", "udp", "udp6", "raw", "raw6"] {
        match fs::read_to_string(format!("/proc/{pid}/net/{table}")) {
            Ok(table) => {
                inodes.extend(table.lines().skip(1).filter_map(|row| Some(row.split_whitespace().nth(9)?.to_owned())))
            }
            // A kernel without that protocol.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(inodes)
}

/// Wait until a process has ended.
///
/// # Panics
/// When it has not after [`PATIENCE`].
pub fn wait_for_end(pid: u32) {
    let Some(pid) = Pid::from_raw(pid.cast_signed()) else {
        return;
    };
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(Errno::SRCH) => return,
        Err(error) => panic!("failed to watch process {pid:?}: {error}"),
    };
    // It becomes readable at the end.
    let mut watched = [PollFd::new(&process, PollFlags::IN)];
    let limit = Timespec::try_from(PATIENCE).expect("two minutes are a time");
    let ended = poll(&mut watched, Some(&limit)).expect("a process can be waited for");
    assert_eq!(ended, 1, "process {pid:?} still runs");
}
