//! Being told when something comes into an empty queue, without taking it.
//!
//! A message that a blocking pop has taken is lost if its taker dies before it has written it down, which is how kombu
//! loses some. Here nothing is taken while waiting: the connection looks at the keys, and asks the server to say when
//! one of those that it has looked at changes (CLIENT TRACKING, since Redis 6). What comes is then claimed in one step. One
//! connection watches any number of queues, and an idle one costs the server nothing.

use std::time::Duration;

use redis::{Client, ProtocolVersion, PushInfo, PushKind, Value, aio::MultiplexedConnection};
use tokio::sync::mpsc;

use super::super::{
    address::Address,
    failure,
    link::{configuration, is_lost},
};
use crate::BrokerError;

/// Where the server tells of no change (it is no Redis, or the user may not ask), it is asked this often.
const POLL_EVERY: Duration = Duration::from_millis(50);

/// One connection, opened when it is first needed.
pub(super) struct Watch {
    address: Address,
    connected: Option<Connected>,
}

struct Connected {
    connection: MultiplexedConnection,
    /// At most one for each key that is watched; they are read before it is watched again.
    pushes: mpsc::UnboundedReceiver<PushInfo>,
    is_told: bool,
}

/// A queue that is known to be empty.
pub(super) struct Watched<'a> {
    pub lists: &'a [String],
    /// Where its messages are put aside, and the lowest score that is known there: others may put aside what is due
    /// before it.
    pub aside: &'a str,
    pub first_aside: Option<i64>,
}

/// How many of a queue's lists exist, and the first of what is put aside with its score.
type Found = (i64, Vec<(String, f64)>);

/// What may have changed.
#[derive(Debug, PartialEq)]
pub(super) enum Change {
    Keys(Vec<Vec<u8>>),
    /// Nothing is watched any more, either.
    Everything,
}

impl Watch {
    pub fn new(address: Address) -> Self {
        Self { address, connected: None }
    }

    /// Watch these queues until something changes. Answers whether something has already.
    ///
    /// # Errors
    /// When the connection is lost, and with it what was watched before.
    pub async fn watch(&mut self, queues: &[Watched<'_>]) -> Result<bool, BrokerError> {
        let mut connected = match self.connected.take() {
            Some(connected) => connected,
            None => self.connect().await?,
        };
        let mut asking = redis::pipe();
        for queue in queues {
            asking.exists(queue.lists).zrange_withscores(queue.aside, 0, 0);
        }
        let found: Vec<Found> = match asking.query_async(&mut connected.connection).await {
            Ok(found) => found,
            Err(error) => return Err(failure::operating(self.address.url(), &error)),
        };
        self.connected = Some(connected);
        let has_changed = |(queue, (lists, aside)): (&Watched<'_>, &Found)| {
            *lists > 0 || aside.first().map(|(_, score)| *score as i64) != queue.first_aside
        };
        Ok(queues.iter().zip(&found).any(has_changed))
    }

    /// Until something that is watched has changed. May be abandoned.
    pub async fn changed(&mut self) -> Change {
        let change = match &mut self.connected {
            None => std::future::pending().await,
            Some(connected) if !connected.is_told => {
                tokio::time::sleep(POLL_EVERY).await;
                return Change::Everything;
            }
            Some(connected) => connected.next_change().await,
        };
        if change == Change::Everything {
            self.connected = None;
        }
        change
    }

    /// What has changed and was not told by [`Self::changed`] yet, without waiting.
    pub fn told(&mut self) -> Option<Change> {
        let change = self.connected.as_mut()?.told()?;
        if change == Change::Everything {
            self.connected = None;
        }
        Some(change)
    }

    async fn connect(&self) -> Result<Connected, BrokerError> {
        let (sender, pushes) = mpsc::unbounded_channel();
        let open = |client: Client| {
            let configuration = configuration().set_push_sender(sender.clone());
            async move { client.get_multiplexed_async_connection_with_config(&configuration).await }
        };
        let mut connection = self.address.connect(ProtocolVersion::RESP3, open).await?;
        let tracking = redis::cmd("CLIENT").arg("TRACKING").arg("ON").exec_async(&mut connection).await;
        let is_told = match tracking {
            Ok(()) => true,
            Err(error) if is_lost(&error) => return Err(failure::operating(self.address.url(), &error)),
            Err(error) => {
                tracing::warn!(%error, "the server does not tell of new messages; it is asked for them");
                false
            }
        };
        Ok(Connected { connection, pushes, is_told })
    }
}

impl Connected {
    async fn next_change(&mut self) -> Change {
        while let Some(push) = self.pushes.recv().await {
            if let Some(change) = change(push) {
                return change;
            }
        }
        Change::Everything
    }

    fn told(&mut self) -> Option<Change> {
        std::iter::from_fn(|| self.pushes.try_recv().ok()).find_map(change)
    }
}

/// None for what was not asked for.
fn change(push: PushInfo) -> Option<Change> {
    match push.kind {
        PushKind::Invalidate => Some(invalidated(push.data)),
        PushKind::Disconnection => Some(Change::Everything),
        _ => None,
    }
}

/// A list of keys, or null when the database was emptied.
fn invalidated(data: Vec<Value>) -> Change {
    match data.into_iter().next() {
        Some(Value::Array(keys)) => {
            let bytes = |key| match key {
                Value::BulkString(bytes) => Some(bytes),
                _ => None,
            };
            Change::Keys(keys.into_iter().filter_map(bytes).collect())
        }
        _ => Change::Everything,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_names_keys_or_everything() {
        let key = Value::BulkString(b"celery".to_vec());
        assert_eq!(invalidated(vec![Value::Array(vec![key])]), Change::Keys(vec![b"celery".to_vec()]));
        assert_eq!(invalidated(vec![Value::Nil]), Change::Everything);
        assert_eq!(invalidated(Vec::new()), Change::Everything);
    }
}
