//! A connection that is repaired by whoever needs it next.

use std::sync::Arc;

use lapin::{Channel, Connection, ConnectionProperties, uri::AMQPUri};
use tokio::{sync::Mutex, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    failure,
    transport::{self, Sifting},
};
use crate::{BrokerError, connect::CONNECT_WITHIN, error::without_password};

/// Seconds. A peer is given up after twice this silence; RabbitMQ's own documentation recommends 5 to 20.
const HEARTBEAT: u16 = 15;

/// Where a connection goes to, and the connection if there is one.
pub(super) struct Link {
    uri: AMQPUri,
    /// Without the password.
    url: String,
    /// Shown in the server's list of connections.
    purpose: &'static str,
    /// Locked while connecting, so that a lost connection is replaced once, not once a caller.
    current: Mutex<Option<Arc<Connection>>>,
    closed: CancellationToken,
}

impl Link {
    /// # Errors
    /// When `url` is not an AMQP URL.
    pub fn new(url: &str, purpose: &'static str) -> Result<Self, BrokerError> {
        let address = |reason| BrokerError::Address { url: without_password(url), of: "broker", reason };
        let uri = parse(url).map_err(address)?;
        let (current, closed) = (Mutex::new(None), CancellationToken::new());
        Ok(Self { uri, url: without_password(url), purpose, current, closed })
    }

    /// The connection, opened by a single attempt if there is none.
    pub async fn connection(&self) -> Result<Arc<Connection>, BrokerError> {
        let mut current = self.current.lock().await;
        if self.closed.is_cancelled() {
            return Err(BrokerError::Closed { url: self.url.clone() });
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

    pub fn url(&self) -> &str {
        &self.url
    }

    /// What an error on this link means.
    pub fn explain(&self, error: &lapin::Error) -> BrokerError {
        failure::operating(&self.url, error)
    }

    pub async fn close(&self) {
        self.closed.cancel();
        if let Some(connection) = self.current.lock().await.take() {
            // If it was lost, there is nobody to say goodbye to.
            let _ = connection.close(200, "OK".into()).await;
        }
    }

    async fn open(&self) -> Result<Connection, BrokerError> {
        let options = ConnectionProperties::default()
            .with_client_property("product".into(), "rtask".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into())
            .with_connection_name(self.purpose.into());
        let connect = Connection::connector(self.uri.clone(), Sifting::runtime(), transport::connect, options);
        match timeout(CONNECT_WITHIN, connect).await {
            Ok(connected) => connected.map_err(|error| failure::connecting(&self.url, &error)),
            Err(_) => Err(BrokerError::Unreachable {
                url: self.url.clone(),
                reason: format!("no answer within {} s", CONNECT_WITHIN.as_secs()),
            }),
        }
    }
}

/// lapin's reading of a URL, put right where Celery reads it otherwise or where lapin loses something.
fn parse(url: &str) -> Result<AMQPUri, String> {
    let mut uri: AMQPUri = url.parse()?;
    if uri.vhost.is_empty() {
        // `amqp://host/` is the default virtual host for Celery (kombu/utils/url.py).
        uri.vhost = "/".to_owned();
    }
    if let Some(address) = ipv6_address(url) {
        uri.authority.host = address.to_owned();
    }
    uri.query.heartbeat.get_or_insert(HEARTBEAT);
    Ok(uri)
}

/// lapin takes an IPv6 address in brackets for no host at all, and falls back to localhost.
fn ipv6_address(url: &str) -> Option<&str> {
    let authority = url.split_once("://")?.1.split(['/', '?']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    host.strip_prefix('[')?.split_once(']').map(|(address, _)| address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_as_celery_reads_them() {
        let rows = [
            ("amqp://u:p%2Fw@h:1234/v", "h", 1234, "v"),
            ("amqp://h", "h", 5672, "/"),
            ("amqp://h/", "h", 5672, "/"),
            ("amqp://h//", "h", 5672, "/"),
            ("amqp://h/%2F", "h", 5672, "/"),
            ("amqps://h/a%20b", "h", 5671, "a b"),
            ("amqp://u:p@[::1]:1234/v", "::1", 1234, "v"),
        ];
        for (url, host, port, vhost) in rows {
            let uri = parse(url).expect(url);
            let found = (uri.authority.host.as_str(), uri.authority.port, uri.vhost.as_str());
            assert_eq!(found, (host, port, vhost), "{url}");
            assert_eq!(uri.query.heartbeat, Some(HEARTBEAT));
        }
        assert_eq!(parse("amqp://h?heartbeat=3").unwrap().query.heartbeat, Some(3));
        assert!(Link::new("amqp://u:secret@h:port", "").err().is_some_and(|error| error.is_permanent()));
    }
}
