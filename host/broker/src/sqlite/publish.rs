//! Putting a message into the queues that take it.

use bytes::Bytes;
use rtask_protocol::Message;
use rusqlite::params;

use super::{queues, store::Turn};
use crate::{
    BrokerError, Target,
    limits::{check_length, check_queue_name, lifetime},
};

/// A message as the file keeps it.
pub(super) struct Row {
    pub priority: u8,
    pub headers: String,
    pub properties: String,
    pub body: Bytes,
    /// Milliseconds.
    pub lifetime: Option<i64>,
}

/// How a message came, and when it goes.
pub(super) struct Way<'a> {
    pub queue: &'a str,
    pub exchange: &'a str,
    /// None for the queue's name.
    pub routing_key: Option<&'a str>,
    pub expires_at: Option<i64>,
    pub visible_at: Option<i64>,
}

impl Row {
    /// # Errors
    /// For what no broker could carry.
    pub fn of(message: &Message) -> Result<Self, BrokerError> {
        Ok(Self {
            priority: message.properties.priority.unwrap_or(0),
            headers: encode(&message.headers)?,
            properties: encode(&message.properties)?,
            body: message.body.clone(),
            lifetime: lifetime(&message.properties)?.map(i64::from),
        })
    }

    pub fn insert(&self, turn: &Turn<'_>, way: &Way<'_>) -> rusqlite::Result<()> {
        turn.connection
            .prepare_cached(
                "INSERT INTO messages
                     (queue, priority, headers, properties, body, expires_at, visible_at, exchange, routing_key)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                way.queue,
                self.priority,
                self.headers,
                self.properties,
                &self.body[..],
                way.expires_at,
                way.visible_at,
                way.exchange,
                way.routing_key
            ])
            .map(drop)
    }
}

/// # Errors
/// For names that AMQP could not carry.
pub(super) fn check(target: &Target) -> Result<(), BrokerError> {
    match target {
        Target::Queue(queue) => check_queue_name(queue),
        Target::Exchange { exchange, routing_key } => {
            check_length("an exchange's name", &exchange.name)?;
            check_length("a routing key", routing_key)
        }
        // A reply that nobody can take is dropped, whatever its address.
        Target::Reply { .. } => Ok(()),
    }
}

/// Put a message into every queue that takes it, and answer how many those are.
pub(super) fn publish(turn: &mut Turn<'_>, target: &Target, message: &Message, row: &Row) -> rusqlite::Result<usize> {
    let (exchange, routing_key) = match target {
        Target::Queue(queue) => {
            queues::declare_named(turn, queue)?;
            ("", queue)
        }
        Target::Exchange { exchange, routing_key } => {
            if !exchange.name.is_empty() {
                queues::declare_exchange(turn, exchange)?;
            }
            (exchange.name.as_str(), routing_key)
        }
        Target::Reply { exchange, routing_key } => (exchange.as_str(), routing_key),
    };
    let takers = queues::takers(turn, exchange, routing_key, &message.headers)?;
    for queue in &takers {
        let expires_at = row.lifetime.map(|lifetime| turn.now + lifetime);
        let routing_key = (queue != routing_key).then_some(routing_key.as_str());
        row.insert(turn, &Way { queue, exchange, routing_key, expires_at, visible_at: None })?;
    }
    if !takers.is_empty() {
        turn.wake_others();
    }
    Ok(takers.len())
}

fn encode<T: serde::Serialize>(value: &T) -> Result<String, BrokerError> {
    serde_json::to_string(value).map_err(|error| BrokerError::unsendable(error.to_string()))
}
