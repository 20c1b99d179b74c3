//! What a run and the supervisor say to each other while it goes on.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, mpsc, oneshot};

use crate::{Answer, Ask, Exception, Exit, Notice, frames::Report};

/// The conversations of all runs that have not ended, by the supervisor's number for the run.
#[derive(Default)]
pub(super) struct Conversations(Mutex<HashMap<u64, Arc<Conversation>>>);

/// One run's.
pub(super) struct Conversation {
    run: u64,
    reports: mpsc::UnboundedSender<Report>,
    cancel: Notify,
    /// Where the answer to the run's question goes, while it has one.
    question: Mutex<Option<oneshot::Sender<Answer>>>,
}

impl Conversations {
    fn by_run(&self) -> MutexGuard<'_, HashMap<u64, Arc<Conversation>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, run: u64, reports: &mpsc::UnboundedSender<Report>) -> Arc<Conversation> {
        let (reports, cancel, question) = (reports.clone(), Notify::new(), Mutex::default());
        let conversation = Arc::new(Conversation { run, reports, cancel, question });
        self.by_run().insert(run, conversation.clone());
        conversation
    }

    /// The last word.
    pub(super) fn end(&self, conversation: &Conversation, exit: Exit) {
        self.by_run().remove(&conversation.run);
        conversation.report(Report::Exit { run: conversation.run, exit });
    }

    /// A run that has ended needs no end.
    pub(super) fn cancel(&self, run: u64) {
        if let Some(conversation) = self.by_run().get(&run) {
            conversation.cancel.notify_one();
        }
    }

    /// An answer that comes too late is dropped.
    pub(super) fn answer(&self, run: u64, answer: Answer) {
        let conversation = self.by_run().get(&run).cloned();
        let question = conversation.and_then(|conversation| conversation.question().take());
        if let Some(question) = question {
            let _ = question.send(answer);
        }
    }
}

impl Conversation {
    fn question(&self) -> MutexGuard<'_, Option<oneshot::Sender<Answer>>> {
        self.question.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn cancelled(&self) {
        self.cancel.notified().await;
    }

    pub(super) fn tell(&self, notice: Notice) {
        self.report(Report::Notice { run: self.run, notice });
    }

    /// Waits for as long as the run may.
    pub(super) async fn ask(&self, ask: Ask) -> Answer {
        let (answer, answered) = oneshot::channel();
        *self.question() = Some(answer);
        self.report(Report::Ask { run: self.run, ask });
        answered.await.unwrap_or_else(|_| Err(Exception::unanswered()))
    }

    fn report(&self, report: Report) {
        // Without a supervisor to hear it, the process is about to end.
        let _ = self.reports.send(report);
    }
}
