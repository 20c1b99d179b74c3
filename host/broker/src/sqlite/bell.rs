//! How a process hears at once that another one has committed something.
//!
//! Watching the database's own files is not enough: they are written before the commit can be seen, and not
//! after. So whoever has committed something that others wait for then writes a byte into a file beside the
//! database, and everybody watches that.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::inotify,
    pipe::{PipeFlags, pipe_with},
};
use tokio::sync::watch;

/// What is read of the waiting events at a time; they all mean the same.
const EVENTS_BUFFER: usize = 4096;

/// Rings in every process that has one at the same path.
pub(super) struct Bell {
    file: File,
    rung: Arc<watch::Sender<u64>>,
    /// The listening thread ends when this does; none if this machine has no watches left.
    _listening: Option<OwnedFd>,
}

impl Bell {
    /// Hang one beside the database at `path`.
    pub fn hang(path: &Path) -> io::Result<Self> {
        let path = beside(path);
        let file = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(&path)?;
        let rung = Arc::new(watch::Sender::new(0));
        let listening = listen(&path, rung.clone()).inspect_err(|error| {
            tracing::warn!(%error, "other processes' messages are noticed once a second only");
        });
        Ok(Self { file, rung, _listening: listening.ok() })
    }

    /// Tell everybody, this process first.
    pub fn ring(&self) {
        self.rung.send_modify(next);
        if let Err(error) = self.file.write_all_at(b"!", 0) {
            tracing::warn!(%error, "other processes are not told of a change; they look once a second");
        }
    }

    /// Changes whenever somebody has rung.
    pub fn rung(&self) -> watch::Receiver<u64> {
        self.rung.subscribe()
    }
}

fn next(count: &mut u64) {
    *count = count.wrapping_add(1);
}

fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push("-bell");
    name.into()
}

/// A thread, and not a task, since it serves every runtime of the process that uses the store.
fn listen(path: &Path, rung: Arc<watch::Sender<u64>>) -> io::Result<OwnedFd> {
    let watched = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&watched, path, inotify::WatchFlags::MODIFY)?;
    let (stop, stopper) = pipe_with(PipeFlags::CLOEXEC)?;
    std::thread::Builder::new().name("rtask-bell".to_owned()).spawn(move || {
        while wait(&watched, &stop) {
            rung.send_modify(next);
        }
    })?;
    Ok(stopper)
}

/// Answers whether it rang, rather than that listening is over.
fn wait(watched: &OwnedFd, stop: &OwnedFd) -> bool {
    let mut ready = [PollFd::new(watched, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
    match poll(&mut ready, None) {
        Ok(_) if !ready[1].revents().is_empty() => return false,
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(_) => return false,
    }
    let mut buffer = [MaybeUninit::<u8>::uninit(); EVENTS_BUFFER];
    while rustix::io::read(watched.as_fd(), &mut buffer).is_ok_and(|(read, _)| !read.is_empty()) {}
    true
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn whoever_has_a_bell_at_the_same_path_hears_it_ring() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rtask.db");
        let (here, there) = (Bell::hang(&path).unwrap(), Bell::hang(&path).unwrap());
        let mut heard = there.rung();
        for _ in 0..3 {
            here.ring();
            tokio::time::timeout(Duration::from_secs(30), heard.changed()).await.unwrap().unwrap();
        }
    }
}
