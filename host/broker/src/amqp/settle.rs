//! Settling many deliveries with few frames.
//!
//! A channel's delivery tags count up from 1. Whatever is to be settled while the last frames are being written
//! is sent together: one ack for the longest finished run of tags, and single frames for the rest. Nothing waits
//! for company, so a lone ack goes out at once.

use std::{collections::BTreeSet, sync::Arc};

use futures::future::try_join_all;
use lapin::{
    Channel,
    options::{BasicAckOptions, BasicRejectOptions},
    types::DeliveryTag,
};
use tokio::sync::{mpsc, oneshot};

use super::link::Link;
use crate::{BrokerError, Verdict};

/// So many verdicts are sent together at most; more wait, as many as there are.
const BATCH: usize = 256;

/// Settles one channel's deliveries. The channel stays open for as long as one of them has a handle on it.
pub(super) struct Settler {
    requests: mpsc::Sender<Request>,
    link: Arc<Link>,
}

struct Request {
    tag: DeliveryTag,
    verdict: Verdict,
    answer: oneshot::Sender<lapin::Result<()>>,
}

impl Settler {
    pub fn new(channel: Arc<Channel>, link: Arc<Link>) -> Arc<Self> {
        let (requests, waiting) = mpsc::channel(BATCH);
        tokio::spawn(carry_out(channel, waiting));
        Arc::new(Self { requests, link })
    }

    /// Answers when the verdict has been written to the connection.
    pub async fn settle(&self, queue: &str, tag: DeliveryTag, verdict: Verdict) -> Result<(), BrokerError> {
        let not_ours = |reason: String| BrokerError::NotOurs { queue: queue.to_owned(), reason };
        let ended = || not_ours("its channel has ended".to_owned());
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request { tag, verdict, answer }).await.map_err(|_| ended())?;
        let written = answered.await.map_err(|_| ended())?;
        written.map_err(|error| not_ours(self.link.explain(&error).to_string()))
    }
}

async fn carry_out(channel: Arc<Channel>, mut waiting: mpsc::Receiver<Request>) {
    let mut progress = Progress::default();
    let mut requests = Vec::with_capacity(BATCH);
    while waiting.recv_many(&mut requests, BATCH).await > 0 {
        let written = send(&channel, &mut progress, &requests).await;
        for request in requests.drain(..) {
            // Whoever gave up waiting has no use for it.
            let _ = request.answer.send(written.clone());
        }
    }
}

async fn send(channel: &Channel, progress: &mut Progress, requests: &[Request]) -> lapin::Result<()> {
    let mut acked = Vec::with_capacity(requests.len());
    // Rejections go first, and singly, so that no ack of a run can swallow one.
    for request in requests {
        match request.verdict {
            Verdict::Ack => acked.push(request.tag),
            Verdict::Reject => channel.basic_reject(request.tag, BasicRejectOptions { requeue: false }).await?,
            Verdict::Requeue => channel.basic_reject(request.tag, BasicRejectOptions { requeue: true }).await?,
        }
    }
    let Acks { run, single } = progress.finish(requests.iter().map(|request| request.tag), acked);
    if let Some(last) = run {
        channel.basic_ack(last, BasicAckOptions { multiple: true }).await?;
    }
    let single = single.into_iter().map(|tag| channel.basic_ack(tag, BasicAckOptions::default()));
    try_join_all(single).await.map(drop)
}

/// Which of a channel's deliveries are settled.
#[derive(Default)]
struct Progress {
    /// All tags up to this one.
    run: DeliveryTag,
    /// And these beyond it.
    beyond: BTreeSet<DeliveryTag>,
}

/// What to send for some acks.
#[derive(Debug, PartialEq)]
struct Acks {
    /// Everything up to here that is not settled yet.
    run: Option<DeliveryTag>,
    single: Vec<DeliveryTag>,
}

impl Progress {
    /// Take note of the `settled` tags, and plan for those of them that are `acked`. A run never passes a tag that
    /// is still unsettled, be it one that has not been seen yet.
    fn finish(&mut self, settled: impl Iterator<Item = DeliveryTag>, acked: Vec<DeliveryTag>) -> Acks {
        self.beyond.extend(settled);
        while self.beyond.first() == Some(&(self.run + 1)) {
            self.beyond.pop_first();
            self.run += 1;
        }
        let (in_run, single): (Vec<_>, _) = acked.into_iter().partition(|tag| *tag <= self.run);
        // The server knows only tags that are unsettled, so the run is acked by the last one of this batch.
        Acks { run: in_run.into_iter().max(), single }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_run_is_acked_at_once_and_the_rest_singly() {
        let mut progress = Progress::default();
        let mut row = |settled: &[u64], acked: &[u64], run: Option<u64>, single: &[u64]| {
            let acks = progress.finish(settled.iter().copied(), acked.to_vec());
            assert_eq!(acks, Acks { run, single: single.to_vec() }, "{settled:?}");
        };
        row(&[1], &[1], Some(1), &[]);
        row(&[3, 5], &[3, 5], None, &[3, 5]);
        row(&[4], &[4], None, &[4]);
        // 2 is rejected, which ends the gap.
        row(&[2, 6], &[6], Some(6), &[]);
        row(&[9, 7, 8, 11], &[9, 7, 8, 11], Some(9), &[11]);
        row(&[10], &[], None, &[]);
        assert_eq!((progress.run, progress.beyond.len()), (11, 0));
    }

    proptest! {
        /// A model of the server: every ack names an unsettled tag, and settles nothing that was not acked.
        #[test]
        fn nothing_is_acked_that_nobody_acked(
            tags in Just((1..=60_u64).collect::<Vec<_>>()).prop_shuffle(),
            verdicts in prop::collection::vec(any::<bool>(), 60),
            sizes in prop::collection::vec(1..10_usize, 60),
        ) {
            let mut unsettled: BTreeSet<u64> = (1..=60).collect();
            let (mut progress, mut rest) = (Progress::default(), tags.as_slice());
            for size in sizes {
                let (batch, later) = rest.split_at(size.min(rest.len()));
                rest = later;
                let is_acked = |tag: &&u64| verdicts[**tag as usize - 1];
                let mut expected: BTreeSet<u64> = batch.iter().filter(is_acked).copied().collect();
                for rejected in batch.iter().filter(|tag| !is_acked(tag)) {
                    unsettled.remove(rejected);
                }
                let acks = progress.finish(batch.iter().copied(), expected.iter().copied().collect());
                if let Some(last) = acks.run {
                    prop_assert!(unsettled.contains(&last));
                    let kept = unsettled.split_off(&(last + 1));
                    for tag in std::mem::replace(&mut unsettled, kept) {
                        prop_assert!(expected.remove(&tag), "{tag} was not to be acked");
                    }
                }
                for tag in acks.single {
                    prop_assert!(unsettled.remove(&tag) && expected.remove(&tag));
                }
                prop_assert!(expected.is_empty());
            }
        }
    }
}
