//! Queues, exchanges and what ties them, as kombu names them (`kombu/entity.py`).
//!
//! Everything here is durable, as it is for Celery. What a broker has no word for (Redis knows no exchanges, the
//! embedded store neither) it emulates.

use rtask_protocol::Headers;

/// Where messages are published to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Exchange {
    pub name: String,
    pub kind: ExchangeKind,
}

/// How an exchange compares a message with its bindings (AMQP 0-9-1, section 3.1.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ExchangeKind {
    #[default]
    Direct,
    Topic,
    Fanout,
    Headers,
}

/// What makes an exchange hand its messages to a queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Binding {
    pub exchange: Exchange,
    pub routing_key: String,
    /// What a headers exchange compares, `x-match` included.
    pub arguments: Headers,
}

/// A queue with all that is to be declared about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Queue {
    pub name: String,
    pub bindings: Vec<Binding>,
    /// `x-queue-type`, `x-max-priority` and the like; none, as for Celery, unless somebody named some.
    pub arguments: Headers,
}

impl Queue {
    /// A queue of which only the name is known: bound to a direct exchange of the same name by the same key
    /// (`celery/app/amqp.py`, `Queues.new_missing`).
    pub fn named(name: impl Into<String>) -> Self {
        let name = name.into();
        let exchange = Exchange { name: name.clone(), kind: ExchangeKind::Direct };
        let binding = Binding { exchange, routing_key: name.clone(), arguments: Headers::new() };
        Self { name, bindings: vec![binding], arguments: Headers::new() }
    }

    /// Whether a publication to its name makes the same queue; others are declared before ([`crate::Broker::declare`]).
    pub fn is_plain(&self) -> bool {
        *self == Self::named(self.name.as_str())
    }
}

/// Where a publication goes.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// Straight into a queue, which is declared as [`Queue::named`] at the first publication to it, unless it exists.
    Queue(String),
    /// To whatever is bound to an exchange, which is declared at the first publication to it. A message that no queue
    /// takes is an error ([`crate::BrokerError::NotConfirmed`]).
    Exchange { exchange: Exchange, routing_key: String },
    /// To somebody who asked and declared where to; if they are gone, so is the message. The exchange may be the
    /// default one, whose name is empty: the routing key is a queue's name then.
    Reply { exchange: String, routing_key: String },
}
