//! What a run says: log lines, states, and its standard streams as lines; all within the run's limits.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::{
    cli::{IsTerminal, StdoutStream},
    p2::{OutputStream, Pollable, StreamError, StreamResult},
};

use crate::{Level, Limit, Limits, Notice, frames::NOTICE_COST};

/// A line of standard output is cut here (bytes).
const MAX_LINE: usize = 8 << 10;
/// What a guest may write to a stream in one call (bytes); WASI's callers ask before they write.
const WRITE_SIZE: usize = 64 << 10;

/// Where a run's notices go, and what is left of its limits.
pub(super) struct Notices {
    send: Box<dyn Fn(Notice) + Send + Sync>,
    log_left: AtomicU64,
    log_cut: AtomicBool,
    states_left: AtomicU32,
    states_size_left: AtomicU64,
    states: u32,
    states_size: u64,
}

impl Notices {
    pub(super) fn new(limits: &Limits, send: impl Fn(Notice) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            send: Box::new(send),
            log_left: AtomicU64::new(limits.log),
            log_cut: AtomicBool::new(false),
            states_left: AtomicU32::new(limits.states),
            states_size_left: AtomicU64::new(limits.states_size),
            states: limits.states,
            states_size: limits.states_size,
        })
    }

    /// Lines over the limit are dropped, and the first of them is replaced by a line that says so.
    pub(super) fn log(&self, level: Level, message: String) {
        // A line costs what it costs to carry, so that a flood of empty ones ends too.
        let cost = message.len() as u64 + NOTICE_COST;
        if spend(&self.log_left, cost) {
            (self.send)(Notice::Log { level, message });
        } else if !self.log_cut.swap(true, Ordering::Relaxed) {
            let message = "the task said more than its log limit allows; the rest is dropped".to_owned();
            (self.send)(Notice::Log { level: Level::Warning, message });
        }
    }

    pub(super) fn state(&self, state: String, meta: String) -> Result<(), Limit> {
        let one = self.states_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if one.is_err() {
            return Err(Limit::States(self.states));
        }
        if !spend(&self.states_size_left, (state.len() + meta.len()) as u64) {
            return Err(Limit::StatesSize(self.states_size));
        }
        (self.send)(Notice::State { state, meta });
        Ok(())
    }
}

fn spend(left: &AtomicU64, cost: u64) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(cost)).is_ok()
}

/// A standard stream of a guest.
#[derive(Clone)]
pub(super) struct Stream {
    pub(super) level: Level,
    pub(super) notices: Arc<Notices>,
}

impl IsTerminal for Stream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Stream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(Lines::new(self.clone()))
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(Lines::new(self.clone()))
    }
}

/// Cuts what is written into lines; the last one ends when the stream does.
struct Lines {
    stream: Stream,
    line: Vec<u8>,
}

impl Lines {
    fn new(stream: Stream) -> Self {
        Self { stream, line: Vec::new() }
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.stream.notices.log_cut.load(Ordering::Relaxed) {
            return;
        }
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            let room = MAX_LINE.saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let text = String::from_utf8_lossy(&self.line).trim_end().to_owned();
        self.line.clear();
        self.stream.notices.log(self.stream.level, text);
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.end_line();
        }
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Lines {
    async fn ready(&mut self) {}
}

impl OutputStream for Lines {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.len() > WRITE_SIZE {
            return Err(StreamError::trap("a stream was written more than it had room for"));
        }
        self.take(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_SIZE)
    }
}

impl AsyncWrite for Lines {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.take(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn heard(limits: &Limits) -> (Arc<Notices>, Arc<Mutex<Vec<Notice>>>) {
        let heard: Arc<Mutex<Vec<Notice>>> = Arc::default();
        let ours = heard.clone();
        (Notices::new(limits, move |notice| ours.lock().unwrap().push(notice)), heard)
    }

    fn lines(heard: &Mutex<Vec<Notice>>) -> Vec<String> {
        let message = |notice: &Notice| match notice {
            Notice::Log { message, .. } => message.clone(),
            Notice::State { state, .. } => state.clone(),
        };
        heard.lock().unwrap().iter().map(message).collect()
    }

    #[test]
    fn a_stream_becomes_lines() {
        let (notices, heard) = heard(&Limits::default());
        let mut stream = Lines::new(Stream { level: Level::Info, notices });
        stream.take(b"one\ntw");
        stream.take(b"o\nrest");
        drop(stream);
        assert_eq!(lines(&heard), ["one", "two", "rest"]);
    }

    #[test]
    fn a_flood_is_cut_and_said_to_be() {
        let (notices, heard) = heard(&Limits { log: 10 * NOTICE_COST, ..Limits::default() });
        let mut stream = Lines::new(Stream { level: Level::Info, notices });
        stream.take("\n".repeat(1000).as_bytes());
        let lines = lines(&heard);
        assert_eq!(lines.len(), 11);
        assert!(lines[10].contains("log limit"));
    }

    #[test]
    fn states_are_counted_and_weighed() {
        let (notices, _) = heard(&Limits { states: 2, states_size: 10, ..Limits::default() });
        assert_eq!(notices.state("A".into(), "1".into()), Ok(()));
        assert_eq!(notices.state("A".into(), "123456789".into()), Err(Limit::StatesSize(10)));
        assert_eq!(notices.state("A".into(), "1".into()), Err(Limit::States(2)));
    }
}
