//! Remote control (`kombu/pidbox.py`; golden/02_redis_transport/16_pidbox_ping.json).

use std::{sync::Arc, time::Duration};

use rtask_protocol::{Headers, Message};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{bindings, envelope, fanout, listener, unacked::Unacked};
use crate::{Binding, BrokerError, Consumer, Delivery, Exchange, ExchangeKind, Queue, Routing};

const PIDBOX: &str = "celery.pidbox";
/// `x-expires` of a worker's mailbox, in milliseconds (golden/README.md, 19).
const MAILBOX_EXPIRES: u64 = 10_000;
/// A mailbox's binding is kept, and tables that nobody keeps are removed, this often (`BINDING_SWEEP_INTERVAL`).
const KEEP_EVERY: Duration = Duration::from_secs(60);
/// So many broadcasts wait for the worker.
const WAITING: usize = 64;

/// Tell every mailbox.
pub(super) async fn broadcast(unacked: &Unacked, message: &Message) -> Result<(), BrokerError> {
    let routing = Routing { exchange: PIDBOX.to_owned(), routing_key: String::new() };
    fanout::tell(unacked, &routing, &envelope::seal(message, &routing, None)).await.map(drop)
}

/// Hear what is broadcast, as `node`.
pub(super) async fn listen(
    unacked: &Arc<Unacked>,
    node: &str,
    over: CancellationToken,
) -> Result<Consumer, BrokerError> {
    let queue = mailbox(node);
    let patterns = unacked.keys.topic_patterns(PIDBOX).to_vec();
    let heard = listener::listen(unacked.link.address().clone(), patterns, over.clone()).await?;
    keep(unacked, &queue).await?;
    let (sender, deliveries) = mpsc::channel(WAITING);
    let reading = tokio::spawn(read(unacked.clone(), queue, heard, sender, over.clone()));
    Ok(Consumer::new(deliveries, over.drop_guard(), reading))
}

fn mailbox(node: &str) -> Queue {
    let exchange = Exchange { name: PIDBOX.to_owned(), kind: ExchangeKind::Fanout };
    let binding = Binding { exchange, routing_key: String::new(), arguments: Headers::new() };
    let arguments = json!({"x-expires": MAILBOX_EXPIRES}).as_object().cloned().unwrap_or_default();
    Queue { bindings: vec![binding], arguments, ..Queue::named(format!("{node}.{PIDBOX}")) }
}

async fn keep(unacked: &Unacked, queue: &Queue) -> Result<(), BrokerError> {
    bindings::bind(unacked, queue).await?;
    bindings::sweep(unacked).await
}

async fn read(
    unacked: Arc<Unacked>,
    queue: Queue,
    mut heard: mpsc::Receiver<Vec<u8>>,
    deliveries: mpsc::Sender<Delivery>,
    over: CancellationToken,
) {
    let name: Arc<str> = queue.name.as_str().into();
    let mut ticks = tokio::time::interval(KEEP_EVERY);
    loop {
        let element = tokio::select! {
            biased;
            () = over.cancelled() => break,
            element = heard.recv() => element,
            _ = ticks.tick() => {
                if let Err(error) = keep(&unacked, &queue).await {
                    tracing::warn!(%error, "the mailbox's binding is not kept yet");
                }
                continue;
            }
        };
        let Some(element) = element else { break };
        let delivery = Delivery::settled(envelope::open(&element).message, name.clone()).routed(PIDBOX, "");
        let sent = over.run_until_cancelled(deliveries.send(delivery)).await;
        if !matches!(sent, Some(Ok(()))) {
            break;
        }
    }
    // Without it the deadline does the same, later.
    let _ = tokio::time::timeout(super::GOODBYE_WITHIN, bindings::unbind(&unacked, &queue)).await;
}
