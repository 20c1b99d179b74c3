//! Who waits for which result. One connection, in subscriber mode, serves all who wait; it is opened when the
//! first one does.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use redis::{Client, ProtocolVersion, RedisError, RedisResult, Value, aio::PubSub};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};

use super::{address::Address, failure};
use crate::{BrokerError, backoff::Backoff};

/// A silent subscription is tried with a PING this often, since a dead peer says nothing either.
const PING_EVERY: Duration = Duration::from_secs(10);
/// The server has so long to confirm a subscription or to answer a PING.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);
/// Before asking again after a command failed.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);

pub(super) struct Announcements {
    address: Address,
    /// The listening task's ear. It ends when this is dropped.
    wishes: OnceLock<mpsc::UnboundedSender<Wish>>,
    topics: Topics,
}

/// What the listening task is to do: one of each at most per waiter.
enum Wish {
    Subscribe(String),
    Unsubscribe(String),
}

impl Announcements {
    pub fn new(address: Address) -> Self {
        Self { address, wishes: OnceLock::new(), topics: Topics::default() }
    }

    /// Hear of `channel` until the answer is dropped.
    pub fn subscribe(&self, channel: String) -> News {
        let wishes = self.wishes.get_or_init(|| {
            let (sender, wishes) = mpsc::unbounded_channel();
            tokio::spawn(listen(self.address.clone(), self.topics.clone(), wishes));
            sender
        });
        let (changes, is_new) = self.topics.join(&channel);
        // The task lives as long as this sender.
        let _ = is_new.then(|| wishes.send(Wish::Subscribe(channel.clone())));
        News { changes, channel, topics: self.topics.clone(), wishes: wishes.clone() }
    }
}

/// One waiter's view of a channel.
pub(super) struct News {
    changes: watch::Receiver<u64>,
    channel: String,
    topics: Topics,
    wishes: mpsc::UnboundedSender<Wish>,
}

impl News {
    /// Until there may be something to see: the subscription has come to stand, also anew, or a message came.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // The topic lives as long as we do, so this is for a runtime that is shutting down.
            std::future::pending::<()>().await;
        }
    }

    /// Make [`Self::changed`] return once more.
    pub async fn look_again(&mut self) {
        tokio::time::sleep(LOOK_AGAIN_AFTER).await;
        self.changes.mark_changed();
    }
}

impl Drop for News {
    fn drop(&mut self) {
        if self.topics.leave(&self.channel) {
            let _ = self.wishes.send(Wish::Unsubscribe(std::mem::take(&mut self.channel)));
        }
    }
}

/// The channels that somebody waits for, with how many do.
#[derive(Clone, Default)]
struct Topics(Arc<Mutex<HashMap<String, Topic>>>);

struct Topic {
    changes: watch::Sender<u64>,
    waiters: usize,
    stands: bool,
}

impl Topics {
    /// Answers whether it is the first waiter.
    fn join(&self, channel: &str) -> (watch::Receiver<u64>, bool) {
        let mut topics = self.lock();
        if let Some(topic) = topics.get_mut(channel) {
            topic.waiters += 1;
            let mut changes = topic.changes.subscribe();
            if topic.stands {
                changes.mark_changed();
            }
            return (changes, false);
        }
        let (changes, receiver) = watch::channel(0);
        topics.insert(channel.to_owned(), Topic { changes, waiters: 1, stands: false });
        (receiver, true)
    }

    /// Answers whether it was the last waiter.
    fn leave(&self, channel: &str) -> bool {
        let mut topics = self.lock();
        let Some(topic) = topics.get_mut(channel) else {
            return false;
        };
        topic.waiters -= 1;
        let last = topic.waiters == 0;
        if last {
            topics.remove(channel);
        }
        last
    }

    fn announce(&self, channel: &str) {
        if let Some(topic) = self.lock().get_mut(channel) {
            topic.stands = true;
            topic.changes.send_modify(|count| *count += 1);
        }
    }

    /// Forget that anything stands, and answer what is to be subscribed.
    fn begin_anew(&self) -> Vec<String> {
        let mut topics = self.lock();
        topics.values_mut().for_each(|topic| topic.stands = false);
        topics.keys().cloned().collect()
    }

    fn contains(&self, channel: &str) -> bool {
        self.lock().contains_key(channel)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Topic>> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn listen(address: Address, topics: Topics, mut wishes: mpsc::UnboundedReceiver<Wish>) {
    let mut backoff = Backoff::default();
    loop {
        let begun = Instant::now();
        let error = match subscribe_all(&address, &topics).await {
            Ok(connection) => match converse(connection, &topics, &mut wishes).await {
                Some(lost) => failure::operating(address.url(), &lost),
                None => return,
            },
            Err(error) => error,
        };
        let pause = backoff.pause_after(begun.elapsed());
        tracing::warn!(%error, ?pause, "subscribing again");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // The topics hold what was wished; only the end of the wishes matters here.
            () = until_closed(&mut wishes) => return,
        }
    }
}

async fn subscribe_all(address: &Address, topics: &Topics) -> Result<PubSub, BrokerError> {
    let open = |client: Client| async move { client.get_async_pubsub().await };
    let mut connection = address.connect(ProtocolVersion::RESP2, open).await?;
    for channel in topics.begin_anew() {
        let subscribed = limited(ANSWER_WITHIN, connection.subscribe(&channel)).await;
        subscribed.map_err(|error| failure::connecting(address.url(), &error))?;
        topics.announce(&channel);
    }
    Ok(connection)
}

/// Serve wishes and messages until the connection is lost, which it answers with why, or nobody is left to wish.
async fn converse(
    connection: PubSub,
    topics: &Topics,
    wishes: &mut mpsc::UnboundedReceiver<Wish>,
) -> Option<RedisError> {
    let (mut commands, mut messages) = connection.split();
    let mut ping = tokio::time::interval(PING_EVERY);
    loop {
        let done = tokio::select! {
            wish = wishes.recv() => match wish? {
                Wish::Subscribe(channel) => {
                    let subscribed = limited(ANSWER_WITHIN, commands.subscribe(&channel)).await;
                    subscribed.map(|()| topics.announce(&channel))
                }
                // Somebody may wait for it again already.
                Wish::Unsubscribe(channel) if topics.contains(&channel) => Ok(()),
                Wish::Unsubscribe(channel) => limited(ANSWER_WITHIN, commands.unsubscribe(&channel)).await,
            },
            message = messages.next() => match message {
                Some(message) => {
                    topics.announce(message.get_channel_name());
                    Ok(())
                }
                None => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
            },
            _ = ping.tick() => limited(ANSWER_WITHIN, commands.ping::<Value>()).await.map(drop),
        };
        if let Err(error) = done {
            return Some(error);
        }
    }
}

async fn until_closed(wishes: &mut mpsc::UnboundedReceiver<Wish>) {
    while wishes.recv().await.is_some() {}
}

async fn limited<T>(limit: Duration, answer: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    match timeout(limit, answer).await {
        Ok(answer) => answer,
        Err(elapsed) => Err(std::io::Error::from(elapsed).into()),
    }
}
