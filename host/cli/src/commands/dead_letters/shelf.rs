//! The dead letters of one queue: taken, looked at, and put back where they were.

use rtask_broker::{Delivery, SharedBroker};
use rtask_protocol::names::dead_letter_queue;

use super::Letter;
use crate::{
    failure::{Attempt, Failure},
    visible,
};

/// No more letters are held at the same time.
const MAX_HELD: usize = 10_000;

pub struct Shelf {
    broker: SharedBroker,
    /// Whose dead letters they are.
    queue: String,
    /// Where they lie.
    name: String,
}

/// A letter that was looked for, in hand.
pub struct Found {
    letter: Letter,
    delivery: Delivery,
    /// What lay before it.
    before: Vec<Delivery>,
}

impl Shelf {
    pub fn of(broker: SharedBroker, queue: String) -> Self {
        Self { broker, name: dead_letter_queue(&queue), queue }
    }

    /// The queue that the letters came from.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// How many letters there are, without those that somebody else holds.
    pub async fn count(&self) -> Result<usize, Failure> {
        let waiting = self.broker.waiting(&self.name).await.attempt(self.attempted("inspect"))?;
        Ok(usize::try_from(waiting).unwrap_or(usize::MAX))
    }

    /// The first letters, at most `limit` of them. They stay where they are.
    pub async fn look(&self, limit: usize) -> Result<Vec<Letter>, Failure> {
        let (mut letters, mut held) = (Vec::new(), Vec::new());
        for _ in 0..limit.min(self.count().await?).min(MAX_HELD) {
            let Some((letter, delivery)) = self.take().await? else { break };
            letters.push(letter);
            held.push(delivery);
        }
        put_back(held).await;
        Ok(letters)
    }

    /// The first letter of this id, if there is one.
    pub async fn find(&self, id: &str) -> Result<Option<Found>, Failure> {
        let mut before = Vec::new();
        for _ in 0..self.count().await?.min(MAX_HELD) {
            let Some((letter, delivery)) = self.take().await? else { break };
            if letter.id == id {
                return Ok(Some(Found { letter, delivery, before }));
            }
            before.push(delivery);
        }
        put_back(before).await;
        Ok(None)
    }

    /// The first letter, if there is one.
    pub async fn take(&self) -> Result<Option<(Letter, Delivery)>, Failure> {
        let taken = self.broker.take(&self.name).await.attempt(self.attempted("take a letter from"))?;
        Ok(taken.map(|delivery| (Letter::new(delivery.message.clone(), &self.name), delivery)))
    }

    /// Remove all, and answer how many that were.
    pub async fn clear(&self) -> Result<usize, Failure> {
        let removed = self.broker.purge(&self.name).await.attempt(self.attempted("purge"))?;
        Ok(usize::try_from(removed).unwrap_or(usize::MAX))
    }

    fn attempted(&self, what: &str) -> String {
        format!("failed to {what} queue {}", visible::line(&self.name))
    }
}

impl Found {
    pub fn letter(&self) -> &Letter {
        &self.letter
    }

    /// Leave everything as it was.
    pub async fn put_back(self) -> Letter {
        let mut held = self.before;
        held.push(self.delivery);
        put_back(held).await;
        self.letter
    }

    /// Take this letter away, and leave the others as they were.
    ///
    /// # Errors
    /// When the broker no longer knows of it; it is in its queue again then.
    pub async fn remove(self) -> Result<(), Failure> {
        let removed = self.delivery.ack().await;
        put_back(self.before).await;
        removed.attempt(format_args!("failed to remove dead letter {}", visible::line(&self.letter.id)))
    }
}

/// The last one first: a broker that puts a message back to the front has them in their order again.
async fn put_back(held: Vec<Delivery>) {
    for delivery in held.into_iter().rev() {
        // What was lost with its connection is in its queue already.
        let _ = delivery.requeue().await;
    }
}
