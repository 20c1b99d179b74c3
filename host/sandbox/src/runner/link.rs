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
    Exit, Limits, Notice,
    frames::{self, Batch, NOTICE_COST, Order, Report},
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
    under_way: HashMap<u64, UnderWay>,
    next: u64,
    /// Why the process ended. Set in the same step that tells the runs under way, so that none slips between.
    lost: Option<String>,
}

#[derive(Debug)]
struct UnderWay {
    events: mpsc::UnboundedSender<Event>,
    /// What its notices may still weigh. The runner enforces the limits; this is for one that has been taken over.
    allowance: u64,
}

/// What a run that keeps to its limits never exceeds, with room for the line that says it was cut.
fn allowance(limits: &Limits) -> u64 {
    let states = u64::from(limits.states).saturating_mul(NOTICE_COST);
    [limits.log, limits.states_size, states, 4 << 10].into_iter().fold(0, u64::saturating_add)
}

impl Link {
    pub(super) fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Order>) {
        let (orders, queue) = mpsc::unbounded_channel();
        (Arc::new(Self { orders, ready: Notify::new(), runs: Mutex::default() }), queue)
    }

    fn runs(&self) -> MutexGuard<'_, Runs> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn start(&self, limits: &Limits, order: impl FnOnce(u64) -> Order) -> Run {
        let (sender, events) = mpsc::unbounded_channel();
        let mut runs = self.runs();
        if let Some(reason) = &runs.lost {
            let _ = sender.send(Event::Exit(Exit::Lost(reason.clone())));
            return Run { events };
        }
        let run = runs.next;
        runs.next += 1;
        runs.under_way.insert(run, UnderWay { events: sender, allowance: allowance(limits) });
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
                if let Some(under_way) = self.runs().under_way.get_mut(&run)
                    && let Some(left) = under_way.allowance.checked_sub(weight(&notice))
                {
                    under_way.allowance = left;
                    let _ = under_way.events.send(Event::Notice(notice));
                }
            }
            Report::Exit { run, exit } => {
                if let Some(under_way) = self.runs().under_way.remove(&run) {
                    let _ = under_way.events.send(Event::Exit(exit));
                }
            }
        }
    }

    fn lose(&self, reason: &str) {
        let mut runs = self.runs();
        runs.lost = Some(reason.to_owned());
        for (_, under_way) in runs.under_way.drain() {
            let _ = under_way.events.send(Event::Exit(Exit::Lost(reason.to_owned())));
        }
    }
}

fn weight(notice: &Notice) -> u64 {
    let text = match notice {
        Notice::Log { message, .. } => message.len(),
        Notice::State { state, meta } => state.len() + meta.len(),
    };
    text as u64 + NOTICE_COST
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
    // First, so that nobody who is told of a loss starts something in the same process again.
    ending.send_replace(Some(reason.clone()));
    if let Some(link) = link.upgrade() {
        tracing::error!(reason, "a runner process was lost");
        link.lose(&reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    fn order(run: u64) -> Order {
        Order::Describe { run, component: 1, limits: Limits::default() }
    }

    #[tokio::test]
    async fn a_runner_that_ignores_the_limits_cannot_fill_the_supervisor() {
        let limits = Limits { log: 1 << 10, states: 1, states_size: 1 << 10, ..Limits::default() };
        let (link, _orders) = Link::new();
        let mut run = link.start(&limits, order);
        for _ in 0..100_000 {
            let notice = Notice::Log { level: Level::Info, message: String::new() };
            link.take(Report::Notice { run: 0, notice });
        }
        link.take(Report::Exit { run: 0, exit: Exit::Ignored });
        let mut notices = 0;
        while let Event::Notice(_) = run.next().await {
            notices += 1;
        }
        assert!(notices as u64 * NOTICE_COST <= allowance(&limits), "{notices}");
    }

    #[tokio::test]
    async fn what_starts_after_the_loss_is_told_of_it() {
        let (link, _orders) = Link::new();
        let before = link.start(&Limits::default(), order);
        link.lose("signal 9");
        let after = link.start(&Limits::default(), order);
        for run in [before, after] {
            assert_eq!(run.exit().await, Exit::Lost("signal 9".to_owned()));
        }
    }
}
