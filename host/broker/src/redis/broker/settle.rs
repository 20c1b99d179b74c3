//! Carrying out verdicts, many at once: whatever is asked for while the server is busy with the last ones goes
//! together. Nothing waits for company.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::future::join_all;
use jiff::Timestamp;
use rtask_protocol::Message;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::Instant,
};
use uuid::Uuid;

use super::{
    envelope,
    unacked::{Aside, Tag, Unacked},
};
use crate::{BrokerError, Receipt, Routing, Verdict, backoff::Backoff};

/// So many verdicts are carried out together at most; more wait, as many as there are.
const BATCH: usize = 256;

/// Settles one broker's deliveries. Each kind of verdict has its own queue: a server that is out of memory takes acks,
/// which free some, and nothing that waits for it to have some may be in their way.
#[derive(Clone)]
pub(super) struct Settler {
    pub unacked: Arc<Unacked>,
    removals: mpsc::Sender<Request<()>>,
    requeues: mpsc::Sender<Request<()>>,
    postponements: mpsc::Sender<Request<Postponement>>,
}

struct Request<T> {
    tag: Tag,
    what: T,
    /// Told whether the delivery was still in our hands.
    answer: Answer,
}

type Answer = oneshot::Sender<Result<bool, BrokerError>>;

struct Postponement {
    queue: Arc<str>,
    aside: Aside,
}

impl Settler {
    pub fn new(unacked: Arc<Unacked>) -> Self {
        let (removals, removed) = mpsc::channel(BATCH);
        let (requeues, requeued) = mpsc::channel(BATCH);
        let (postponements, postponed) = mpsc::channel(BATCH);
        tokio::spawn(remove(unacked.clone(), removed));
        tokio::spawn(requeue(unacked.clone(), requeued));
        tokio::spawn(postpone(unacked.clone(), postponed));
        Self { unacked, removals, requeues, postponements }
    }

    async fn ask<T>(&self, tag: Tag, queue: &str, what: T, of: &mpsc::Sender<Request<T>>) -> Result<(), BrokerError> {
        let not_ours = |reason: &str| BrokerError::NotOurs { queue: queue.to_owned(), reason: reason.to_owned() };
        if !self.unacked.is_held(tag) {
            return Err(not_ours("its broker was closed"));
        }
        let ended = || not_ours("the process is ending");
        let (answer, answered) = oneshot::channel();
        of.send(Request { tag, what, answer }).await.map_err(|_| ended())?;
        match answered.await.map_err(|_| ended())?? {
            true => Ok(()),
            false => Err(not_ours("its lease ran out, and somebody put it back")),
        }
    }
}

async fn remove(unacked: Arc<Unacked>, mut waiting: mpsc::Receiver<Request<()>>) {
    let mut requests = Vec::with_capacity(BATCH);
    while waiting.recv_many(&mut requests, BATCH).await > 0 {
        let tags: Vec<Tag> = requests.iter().map(|request| request.tag).collect();
        let removed = persist(unacked.settled_within, || unacked.remove(&tags)).await;
        tell(&unacked, &mut requests, &removed);
    }
}

async fn requeue(unacked: Arc<Unacked>, mut waiting: mpsc::Receiver<Request<()>>) {
    let mut requests = Vec::with_capacity(BATCH);
    while waiting.recv_many(&mut requests, BATCH).await > 0 {
        let tags: Vec<Tag> = requests.iter().map(|request| request.tag).collect();
        let requeued = persist(unacked.settled_within, || unacked.requeue(&tags)).await;
        tell(&unacked, &mut requests, &requeued);
    }
}

/// Whatever came of it, the deliveries are ours no more: what could not be settled is delivered again when its lease
/// runs out.
fn tell(unacked: &Unacked, requests: &mut Vec<Request<()>>, settled: &Result<Persisted<Vec<bool>>, BrokerError>) {
    for (index, Request { tag, answer, .. }) in requests.drain(..).enumerate() {
        unacked.forget(tag);
        let found = match settled {
            Ok(Persisted { answer, is_repeated }) => Ok(*is_repeated || answer.get(index).copied().unwrap_or(false)),
            Err(error) => Err(error.clone()),
        };
        // Whoever gave up waiting has no use for it.
        let _ = answer.send(found);
    }
}

