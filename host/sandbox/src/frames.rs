//! What a supervisor and a runner say to each other: messages in batches, length-prefixed.
//!
//! A frame is a little-endian u32 of its length and that many bytes of postcard messages, back to back. Each side
//! writes whatever has queued up as one frame.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{Answer, Ask, Exit, Job, Limits, Notice};

/// What a notice counts for beside its text, against the limits of its run (bytes).
pub(crate) const NOTICE_COST: u64 = 64;
/// The most that a payload or a result may have, whatever its limits say (bytes).
pub const MAX_PAYLOAD: u64 = 64 << 20;
/// A frame longer than this is a broken peer's (bytes): room for a payload, what is about it, and a full batch.
const MAX_FRAME: usize = 2 * MAX_PAYLOAD as usize;
/// A batch is closed once it has this many bytes.
const FULL_FRAME: usize = 256 << 10;

/// Supervisor to runner.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    Run {
        run: u64,
        component: u32,
        job: Job,
    },
    Describe {
        run: u64,
        component: u32,
        limits: Limits,
    },
    /// End a run, wherever it is; one that has ended is none.
    Cancel {
        run: u64,
    },
    /// What a run asked for; it waits for nothing else meanwhile, so that the two need no number.
    Answer {
        run: u64,
        answer: Answer,
    },
    /// Forget a component; runs that began with it end on it.
    Unload {
        component: u32,
    },
}

/// Runner to supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The first of all: the runner is able to work.
    Ready,
    Notice {
        run: u64,
        notice: Notice,
    },
    Ask {
        run: u64,
        ask: Ask,
    },
    Exit {
        run: u64,
        exit: Exit,
    },
}

/// Supervisor to runner on the modules socket, with the code's descriptor beside it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Load {
    pub component: u32,
}

/// The answer on the modules socket, to the component of the same number.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LoadAnswer {
    pub component: u32,
    pub loaded: Loaded,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Loaded {
    Ready,
    NoHandler,
    /// It exports the handler of another version of the contract: this one.
    OtherVersion(String),
    Refused(String),
}

/// A frame in the making; its memory is used again for the next.
pub(crate) struct Batch(Vec<u8>);

impl Batch {
    pub(crate) fn new() -> Self {
        Self(vec![0; 4])
    }

    pub(crate) fn push<T: Serialize>(&mut self, message: &T) {
        let bytes = std::mem::take(&mut self.0);
        self.0 = postcard::to_extend(message, bytes).expect("messages are plain values, and memory grows");
    }

    pub(crate) fn is_full(&self) -> bool {
        self.0.len() >= FULL_FRAME
    }

    pub(crate) async fn send(&mut self, to: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
        let length = u32::try_from(self.0.len() - 4).map_err(std::io::Error::other)?;
        self.0[..4].copy_from_slice(&length.to_le_bytes());
        let sent = to.write_all(&self.0).await;
        self.0.truncate(4);
        self.0.shrink_to(FULL_FRAME * 2);
        sent
    }
}

/// Read one frame and hand each of its messages to `take`. False at the end of the stream.
pub(crate) async fn receive<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
    mut take: impl FnMut(T),
) -> std::io::Result<bool> {
    let mut length = [0; 4];
    match from.read_exact(&mut length).await {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
        Err(error) => return Err(error),
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_FRAME {
        return Err(std::io::Error::other(format!("a frame of {length} bytes is too long")));
    }
    buffer.resize(length, 0);
    from.read_exact(buffer).await?;
    let mut rest = buffer.as_slice();
    while !rest.is_empty() {
        let (message, after) = postcard::take_from_bytes(rest).map_err(std::io::Error::other)?;
        take(message);
        rest = after;
    }
    buffer.clear();
    buffer.shrink_to(FULL_FRAME * 2);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn batches_arrive_message_by_message() {
        let (mut near, mut far) = tokio::io::duplex(1 << 20);
        let mut batch = Batch::new();
        for run in 0..3 {
            batch.push(&Report::Exit { run, exit: Exit::Returned("4".into()) });
        }
        batch.send(&mut near).await.unwrap();
        drop(near);
        let (mut runs, mut buffer) = (Vec::new(), Vec::new());
        let take = |report: Report| {
            let Report::Exit { run, exit } = report else { panic!("{report:?}") };
            assert_eq!(exit, Exit::Returned("4".into()));
            runs.push(run);
        };
        assert!(receive(&mut far, &mut buffer, take).await.unwrap());
        assert_eq!(runs, [0, 1, 2]);
        assert!(!receive(&mut far, &mut buffer, |_: Report| ()).await.unwrap());
    }

    #[tokio::test]
    async fn a_peer_that_talks_nonsense_is_an_error_and_no_panic() {
        for bytes in [&[255; 64][..], &[4, 0, 0, 0, 9, 9, 9, 9], &[200, 0, 0, 0, 1]] {
            let mut buffer = Vec::new();
            let mut from = bytes;
            let received = receive(&mut from, &mut buffer, |_: Report| ()).await;
            assert!(received.is_err(), "{bytes:?}");
        }
    }
}
