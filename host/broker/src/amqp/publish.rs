//! Publishing: confirmed, concurrent, and carried over a lost connection.

use std::{
    collections::HashSet,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
};

use lapin::{
    BasicProperties, Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::ShortString,
};
use rtask_protocol::Message;
use tokio::{sync::Semaphore, time::Instant};

use super::{
    declare::{self, Declarer},
    delay, failure, inbox,
    link::Link,
    properties,
};
use crate::{BrokerError, Exchange, Patience, Queue, Target, backoff::Backoff, limits::lifetime};

/// So many publications may be unconfirmed at once; more wait their turn.
const CHANNELS: usize = 64;
/// More places than this are not remembered as declared; the set is begun anew then.
const REMEMBERED_PLACES: usize = 10_000;

/// Where a message goes, in AMQP's words.
#[derive(Debug)]
pub(super) struct Way {
    pub exchange: ShortString,
    pub routing_key: ShortString,
    pub place: Place,
}

/// What is to be there before the first message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// A queue as Celery's publishers declare it.
    Queue(String),
    Exchange(Exchange),
    /// Remote control's exchange.
    Mailboxes,
    /// The delay queues, and the way back from them into this queue.
    Delay(String),
    /// Somebody else's, who may be gone, and that is no matter.
    Theirs,
}

impl Way {
    /// # Errors
    /// For a name that AMQP cannot carry.
    pub fn to(target: &Target) -> Result<Self, BrokerError> {
        let (exchange, routing_key, place) = match target {
            Target::Queue(queue) => (ShortString::default(), declare::queue_name(queue)?, Place::Queue(queue.clone())),
            Target::Exchange { exchange, routing_key } => {
                (declare::name(&exchange.name)?, declare::name(routing_key)?, Place::Exchange(exchange.clone()))
            }
            Target::Reply { exchange, routing_key } => {
                (declare::name(exchange)?, declare::name(routing_key)?, Place::Theirs)
            }
        };
        Ok(Self { exchange, routing_key, place })
    }

    /// For error messages.
    fn name(&self) -> String {
        match &self.place {
            Place::Queue(queue) | Place::Delay(queue) => queue.clone(),
            Place::Exchange(_) | Place::Mailboxes | Place::Theirs => format!("{}/{}", self.exchange, self.routing_key),
        }
    }
}

impl Place {
    /// Whether a message that reaches no queue is lost, and not merely without a reader.
    fn must_be_reached(&self) -> bool {
        match self {
            Self::Queue(_) | Self::Exchange(_) | Self::Delay(_) => true,
            Self::Mailboxes | Self::Theirs => false,
        }
    }
}

/// Publishes over channels that each carry one message at a time. lapin hands a returned message to whichever
/// confirmation of its channel comes next; with one in flight that is certainly its own, and an unroutable
/// message is never taken for a kept one.
pub(super) struct Publisher {
    link: Arc<Link>,
    patience: Patience,
    turns: Semaphore,
    idle: Mutex<Vec<Channel>>,
    declared: Mutex<Declared>,
    /// Held while declaring, so that what many wait for is declared once.
    declaring: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Declared {
    places: HashSet<Place>,
    delays: bool,
}

/// What became of an attempt that the server has answered.
enum Outcome {
    Kept,
    Unroutable,
}

impl Publisher {
    /// `patience` bounds a publication with all of its attempts.
    pub fn new(link: Arc<Link>, patience: Patience) -> Self {
        Self {
            link,
            patience,
            turns: Semaphore::new(CHANNELS),
            idle: Mutex::default(),
            declared: Mutex::default(),
            declaring: tokio::sync::Mutex::default(),
        }
    }

    /// Publish until the broker has confirmed, over fresh connections if need be.
    pub async fn publish(&self, way: &Way, message: &Message) -> Result<(), BrokerError> {
        lifetime(&message.properties)?;
        let properties = properties::to_amqp(&message.headers, &message.properties)?;
        let mut deadline = Instant::now() + self.patience.within();
        let mut backoff = Backoff::default();
        let mut failure = None;
        loop {
            let attempt = self.attempt(way, &message.body, properties.clone());
            let error = match self.await_room(&mut deadline, attempt).await {
                Some(Ok(Outcome::Kept)) => return Ok(()),
                Some(Ok(Outcome::Unroutable)) => self.unroutable(way)?,
                Some(Err(error)) if error.is_permanent() => return Err(error),
                Some(Err(error)) => error,
                None => return Err(failure.unwrap_or_else(|| self.unanswered(way))),
            };
            let pause = backoff.pause();
            if Instant::now() + pause >= deadline {
                return Err(error);
            }
            tracing::debug!(%error, ?pause, "publishing again");
            tokio::time::sleep(pause).await;
            failure = Some(error);
        }
    }

    pub async fn close(&self) {
        self.turns.close();
        lock(&self.idle).clear();
        self.link.close().await;
    }

