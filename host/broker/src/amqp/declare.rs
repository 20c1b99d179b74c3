//! Queues as Celery declares them (golden/01_amqp_task_messages/00_connection_handshake_and_first_send.json).

use lapin::{
    Channel, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{FieldTable, ShortString},
};

use super::{failure, link::Link};
use crate::{BrokerError, limits::check_queue_name};

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
    ShortString::try_new(queue).map_err(|error| BrokerError::unsendable(error.to_string()))
}

/// Make sure that `queue` exists. One that exists with other arguments, which another program or an operator
/// chose, is used as it is.
pub(super) async fn declare(link: &Link, queue: &str) -> Result<QueueKind, BrokerError> {
    let name = queue_name(queue)?;
    let channel = link.channel().await?;
    match declare_as_celery(&channel, &name).await {
        Ok(()) => Ok(QueueKind::Other),
        Err(error) if failure::is_precondition_failed(&error) => {
            accept(link, &name).await?;
            Ok(kind_of(&error.to_string()))
        }
        Err(error) => Err(link.explain(&error)),
    }
}

async fn declare_as_celery(channel: &Channel, name: &ShortString) -> lapin::Result<()> {
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let none = FieldTable::default;
    channel.exchange_declare(name.clone(), ExchangeKind::Direct, durable, none()).await?;
    channel.queue_declare(name.clone(), QueueDeclareOptions::durable(), none()).await?;
    channel.queue_bind(name.clone(), name.clone(), name.clone(), QueueBindOptions::default(), none()).await
}

/// Use what is there; if only the exchange was in the way, the queue is still to be made. The refusal has closed
/// the channel each time.
async fn accept(link: &Link, name: &ShortString) -> Result<(), BrokerError> {
    let passive = QueueDeclareOptions::default().passive();
    let found = link.channel().await?.queue_declare(name.clone(), passive, FieldTable::default()).await;
    let declared = match found {
        Err(error) if failure::is_not_found(&error) => {
            let durable = QueueDeclareOptions::durable();
            link.channel().await?.queue_declare(name.clone(), durable, FieldTable::default()).await
        }
        found => found,
    };
    declared.map(drop).map_err(|error| link.explain(&error))
}

/// RabbitMQ says which argument differs and what it is. If it ever says so in other words, deliveries are counted
/// by the store instead, as they are for classic queues.
fn kind_of(refusal: &str) -> QueueKind {
    if refusal.contains("'x-queue-type'") && refusal.contains("'quorum'") {
        QueueKind::Quorum
    } else {
        QueueKind::Other
    }
}
