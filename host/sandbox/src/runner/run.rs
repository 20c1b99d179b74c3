//! One run, as its caller sees it: what it says and asks, and how to end it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::mpsc;

use crate::{Answer, Ask, Exception, Exit, Notice, frames::Order};

/// What a run says; an exit is the last.
#[derive(Debug)]
pub enum Event {
    Notice(Notice),
    /// The guest waits for the answer, and its time limits go on meanwhile.
    Ask(Ask, Question),
    Exit(Exit),
}

/// One run in progress. Dropping it leaves the run to itself: it goes on, unheard, and what it asks is answered as by
/// a dropped [`Question`].
#[derive(Debug)]
pub struct Run {
    pub(super) number: u64,
    pub(super) orders: mpsc::WeakUnboundedSender<Order>,
    pub(super) events: mpsc::UnboundedReceiver<Event>,
}

impl Run {
    /// The next event; after the exit, and if the process is lost, [`Exit::Lost`]. May be dropped while it waits,
    /// and loses nothing.
    pub async fn next(&mut self) -> Event {
        let lost = || Event::Exit(Exit::Lost("the runner process has ended".to_owned()));
        self.events.recv().await.unwrap_or_else(lost)
    }

    /// The exit, with the notices before it dropped, and the questions too.
    pub async fn exit(mut self) -> Exit {
        loop {
            if let Event::Exit(exit) = self.next().await {
                return exit;
            }
        }
    }

    /// End it, wherever it is: waiting for its turn, computing, or in a host call. Its exit is [`Exit::Cancelled`],
    /// unless another one was under way.
    pub fn cancel(&self) {
        tell(&self.orders, Order::Cancel { run: self.number });
    }
}

/// Where the answer to an [`Ask`] goes. One that is dropped answers with an exception, so that its guest does not wait
/// for ever.
#[derive(Debug)]
pub struct Question {
    run: u64,
    orders: mpsc::WeakUnboundedSender<Order>,
    /// Whether its run still waits for it; shared with what watches over the run.
    open: Arc<AtomicBool>,
}

impl Question {
    pub(super) fn new(run: u64, orders: mpsc::WeakUnboundedSender<Order>) -> Self {
        Self { run, orders, open: Arc::new(AtomicBool::new(true)) }
    }

    pub(super) fn open(&self) -> Arc<AtomicBool> {
        self.open.clone()
    }

    /// Let the guest go on. A run that has ended meanwhile does not hear it.
    pub fn answer(self, answer: Answer) {
        self.close(answer);
    }

    fn close(&self, answer: Answer) {
        // Closed before the guest can hear the answer and ask again.
        if self.open.swap(false, Ordering::AcqRel) {
            tell(&self.orders, Order::Answer { run: self.run, answer });
        }
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.close(Err(Exception::unanswered()));
    }
}

/// A runner that has ended, or that nobody holds any more, has nothing left to be told.
fn tell(orders: &mpsc::WeakUnboundedSender<Order>, order: Order) {
    if let Some(orders) = orders.upgrade() {
        let _ = orders.send(order);
    }
}