/// If it fails for now the delivery stays ours, and its lease goes on.
async fn postpone(unacked: Arc<Unacked>, mut waiting: mpsc::Receiver<Request<Postponement>>) {
    let mut requests = Vec::with_capacity(BATCH);
    while waiting.recv_many(&mut requests, BATCH).await > 0 {
        let postponing = requests.drain(..).map(|Request { tag, what, answer }| {
            let unacked = &unacked;
            async move {
                let Postponement { queue, aside } = what;
                let moved = persist(unacked.link.within(), || unacked.postpone(tag, &queue, &aside)).await;
                if moved.is_ok() {
                    unacked.forget(tag);
                }
                let _ = answer.send(moved.map(|moved| moved.is_repeated || moved.answer));
            }
        });
        join_all(postponing).await;
    }
}

struct Persisted<T> {
    answer: T,
    /// Whether it may have been carried out before this answer, which then tells nothing of what was there.
    is_repeated: bool,
}

/// Ask until there is an answer, but no longer than `within`.
async fn persist<T, F>(within: Duration, attempt: impl Fn() -> F) -> Result<Persisted<T>, BrokerError>
where
    F: Future<Output = Result<T, BrokerError>>,
{
    let deadline = Instant::now() + within;
    let (mut backoff, mut is_repeated) = (Backoff::default(), false);
    loop {
        let error = match attempt().await {
            Ok(answer) => return Ok(Persisted { answer, is_repeated }),
            Err(error) => error,
        };
        let pause = backoff.pause();
        if error.is_permanent() || Instant::now() + pause >= deadline {
            return Err(error);
        }
        tracing::debug!(%error, ?pause, "settling again");
        is_repeated = true;
        tokio::time::sleep(pause).await;
    }
}

/// How many deliveries of one queue may be in a consumer's hands.
pub(super) struct Room {
    /// None for any number.
    limit: Option<usize>,
    taken: AtomicUsize,
    /// Told when one of them was settled.
    freed: Arc<Notify>,
}

impl Room {
    /// `prefetch` is 0 for any number.
    pub fn new(prefetch: u16, freed: Arc<Notify>) -> Arc<Self> {
        let limit = Some(usize::from(prefetch)).filter(|&limit| limit > 0);
        Arc::new(Self { limit, taken: AtomicUsize::new(0), freed })
    }

    pub fn left(&self) -> usize {
        self.limit.map_or(usize::MAX, |limit| limit.saturating_sub(self.taken.load(Ordering::Acquire)))
    }

    pub fn take(self: &Arc<Self>) -> Place {
        self.taken.fetch_add(1, Ordering::AcqRel);
        Place(self.clone())
    }
}

/// A delivery's place in its consumer's [`Room`].
pub(super) struct Place(Arc<Room>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
        self.0.freed.notify_one();
    }
}

/// Our side of a delivery.
pub(super) struct RedisReceipt {
    pub settler: Settler,
    pub tag: Tag,
    pub queue: Arc<str>,
    pub routing: Routing,
    /// When its life ends, in milliseconds since 1970.
    pub expires_at: Option<i64>,
    /// None for a delivery that no consumer asked for.
    pub _place: Option<Place>,
}

#[async_trait]
impl Receipt for RedisReceipt {
    async fn settle(&self, verdict: Verdict) -> Result<(), BrokerError> {
        let requests = match verdict {
            // kombu knows no dead letters on Redis either.
            Verdict::Ack | Verdict::Reject => &self.settler.removals,
            Verdict::Requeue => &self.settler.requeues,
        };
        self.settler.ask(self.tag, &self.queue, (), requests).await
    }

    async fn postpone(&self, message: &Message, until: Timestamp) -> Result<(), BrokerError> {
        let suffix = self.settler.unacked.keys.list_suffix(message.properties.priority);
        let element = envelope::seal(message, &self.routing, self.expires_at);
        // Rounded up: it may be late, but not early.
        let (name, until) = (Uuid::new_v4().to_string(), until.as_millisecond().saturating_add(1));
        let aside = Aside { name, until, value: format!("{suffix} {element}") };
        let what = Postponement { queue: self.queue.clone(), aside };
        self.settler.ask(self.tag, &self.queue, what, &self.settler.postponements).await
    }
}
