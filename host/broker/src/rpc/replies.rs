//! What has come to this process's reply queue, and who waits for it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rtask_protocol::Record;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{Broker, BrokerError, Consumer, Delivery};

/// So many results are kept for those who may still ask, as Celery's clients do (`celery/backends/base.py`,
/// MESSAGE_BUFFER_MAX); the oldest go first.
const MAX_KEPT: usize = 8_192;
/// And so many bytes of them.
const MAX_KEPT_BYTES: usize = 64 << 20;

/// One process's reply queue.
pub(super) struct Replies {
    queue: String,
    kept: Arc<Mutex<Kept>>,
    /// The receiving task ends with this.
    _receiving: DropGuard,
}

impl Replies {
    /// Make the queue, and keep what comes to it until the answer is dropped.
    pub async fn begin(broker: &dyn Broker) -> Result<Arc<Self>, BrokerError> {
        let (queue, consumer) = broker.reply_queue().await?;
        let (kept, dropped) = (Arc::<Mutex<Kept>>::default(), CancellationToken::new());
        tokio::spawn(receive(consumer, kept.clone(), dropped.clone()));
        Ok(Arc::new(Self { queue, kept, _receiving: dropped.drop_guard() }))
    }

    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// The last that came of a task.
    pub fn latest(&self, task_id: &str) -> Option<Record> {
        lock(&self.kept).records.get(task_id).map(|(record, _)| record.clone())
    }

    /// Wait until a task's record is ready.
    pub async fn wait(&self, task_id: &str) -> Result<Record, BrokerError> {
        let closed = || BrokerError::Closed { url: format!("the reply queue {}", self.queue) };
        let mut waiter = {
            let mut kept = lock(&self.kept);
            match kept.records.get(task_id) {
                Some((record, _)) if record.status.is_ready() => return Ok(record.clone()),
                Some(_) | None if kept.is_over => return Err(closed()),
                Some(_) | None => {}
            }
            let (sender, answer) = oneshot::channel();
            kept.waiters.entry(task_id.to_owned()).or_default().push(sender);
            Waiter { replies: self, task_id, answer }
        };
        (&mut waiter.answer).await.map_err(|_| closed())
    }
}

/// Somebody who waits for a task, and may give up.
struct Waiter<'a> {
    replies: &'a Replies,
    task_id: &'a str,
    answer: oneshot::Receiver<Record>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.answer.close();
        let mut kept = lock(&self.replies.kept);
        if let Some(waiters) = kept.waiters.get_mut(self.task_id) {
            waiters.retain(|waiter| !waiter.is_closed());
            if waiters.is_empty() {
                kept.waiters.remove(self.task_id);
            }
        }
    }
}

#[derive(Default)]
struct Kept {
    /// With how many bytes each came in.
    records: HashMap<String, (Record, usize)>,
    /// The oldest first.
    order: VecDeque<String>,
    bytes: usize,
    waiters: HashMap<String, Vec<oneshot::Sender<Record>>>,
    /// Nothing comes any more.
    is_over: bool,
}

impl Kept {
    fn take(&mut self, record: Record, bytes: usize) {
        if record.status.is_ready() {
            for waiter in self.waiters.remove(&record.task_id).into_iter().flatten() {
                // One that has given up needs no answer.
                let _ = waiter.send(record.clone());
            }
        }
        let task_id = record.task_id.clone();
        match self.records.insert(task_id.clone(), (record, bytes)) {
            Some((_, before)) => self.bytes -= before,
            None => self.order.push_back(task_id),
        }
        self.bytes += bytes;
        while self.order.len() > MAX_KEPT || self.bytes > MAX_KEPT_BYTES {
            let Some((_, bytes)) = self.order.pop_front().and_then(|oldest| self.records.remove(&oldest)) else {
                break;
            };
            self.bytes -= bytes;
        }
    }
}

async fn receive(mut consumer: Consumer, kept: Arc<Mutex<Kept>>, dropped: CancellationToken) {
    while let Some(Some(delivery)) = dropped.run_until_cancelled(consumer.next()).await {
        match read(&delivery) {
            Ok(record) => lock(&kept).take(record, delivery.message.body.len()),
            Err(error) => tracing::warn!(%error, "a reply that is no result is passed over"),
        }
    }
    consumer.cancel().await;
    let mut kept = lock(&kept);
    kept.is_over = true;
    kept.waiters.clear();
}

/// The record in a reply. The correlation id goes before what the body says, as for Celery's clients.
fn read(delivery: &Delivery) -> Result<Record, serde_json::Error> {
    let mut record: Record = serde_json::from_slice(&delivery.message.body)?;
    if let Some(id) = &delivery.message.properties.correlation_id {
        record.task_id.clone_from(id);
    }
    Ok(record)
}

/// No code panics while it holds the lock.
fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::value::to_raw_value;

    use super::*;

    fn success(task_id: &str) -> Record {
        Record::success(task_id, to_raw_value(&4).unwrap(), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_oldest_go_first() {
        let mut kept = Kept::default();
        for index in 0..=MAX_KEPT {
            kept.take(success(&index.to_string()), 10);
        }
        assert_eq!((kept.records.len(), kept.order.len(), kept.bytes), (MAX_KEPT, MAX_KEPT, 10 * MAX_KEPT));
        assert!(!kept.records.contains_key("0") && kept.records.contains_key("1"));
        kept.take(success("large"), MAX_KEPT_BYTES);
        assert_eq!((kept.records.len(), kept.bytes), (1, MAX_KEPT_BYTES));
        kept.take(success("larger"), MAX_KEPT_BYTES + 1);
        assert_eq!((kept.records.len(), kept.order.len(), kept.bytes), (0, 0, 0));
    }

    #[test]
    fn a_later_state_takes_the_place_of_an_earlier_one() {
        let mut kept = Kept::default();
        kept.take(Record::started("t", 7, "w1@host"), 5);
        kept.take(success("t"), 10);
        assert_eq!((kept.records.len(), kept.order.len(), kept.bytes), (1, 1, 10));
        assert!(kept.records["t"].0.status.is_ready());
    }
}
