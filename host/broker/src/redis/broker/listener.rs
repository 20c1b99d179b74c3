//! Hearing what is published on channels, which is how kombu has fanout exchanges (`Channel._put_fanout`).

use std::time::Duration;

use futures::StreamExt;
use redis::{
    Client, Msg, ProtocolVersion, RedisResult, Value,
    aio::{PubSub, PubSubSink, PubSubStream},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::super::{address::Address, failure, link::ANSWER_WITHIN};
use crate::{BrokerError, backoff::Backoff};

/// A silent connection is tried with a PING this often, since a dead peer says nothing either.
const PING_EVERY: Duration = Duration::from_secs(10);
/// So many messages wait for their reader; more are lost, as they are for whoever is not there.
const WAITING: usize = 1_024;

/// Hear what is published on channels that match `patterns`, from the answer on until `over`. What is published while
/// the connection is lost is not heard.
pub(super) async fn listen(
    address: Address,
    patterns: Vec<String>,
    over: CancellationToken,
) -> Result<mpsc::Receiver<Vec<u8>>, BrokerError> {
    let connection = subscribe(&address, &patterns).await?;
    let (sender, heard) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        over.run_until_cancelled(hear(address, patterns, connection, sender)).await;
    });
    Ok(heard)
}

async fn subscribe(address: &Address, patterns: &[String]) -> Result<PubSub, BrokerError> {
    let open = |client: Client| async move {
        let mut connection = client.get_async_pubsub().await?;
        connection.psubscribe(patterns).await?;
        Ok(connection)
    };
    address.connect(ProtocolVersion::RESP2, open).await
}

async fn hear(address: Address, patterns: Vec<String>, connection: PubSub, sender: mpsc::Sender<Vec<u8>>) {
    let (mut connection, mut backoff) = (Ok(connection), Backoff::default());
    loop {
        let begun = Instant::now();
        let lost = match connection {
            Ok(connection) => {
                let (sink, stream) = connection.split();
                failure::operating(address.url(), &pass_on(sink, stream, &sender).await)
            }
            Err(error) => error,
        };
        let pause = backoff.pause_after(begun.elapsed());
        tracing::warn!(error = %lost, ?pause, "subscribing again");
        tokio::time::sleep(pause).await;
        connection = subscribe(&address, &patterns).await;
    }
}

/// Until the connection is lost: why.
async fn pass_on(mut sink: PubSubSink, mut stream: PubSubStream, sender: &mpsc::Sender<Vec<u8>>) -> redis::RedisError {
    let mut ping = tokio::time::interval(PING_EVERY);
    loop {
        tokio::select! {
            message = stream.next() => match message {
                Some(message) => offer(message, sender),
                None => return std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into(),
            },
            _ = ping.tick() => if let Err(error) = answered(sink.ping::<Value>()).await {
                return error;
            },
        }
    }
}

/// The client library queues without a bound, so nothing may wait here.
fn offer(message: Msg, sender: &mpsc::Sender<Vec<u8>>) {
    if let Err(mpsc::error::TrySendError::Full(_)) = sender.try_send(message.get_payload_bytes().to_vec()) {
        tracing::warn!(channel = message.get_channel_name(), "too many messages at once; one is not heard");
    }
}

async fn answered<T>(answer: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    match timeout(ANSWER_WITHIN, answer).await {
        Ok(answer) => answer,
        Err(elapsed) => Err(std::io::Error::from(elapsed).into()),
    }
}
