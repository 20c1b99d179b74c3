//! How a process notices that something was deployed: a published word makes it look at a counter at once, and it
//! looks every second anyway, since a published word can be lost.

use std::time::Duration;

use ::redis::{
    AsyncCommands, Client,
    aio::{ConnectionManager, PubSubStream},
};
use futures::StreamExt;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{keys, link::Link};
use crate::RegistryError;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Watches until it is dropped.
pub(super) struct Watch {
    changes: watch::Receiver<u64>,
    _watching: AbortOnDropHandle<()>,
}

impl Watch {
    pub async fn start(link: &Link) -> Result<Self, RegistryError> {
        let seen = revision(link.shared()).await.map_err(|error| link.explain(&error))?;
        let (sender, changes) = watch::channel(0);
        let watching = tokio::spawn(watch(link.client().clone(), link.shared().clone(), sender, seen));
        Ok(Self { changes, _watching: AbortOnDropHandle::new(watching) })
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}

async fn watch(client: Client, connection: ConnectionManager, changes: watch::Sender<u64>, seen: u64) {
    let mut seen = Some(seen);
    let mut words = None;
    loop {
        words = next_word(&client, words).await;
        match revision(&connection).await {
            Ok(revision) if seen == Some(revision) => {}
            Ok(revision) => {
                seen = Some(revision);
                changes.send_modify(|count| *count += 1);
            }
            // A server that comes back may have lost deploys, and so may show a number that was seen before.
            Err(error) => {
                tracing::debug!(%error, "the registry's changes cannot be seen at the moment");
                seen = None;
            }
        }
    }
}

/// Wait for a word or the time to look, whichever is first. Answers the subscription while it lasts.
async fn next_word(client: &Client, words: Option<PubSubStream>) -> Option<PubSubStream> {
    let Some(mut words) = words else {
        let subscribed = subscribe(client).await;
        if subscribed.is_none() {
            sleep(LOOK_EVERY).await;
        }
        // What was published before it is seen by looking now.
        return subscribed;
    };
    match timeout(LOOK_EVERY, words.next()).await {
        Ok(None) => None,
        Ok(Some(_)) | Err(_) => Some(words),
    }
}

async fn subscribe(client: &Client) -> Option<PubSubStream> {
    let subscribing = async {
        let mut subscriber = client.get_async_pubsub().await?;
        subscriber.subscribe(keys::CHANGES).await?;
        ::redis::RedisResult::Ok(subscriber.into_on_message())
    };
    timeout(LOOK_EVERY, subscribing).await.ok()?.ok()
}

async fn revision(connection: &ConnectionManager) -> ::redis::RedisResult<u64> {
    let revision: Option<u64> = connection.clone().get(keys::REVISION).await?;
    Ok(revision.unwrap_or(0))
}
