//! Queues, exchanges and bindings as Celery declares them
//! (golden/01_amqp_task_messages/00_connection_handshake_and_first_send.json).
//!
//! What exists otherwise, since another program or an operator chose so, is used as it is. The server answers
//! such a declaration with an error that closes its channel, so each starts with a fresh one after it.

use lapin::{
    Channel,
    options::{ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};

use super::{failure, link::Link, table};
use crate::{Binding, BrokerError, Exchange, ExchangeKind, Queue, limits::check_queue_name};

/// Exchanges whose names begin so are the server's own (AMQP 0-9-1, section 3.1.3.1); kombu does not declare them.
const OWN_PREFIX: &str = "amq.";

/// What is known of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueueKind {
    /// The broker counts its deliveries and tells in `x-delivery-count`, whatever a publisher wrote there.
    Quorum,
    Other,
}

/// A queue's name as AMQP carries it.
pub(super) fn queue_name(queue: &str) -> Result<ShortString, BrokerError> {
    check_queue_name(queue)?;
    name(queue)
}

/// An exchange's name, or a routing key.
pub(super) fn name(text: &str) -> Result<ShortString, BrokerError> {
    ShortString::try_new(text).map_err(|error| BrokerError::unsendable(error.to_string()))
}

/// Declares over one channel for as long as the server likes what it is told.
pub(super) struct Declarer<'a> {
    link: &'a Link,
    channel: Channel,
}

impl<'a> Declarer<'a> {
    pub async fn open(link: &'a Link) -> Result<Self, BrokerError> {
        Ok(Self { channel: link.channel().await?, link })
    }

    /// The queue, its exchanges and what ties them.
    pub async fn queue(&mut self, queue: &Queue) -> Result<QueueKind, BrokerError> {
        for binding in &queue.bindings {
            self.exchange(&binding.exchange).await?;
        }
        let name = queue_name(&queue.name)?;
        let kind = self.queue_as(&name, QueueDeclareOptions::durable(), table::to_amqp(&queue.arguments)?).await?;
        for binding in &queue.bindings {
            self.bind(&name, binding).await?;
        }
        Ok(kind)
    }

    /// A durable exchange.
    pub async fn exchange(&mut self, exchange: &Exchange) -> Result<(), BrokerError> {
        self.exchange_as(exchange, ExchangeDeclareOptions { durable: true, ..Default::default() }).await
    }

    pub async fn exchange_as(
        &mut self,
        exchange: &Exchange,
        options: ExchangeDeclareOptions,
    ) -> Result<(), BrokerError> {
        if is_servers_own(exchange) {
            return Ok(());
        }
        let (name, kind) = (name(&exchange.name)?, kind_in_amqp(exchange.kind));
        match self.channel.exchange_declare(name, kind, options, FieldTable::default()).await {
            // It is there, if of another kind.
            Err(error) if failure::is_precondition_failed(&error) => self.begin_anew().await,
            declared => declared.map_err(|error| self.link.explain(&error)),
        }
    }

    /// Whether there is such an exchange, of whatever kind.
    pub async fn has_exchange(&mut self, exchange: &str) -> Result<bool, BrokerError> {
        let passive = ExchangeDeclareOptions { passive: true, ..Default::default() };
        let kind = lapin::ExchangeKind::default();
        match self.channel.exchange_declare(name(exchange)?, kind, passive, FieldTable::default()).await {
            Ok(()) => Ok(true),
            Err(error) if failure::is_not_found(&error) => {
                self.begin_anew().await?;
                Ok(false)
            }
            Err(error) => Err(self.link.explain(&error)),
        }
    }

    /// A durable queue without its bindings.
    pub async fn queue_alone(&mut self, name: &ShortString, arguments: FieldTable) -> Result<QueueKind, BrokerError> {
        self.queue_as(name, QueueDeclareOptions::durable(), arguments).await
    }

    async fn queue_as(
        &mut self,
        name: &ShortString,
        options: QueueDeclareOptions,
        arguments: FieldTable,
    ) -> Result<QueueKind, BrokerError> {
        match self.try_queue(name, options, arguments).await? {
            Ok(kind) => Ok(kind),
            // Nothing will change by asking again.
            Err(refusal) => Err(BrokerError::Damaged {
                what: format!("the declaration of queue `{name}`"),
                reason: refusal.to_string(),
            }),
        }
    }

