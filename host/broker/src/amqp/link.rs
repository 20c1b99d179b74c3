//! A connection that is repaired by whoever needs it next.

use std::{pin::pin, sync::Arc, time::Duration};

use futures::StreamExt;
use lapin::{Channel, Connection, ConnectionProperties, Event};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    address::{Server, Servers},
    failure,
    transport::{self, Sifting},
};
use crate::{BrokerError, connect::CONNECT_WITHIN};

/// Where a connection goes to, and the connection if there is one.
pub(super) struct Link {
    servers: Arc<Servers>,
    /// Shown in the server's list of connections.
    purpose: &'static str,
    /// Locked while connecting, so that a lost connection is replaced once, not once a caller.
    current: Mutex<Option<Arc<Connection>>>,
    closed: CancellationToken,
}

impl Link {
    pub fn new(servers: Arc<Servers>, purpose: &'static str) -> Self {
        Self { servers, purpose, current: Mutex::new(None), closed: CancellationToken::new() }
    }

    /// The connection, opened by a single attempt at each server if there is none.
    pub async fn connection(&self) -> Result<Arc<Connection>, BrokerError> {
        let mut current = self.current.lock().await;
        if self.closed.is_cancelled() {
            return Err(BrokerError::Closed { url: self.url().to_owned() });
        }
        if let Some(connection) = current.as_ref().filter(|connection| connection.status().connected()) {
            return Ok(connection.clone());
        }
        *current = None;
        let fresh = Arc::new(self.open().await?);
        *current = Some(fresh.clone());
        Ok(fresh)
    }

    /// A fresh channel. It outlives the link if it has to.
    pub async fn channel(&self) -> Result<Channel, BrokerError> {
        let connection = self.connection().await?;
        connection.create_channel().await.map_err(|error| self.explain(&error))
    }

    /// Of the server that was reached last.
    pub fn url(&self) -> &str {
        &self.servers.current().url
    }

    /// What an error on this link means.
    pub fn explain(&self, error: &lapin::Error) -> BrokerError {
        failure::operating(self.url(), error)
    }

    /// Whether the server has said that it takes no messages for now.
    pub fn is_blocked(&self) -> bool {
        // While somebody holds the lock to connect, there is nothing to be blocked.
        let current = self.current.try_lock();
        current.is_ok_and(|current| current.as_ref().is_some_and(|connection| connection.status().blocked()))
    }

    pub async fn close(&self) {
        self.closed.cancel();
        if let Some(connection) = self.current.lock().await.take() {
            // If it was lost, there is nobody to say goodbye to.
            let _ = connection.close(200, "OK".into()).await;
        }
    }

    /// Try each server once, all of them within [`CONNECT_WITHIN`].
    async fn open(&self) -> Result<Connection, BrokerError> {
        let deadline = Instant::now() + CONNECT_WITHIN;
        let mut failure = None;
        let servers = self.servers.in_turn();
        let count = servers.len();
        for (tried, (index, server)) in (0_u32..).zip(servers) {
            let left = u32::try_from(count).unwrap_or(u32::MAX).saturating_sub(tried).max(1);
            let share = deadline.saturating_duration_since(Instant::now()) / left;
            match self.open_at(server, share).await {
                Ok(connection) => {
                    self.servers.reached(index);
                    tell_when_blocked(&connection, server.url.clone());
                    return Ok(connection);
                }
                Err(error) => {
                    if left > 1 {
                        tracing::warn!(%error, "trying the next broker of the list");
                    }
                    failure = Some(worth_waiting_for(failure, error));
                }
            }
        }
        Err(failure.unwrap_or_else(|| unanswered(self.servers.current(), CONNECT_WITHIN)))
    }

    async fn open_at(&self, server: &Server, within: Duration) -> Result<Connection, BrokerError> {
        let options = ConnectionProperties::default()
            .with_client_property("product".into(), "rtask".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into())
            .with_connection_name(self.purpose.into());
        let (uri, tls) = (server.uri.clone(), server.tls.clone());
        let reach = async move |uri, _| transport::connect(uri, tls.as_ref()).await;
        match timeout(within, Connection::connector(uri, Sifting::runtime(), reach, options)).await {
            Ok(connected) => connected.map_err(|error| failure::connecting(&server.url, &error)),
            Err(_) => Err(unanswered(server, within)),
        }
    }
}

fn unanswered(server: &Server, within: Duration) -> BrokerError {
    let reason = format!("no answer within {:.1} s", within.as_secs_f64());
    BrokerError::Unreachable { url: server.url.clone(), reason }
}

/// Of a list's failures the one that may pass, if there is one: only a list that refuses as a whole is given up.
fn worth_waiting_for(earlier: Option<BrokerError>, error: BrokerError) -> BrokerError {
    earlier.filter(|earlier| error.is_permanent() || !earlier.is_permanent()).unwrap_or(error)
}

/// Log when the server stops taking messages, which it tells to those who publish, and when it goes on. Ends with
/// the connection.
fn tell_when_blocked(connection: &Connection, url: String) {
    let events = connection.events_listener();
    tokio::spawn(async move {
        let mut events = pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Event::ConnectionBlocked(reason) => {
                    tracing::warn!(url, reason, "the broker takes no messages for now; publishing waits");
                }
                Event::ConnectionUnblocked => tracing::info!(url, "the broker takes messages again"),
                // lapin's further events, of which it may have more one day, are seen by whoever uses the connection.
                _ => {}
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_given_up_only_if_every_server_refuses() {
        let down = || BrokerError::Unreachable { url: "down".into(), reason: String::new() };
        let closed = |url: &str| BrokerError::Closed { url: url.into() };
        let rows: [(Vec<BrokerError>, bool); 4] = [
            (vec![closed("a"), down()], false),
            (vec![down(), closed("b")], false),
            (vec![down(), down()], false),
            (vec![closed("a"), closed("b")], true),
        ];
        for (failures, permanent) in rows {
            let text = format!("{failures:?}");
            let told = failures.into_iter().fold(None, |told, error| Some(worth_waiting_for(told, error)));
            assert_eq!(told.expect("there are some").is_permanent(), permanent, "{text}");
        }
    }
}
