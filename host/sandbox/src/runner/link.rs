//! The jobs socket of a runner: orders go out in batches, reports come back to the runs that they are about.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::{
    net::unix,
    process::Child,
    sync::{Notify, mpsc, watch},
};

use super::{Event, Run};
use crate::{
    Exit,
    frames::{self, Batch, Order, Report},
};

/// What the tasks of one runner share. Its channels need no bounds of their own: orders are bounded by the runs
/// that callers have under way, notices by each run's limits.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) orders: mpsc::UnboundedSender<Order>,
    /// Told once, when the runner has come up.
    pub(super) ready: Notify,
    runs: Mutex<Runs>,
}

#[derive(Debug, Default)]
struct Runs {
    events: HashMap<u64, mpsc::UnboundedSender<Event>>,
    next: u64,
    /// Why the process ended. Set in the same step that tells the runs under way, so that none slips between.
    lost: Option<String>,
}

impl Link {
    pub(super) fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Order>) {
        let (orders, queue) = mpsc::unbounded_channel();
        (Arc::new(Self { orders, ready: Notify::new(), runs: Mutex::default() }), queue)
    }

    fn runs(&self) -> MutexGuard<'_, Runs> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn start(&self, order: impl FnOnce(u64) -> Order) -> Run {
        let (sender, events) = mpsc::unbounded_channel();
        let mut runs = self.runs();
        if let Some(reason) = &runs.lost {
            let _ = sender.send(Event::Exit(Exit::Lost(reason.clone())));
            return Run { events };
        }
        let run = runs.next;
        runs.next += 1;
        runs.events.insert(run, sender);
        drop(runs);
        // Fails only while the process is ending, and the run is told of that.
        let _ = self.orders.send(order(run));
        Run { events }
    }

    fn take(&self, report: Report) {
        // A caller that lost interest has dropped its end.
        match report {
            Report::Ready => self.ready.notify_one(),
            Report::Notice { run, notice } => {
                if let Some(events) = self.runs().events.get(&run) {
                    let _ = events.send(Event::Notice(notice));
                }
            }
            Report::Exit { run, exit } => {
                if let Some(events) = self.runs().events.remove(&run) {
                    let _ = events.send(Event::Exit(exit));
                }
            }
        }
    }

    fn lose(&self, reason: &str) {
        let mut runs = self.runs();
        runs.lost = Some(reason.to_owned());
        for (_, events) in runs.events.drain() {
            let _ = events.send(Event::Exit(Exit::Lost(reason.to_owned())));
        }
    }
}

/// Ends when the last [`Runner`] and [`ComponentId`] are gone; the runner sees the end of its stream then.
pub(super) async fn write_orders(mut orders: mpsc::UnboundedReceiver<Order>, mut to: unix::OwnedWriteHalf) {
    let mut batch = Batch::new();
    while let Some(order) = orders.recv().await {
        batch.push(&order);
        while !batch.is_full()
            && let Ok(order) = orders.try_recv()
        {
            batch.push(&order);
        }
        if batch.send(&mut to).await.is_err() {
            return;
        }
    }
}

/// Ends when the process does, or breaks the protocol, which ends it too.
pub(super) async fn read_reports(
    link: Weak<Link>,
    mut from: unix::OwnedReadHalf,
    mut process: Child,
    ending: watch::Sender<Option<String>>,
    kill: Arc<Notify>,
) {
    let mut buffer = Vec::new();
    let broken = loop {
        let take = |report| {
            if let Some(link) = link.upgrade() {
                link.take(report);
            }
        };
        let received = tokio::select! {
            received = frames::receive(&mut from, &mut buffer, take) => received,
            () = kill.notified() => break None,
        };
        match received {
            Ok(true) => {}
            Ok(false) => break None,
            Err(error) => break Some(error),
        }
    };
    // A process that closed its end but lives on is of no use.
    let _ = process.start_kill();
    let status = process.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string());
    let reason = match broken {
        Some(error) => format!("{error}; {status}"),
        None => status,
    };
    if let Some(link) = link.upgrade() {
        tracing::error!(reason, "a runner process was lost");
        link.lose(&reason);
    }
    ending.send_replace(Some(reason));
}
