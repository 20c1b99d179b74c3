//! The jobs socket of a runner: orders go out in batches, reports come back to the runs that they are about.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    net::unix,
    process::Child,
    sync::{Notify, mpsc, watch},
};

use super::{Event, Question, Run};
use crate::{
    Ask, Exit, Limits, Notice,
    frames::{self, Batch, NOTICE_COST, Order, Report},
};

/// What the tasks of one runner share. Its channels need no bounds of their own: orders are bounded by the runs
/// that callers have under way, notices and questions by each run's limits.
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
    // The runner enforces the limits; the rest is for one that has been taken over.
    /// What its notices may still weigh.
    allowance: u64,
    asks_left: u32,
    /// Bytes of one.
    ask_size: u64,
    /// Whether its last question waits for an answer, which is when it cannot ask another.
    asking: Arc<AtomicBool>,
}

impl UnderWay {
    fn new(events: mpsc::UnboundedSender<Event>, limits: &Limits) -> Self {
        let (asks_left, ask_size) = (limits.sends, limits.send_size);
        Self { events, allowance: allowance(limits), asks_left, ask_size, asking: Arc::default() }
    }

    fn hear(&mut self, notice: Notice) {
        if let Some(left) = self.allowance.checked_sub(weight(&notice)) {
            self.allowance = left;
            let _ = self.events.send(Event::Notice(notice));
        }
    }

    fn ask(&mut self, ask: Ask, question: impl FnOnce() -> Question) {
        let Ask::Send(signature) = &ask;
        let fits = signature.len() as u64 <= self.ask_size && !self.asking.load(Ordering::Acquire);
        if fits && let Some(left) = self.asks_left.checked_sub(1) {
            let question = question();
            self.asks_left = left;
            self.asking = question.open();
            let _ = self.events.send(Event::Ask(ask, question));
        }
    }
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
        let number = runs.next;
        runs.next += 1;
        let run = Run { number, orders: self.orders.downgrade(), events };
        if let Some(reason) = &runs.lost {
            let _ = sender.send(Event::Exit(Exit::Lost(reason.clone())));
            return run;
        }
        runs.under_way.insert(number, UnderWay::new(sender, limits));
        drop(runs);
        // Fails only while the process is ending, and the run is told of that.
        let _ = self.orders.send(order(number));
        run
    }

    fn take(&self, report: Report) {
        // A caller that lost interest has dropped its end.
        match report {
            Report::Ready => self.ready.notify_one(),
            Report::Notice { run, notice } => {
                if let Some(under_way) = self.runs().under_way.get_mut(&run) {
                    under_way.hear(notice);
                }
            }
            Report::Ask { run, ask } => {
                if let Some(under_way) = self.runs().under_way.get_mut(&run) {
                    under_way.ask(ask, || Question::new(run, self.orders.downgrade()));
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
    async fn a_runner_that_asks_without_waiting_is_not_heard() {
        let (link, _orders) = Link::new();
        let mut run = link.start(&Limits { sends: 2, send_size: 10, ..Limits::default() }, order);
        let ask = |signature: &str| link.take(Report::Ask { run: 0, ask: Ask::Send(signature.to_owned()) });
        ask("more than it may");
        ask("first");
        ask("meanwhile");
        let Event::Ask(first, question) = run.next().await else { panic!("it asked") };
        assert_eq!(first, Ask::Send("first".to_owned()));
        question.answer(Ok("id".to_owned()));
        ask("second");
        let Event::Ask(second, question) = run.next().await else { panic!("it asked again") };
        assert_eq!(second, Ask::Send("second".to_owned()));
        drop(question);
        ask("third");
        link.take(Report::Exit { run: 0, exit: Exit::Ignored });
        let last = run.next().await;
        assert!(matches!(last, Event::Exit(Exit::Ignored)), "{last:?}");
    }

    #[tokio::test]
    async fn a_question_is_answered_once_and_a_dropped_one_too() {
        let (link, mut orders) = Link::new();
        let mut run = link.start(&Limits::default(), order);
        assert!(matches!(orders.recv().await, Some(Order::Describe { run: 0, .. })));
        for said in [Some("id"), None] {
            link.take(Report::Ask { run: 0, ask: Ask::Send("{}".to_owned()) });
            let Event::Ask(_, question) = run.next().await else { panic!("it asked") };
            match said {
                Some(id) => question.answer(Ok(id.to_owned())),
                None => drop(question),
            }
            let Some(Order::Answer { run: 0, answer }) = orders.recv().await else { panic!("it was answered") };
            assert_eq!(answer.ok().as_deref(), said);
            assert!(orders.try_recv().is_err());
        }
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
