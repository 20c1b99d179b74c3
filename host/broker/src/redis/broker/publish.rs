//! Publishing, as kombu does it: exchanges are looked up here, and their queues pushed to.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use rtask_protocol::Message;

use super::{bindings, envelope, fanout, unacked::Unacked};
use crate::{
    BrokerError, Exchange, ExchangeKind, Publication, Queue, Routing, Target,
    limits::{check_length, check_queue_name, lifetime},
};

/// More queue names than this are not remembered as declared; the set is begun anew then.
const REMEMBERED_QUEUES: usize = 10_000;
/// A list of replies that nobody takes goes after so long, the time for which Celery keeps results.
const REPLIES_LIVE: Duration = Duration::from_secs(86_400);

pub(super) struct Publisher {
    unacked: Arc<Unacked>,
    declared: Mutex<HashSet<String>>,
}

impl Publisher {
    pub fn new(unacked: Arc<Unacked>) -> Self {
        Self { unacked, declared: Mutex::default() }
    }

    pub async fn publish(&self, publication: &Publication) -> Result<(), BrokerError> {
        let Publication { target, message } = publication;
        let lifetime = lifetime(&message.properties)?;
        match target {
            Target::Queue(queue) => check_queue_name(queue)?,
            Target::Exchange { exchange, routing_key } => {
                check_queue_name(&exchange.name)?;
                check_length("a routing key", routing_key)?;
            }
            Target::Reply { exchange, routing_key } => {
                check_length("an exchange's name", exchange)?;
                check_length("a routing key", routing_key)?;
            }
        }
        // Nobody could receive it in time.
        if lifetime == Some(0) {
            return Ok(());
        }
        let expires_at = lifetime.map(|lifetime| Timestamp::now().as_millisecond() + i64::from(lifetime));
        match target {
            Target::Queue(queue) => self.publish_to_queue(queue, message, expires_at).await,
            Target::Exchange { exchange, routing_key } => {
                self.publish_to_exchange(exchange, routing_key, message, expires_at).await
            }
            Target::Reply { exchange, routing_key } => self.reply(exchange, routing_key, message, expires_at).await,
        }
    }

    async fn publish_to_queue(
        &self,
        queue: &str,
        message: &Message,
        expires_at: Option<i64>,
    ) -> Result<(), BrokerError> {
        if !self.is_declared(queue) {
            bindings::bind(&self.unacked, &Queue::named(queue)).await?;
            self.remember(queue);
        }
        let routing = Routing { exchange: String::new(), routing_key: queue.to_owned() };
        let element = envelope::seal(message, &routing, expires_at);
        self.push(&[queue.to_owned()], message, &element, None).await
    }

    async fn publish_to_exchange(
        &self,
        exchange: &Exchange,
        routing_key: &str,
        message: &Message,
        expires_at: Option<i64>,
    ) -> Result<(), BrokerError> {
        let routing = Routing { exchange: exchange.name.clone(), routing_key: routing_key.to_owned() };
        let element = envelope::seal(message, &routing, expires_at);
        let reached = match exchange.kind {
            ExchangeKind::Fanout => fanout::publish(&self.unacked, &routing, &element).await?,
            kind @ (ExchangeKind::Direct | ExchangeKind::Topic | ExchangeKind::Headers) => {
                let (name, headers) = (&exchange.name, &message.headers);
                let queues = bindings::queues(&self.unacked, name, kind, routing_key, headers).await?;
                self.push(&queues, message, &element, None).await?;
                !queues.is_empty()
            }
        };
        let reason = format!("nothing is bound to the exchange `{}` for it", exchange.name);
        reached.then_some(()).ok_or(BrokerError::NotConfirmed { queue: routing_key.to_owned(), reason })
    }

    /// golden/02_redis_transport/16_pidbox_ping.json.
    async fn reply(
        &self,
        exchange: &str,
        routing_key: &str,
        message: &Message,
        expires_at: Option<i64>,
    ) -> Result<(), BrokerError> {
        let queues = match exchange {
            "" => vec![routing_key.to_owned()],
            exchange => bindings::queues_by_key(&self.unacked, exchange, routing_key).await?,
        };
        let routing = Routing { exchange: exchange.to_owned(), routing_key: routing_key.to_owned() };
        self.push(&queues, message, &envelope::seal(message, &routing, expires_at), Some(REPLIES_LIVE)).await
    }

    /// Into all of them or none. Sent again after a lost answer, it may be there twice.
    async fn push(
        &self,
        queues: &[String],
        message: &Message,
        element: &str,
        live: Option<Duration>,
    ) -> Result<(), BrokerError> {
        if queues.is_empty() {
            return Ok(());
        }
        let mut pushing = redis::pipe();
        if queues.len() > 1 || live.is_some() {
            pushing.atomic();
        }
        for queue in queues {
            let list = self.unacked.keys.list(queue, message.properties.priority);
            pushing.lpush(&list, element).ignore();
            if let Some(live) = live {
                pushing.expire(&list, live.as_secs().cast_signed()).ignore();
            }
        }
        self.unacked.link.ask::<()>(&pushing).await
    }

    fn is_declared(&self, queue: &str) -> bool {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner).contains(queue)
    }

    fn remember(&self, queue: &str) {
        // No code panics while it holds the lock.
        let mut declared = self.declared.lock().unwrap_or_else(PoisonError::into_inner);
        if declared.len() >= REMEMBERED_QUEUES {
            declared.clear();
        }
        declared.insert(queue.to_owned());
    }
}