    /// What the attempt answers before the deadline. For the patient, the deadline recedes while the server says that
    /// it takes no messages: the one that is on its way is kept when it takes them again, and would then be there
    /// twice if it was sent anew.
    async fn await_room<T>(&self, deadline: &mut Instant, attempt: impl Future<Output = T>) -> Option<T> {
        let mut attempt = pin!(attempt);
        loop {
            match tokio::time::timeout_at(*deadline, &mut attempt).await {
                Ok(answer) => return Some(answer),
                Err(_) if self.patience == Patience::Forever && self.link.is_blocked() => {
                    *deadline = Instant::now() + self.patience.within();
                }
                Err(_) => return None,
            }
        }
    }

    async fn attempt(&self, way: &Way, body: &[u8], properties: BasicProperties) -> Result<Outcome, BrokerError> {
        let closed = |_| BrokerError::Closed { url: self.link.url().to_owned() };
        let _turn = self.turns.acquire().await.map_err(closed)?;
        self.ensure(&way.place).await?;
        let channel = self.channel().await?;
        let options = BasicPublishOptions { mandatory: way.place.must_be_reached(), ..Default::default() };
        let (exchange, key) = (way.exchange.clone(), way.routing_key.clone());
        let confirmed = match channel.basic_publish(exchange, key, options, body, properties).await {
            Ok(confirmation) => confirmation.await,
            Err(error) => Err(error),
        };
        match confirmed {
            Ok(confirmation) => {
                lock(&self.idle).push(channel);
                judge(way, confirmation)
            }
            Err(error) if failure::is_not_found(&error) && way.place == Place::Theirs => Ok(Outcome::Kept),
            Err(error) => {
                if failure::is_not_found(&error) {
                    self.forget(&way.place);
                }
                Err(failure::publishing(self.link.url(), &error))
            }
        }
    }

    /// An idle channel, or a new one.
    async fn channel(&self) -> Result<Channel, BrokerError> {
        while let Some(channel) = self.pop_idle() {
            if channel.status().connected() {
                return Ok(channel);
            }
        }
        let channel = self.link.channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(|error| self.link.explain(&error))?;
        Ok(channel)
    }

    fn pop_idle(&self) -> Option<Channel> {
        lock(&self.idle).pop()
    }

    async fn ensure(&self, place: &Place) -> Result<(), BrokerError> {
        if *place == Place::Theirs || lock(&self.declared).places.contains(place) {
            return Ok(());
        }
        let _declaring = self.declaring.lock().await;
        if lock(&self.declared).places.contains(place) {
            return Ok(());
        }
        self.declare(place).await?;
        let mut declared = lock(&self.declared);
        if declared.places.len() >= REMEMBERED_PLACES {
            declared.places.clear();
        }
        declared.places.insert(place.clone());
        Ok(())
    }

    async fn declare(&self, place: &Place) -> Result<(), BrokerError> {
        let mut declarer = Declarer::open(&self.link).await?;
        match place {
            Place::Queue(queue) => declarer.queue(&Queue::named(queue.as_str())).await.map(drop),
            Place::Exchange(exchange) => declarer.exchange(exchange).await,
            Place::Mailboxes => inbox::declare_mailboxes(&mut declarer).await,
            Place::Delay(queue) => {
                if !lock(&self.declared).delays {
                    delay::declare(&mut declarer).await?;
                    lock(&self.declared).delays = true;
                }
                delay::bind(&mut declarer, queue).await
            }
            Place::Theirs => Ok(()),
        }
    }

    /// Somebody has deleted it; the next attempt declares it again.
    fn forget(&self, place: &Place) {
        let mut declared = lock(&self.declared);
        declared.places.remove(place);
        if matches!(place, Place::Delay(_)) {
            declared.delays = false;
        }
    }

    /// An error to try again after, where declaring anew makes a way; what is bound to an exchange is up to others.
    fn unroutable(&self, way: &Way) -> Result<BrokerError, BrokerError> {
        let error = |reason: &str| BrokerError::NotConfirmed { queue: way.name(), reason: reason.to_owned() };
        match way.place {
            Place::Queue(_) | Place::Delay(_) => {
                self.forget(&way.place);
                Ok(error("no queue of this name took it"))
            }
            Place::Exchange(_) | Place::Mailboxes | Place::Theirs => {
                Err(error("no queue is bound to that exchange by such a routing key"))
            }
        }
    }

    fn unanswered(&self, way: &Way) -> BrokerError {
        let within = self.patience.within().as_secs();
        let reason = if self.link.is_blocked() {
            format!("{} takes no messages for now, for want of memory or disk", self.link.url())
        } else {
            format!("no answer from {} within {within} s", self.link.url())
        };
        BrokerError::NotConfirmed { queue: way.name(), reason }
    }
}

fn judge(way: &Way, confirmation: Confirmation) -> Result<Outcome, BrokerError> {
    let reason = match confirmation {
        Confirmation::Ack(None) => return Ok(Outcome::Kept),
        Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_)) => return Ok(Outcome::Unroutable),
        Confirmation::Nack(None) => "the broker refused to keep it",
        Confirmation::NotRequested => "the channel does not confirm",
    };
    Err(BrokerError::NotConfirmed { queue: way.name(), reason: reason.to_owned() })
}

/// No code panics while it holds these locks.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