    /// The same; or, within, why the server would have no such queue.
    pub async fn try_queue(
        &mut self,
        name: &ShortString,
        options: QueueDeclareOptions,
        arguments: FieldTable,
    ) -> Result<lapin::Result<QueueKind>, BrokerError> {
        let asked = if asks_for_quorum(&arguments) { QueueKind::Quorum } else { QueueKind::Other };
        let refusal = match self.channel.queue_declare(name.clone(), options, arguments).await {
            Ok(_) => return Ok(Ok(asked)),
            Err(error) if failure::is_dislike(&error) => error,
            Err(error) => return Err(self.link.explain(&error)),
        };
        self.begin_anew().await?;
        Ok(if self.exists(name).await? { Ok(kind_of(&refusal.to_string())) } else { Err(refusal) })
    }

    async fn exists(&mut self, queue: &ShortString) -> Result<bool, BrokerError> {
        let passive = QueueDeclareOptions::default().passive();
        match self.channel.queue_declare(queue.clone(), passive, FieldTable::default()).await {
            Ok(_) => Ok(true),
            Err(error) if failure::is_not_found(&error) => {
                self.begin_anew().await?;
                Ok(false)
            }
            Err(error) => Err(self.link.explain(&error)),
        }
    }

    /// Every queue is bound to the default exchange already, by its name.
    pub async fn bind(&mut self, queue: &ShortString, binding: &Binding) -> Result<(), BrokerError> {
        if binding.exchange.name.is_empty() {
            return Ok(());
        }
        let (exchange, key) = (name(&binding.exchange.name)?, name(&binding.routing_key)?);
        let arguments = table::to_amqp(&binding.arguments)?;
        let bound = self.channel.queue_bind(queue.clone(), exchange, key, QueueBindOptions::default(), arguments).await;
        bound.map_err(|error| self.link.explain(&error))
    }

    /// Let `destination` have what `source` gets by such a key.
    pub async fn bind_exchange(&mut self, destination: &str, source: &str, key: &str) -> Result<(), BrokerError> {
        let (destination, source, key) = (name(destination)?, name(source)?, name(key)?);
        let options = ExchangeBindOptions::default();
        let bound = self.channel.exchange_bind(destination, source, key, options, FieldTable::default()).await;
        bound.map_err(|error| self.link.explain(&error))
    }

    pub fn into_channel(self) -> Channel {
        self.channel
    }

    async fn begin_anew(&mut self) -> Result<(), BrokerError> {
        self.channel = self.link.channel().await?;
        Ok(())
    }
}

fn is_servers_own(exchange: &Exchange) -> bool {
    exchange.name.is_empty() || exchange.name.starts_with(OWN_PREFIX)
}

fn kind_in_amqp(kind: ExchangeKind) -> lapin::ExchangeKind {
    match kind {
        ExchangeKind::Direct => lapin::ExchangeKind::Direct,
        ExchangeKind::Topic => lapin::ExchangeKind::Topic,
        ExchangeKind::Fanout => lapin::ExchangeKind::Fanout,
        ExchangeKind::Headers => lapin::ExchangeKind::Headers,
    }
}

fn asks_for_quorum(arguments: &FieldTable) -> bool {
    let asked = arguments.inner().get("x-queue-type");
    matches!(asked, Some(AMQPValue::LongString(kind)) if kind.as_bytes() == b"quorum")
}

/// RabbitMQ says which argument differs, what it was told and what it has. If it ever says so in other words,
/// deliveries are counted by the store instead, as they are for classic queues.
fn kind_of(refusal: &str) -> QueueKind {
    match refusal.split_once("current is") {
        Some((told, has)) if told.contains("'x-queue-type'") && has.contains("'quorum'") => QueueKind::Quorum,
        _ => QueueKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_has_counts_and_not_what_it_was_told() {
        let inequivalent = |what: &str, told: &str, has: &str| {
            format!(
                "PRECONDITION_FAILED - inequivalent arg '{what}' for queue 'q' in vhost '/': received {told} but current is {has}"
            )
        };
        let (quorum, classic) = ("the value 'quorum' of type 'longstr'", "the value 'classic' of type 'longstr'");
        let rows = [
            (inequivalent("x-queue-type", "none", quorum), QueueKind::Quorum),
            (inequivalent("x-queue-type", classic, quorum), QueueKind::Quorum),
            (inequivalent("x-queue-type", quorum, "none"), QueueKind::Other),
            (inequivalent("x-queue-type", quorum, classic), QueueKind::Other),
            (inequivalent("x-max-priority", "none", "the value '9' of type 'signedint'"), QueueKind::Other),
            ("anything".to_owned(), QueueKind::Other),
        ];
        for (refusal, kind) in rows {
            assert_eq!(kind_of(&refusal), kind, "{refusal}");
        }
    }
}
