//! Where a broker may be: one AMQP URL, or several of which any will do.

use std::sync::atomic::{AtomicUsize, Ordering};

use lapin::uri::{AMQPScheme, AMQPUri};
use url::form_urlencoded;

use crate::{BrokerError, Tls, error::without_password};

/// Between the URLs of a list (`kombu/connection.py`, `Connection`).
const SEPARATOR: char = ';';
/// Seconds. A peer is given up after twice this silence; RabbitMQ's own documentation recommends 5 to 20.
const HEARTBEAT: u16 = 15;
/// How kombu names lapin's `auth_mechanism` in a query.
const LOGIN_METHOD: &str = "login_method";

/// One of them.
#[derive(Debug)]
pub(super) struct Server {
    pub uri: AMQPUri,
    /// Without the password.
    pub url: String,
    /// Whom to trust there; none for a connection that anybody can read.
    pub tls: Option<Tls>,
}

/// All of them, and which one was reached last. Both connections of a broker look here, so that they meet at the
/// same server.
#[derive(Debug)]
pub(super) struct Servers {
    list: Vec<Server>,
    current: AtomicUsize,
}

impl Servers {
    /// `tls` holds where a URL's query says nothing; naming any file asks for TLS, as Celery's `broker_use_ssl` does.
    ///
    /// # Errors
    /// When one of `urls` is no AMQP URL, or its files cannot be read.
    pub fn parse(urls: &str, tls: &Tls) -> Result<Self, BrokerError> {
        let urls = urls.split(SEPARATOR).map(str::trim).filter(|url| !url.is_empty());
        let server = |url| {
            Server::parse(url, tls).map_err(|reason| {
                let url = without_password(url);
                BrokerError::Address { url, of: "broker", reason }
            })
        };
        let list = urls.map(server).collect::<Result<Vec<_>, _>>()?;
        if list.is_empty() {
            let reason = "it names no server".to_owned();
            return Err(BrokerError::Address { url: String::new(), of: "broker", reason });
        }
        Ok(Self { list, current: AtomicUsize::new(0) })
    }

    /// The one that was reached last, or is to be tried first.
    pub fn current(&self) -> &Server {
        &self.list[self.current.load(Ordering::Relaxed) % self.list.len()]
    }

    /// Every one, the current one first.
    pub fn in_turn(&self) -> impl ExactSizeIterator<Item = (usize, &Server)> {
        let (count, first) = (self.list.len(), self.current.load(Ordering::Relaxed));
        (0..count).map(move |step| ((first + step) % count, &self.list[(first + step) % count]))
    }

    pub fn reached(&self, index: usize) {
        self.current.store(index, Ordering::Relaxed);
    }
}

impl Server {
    fn parse(url: &str, tls: &Tls) -> Result<Self, String> {
        let mut uri: AMQPUri = url.parse()?;
        if uri.vhost.is_empty() {
            // `amqp://host/` is the default virtual host for Celery (kombu/utils/url.py).
            uri.vhost = "/".to_owned();
        }
        if let Some(address) = ipv6_address(url) {
            uri.authority.host = address.to_owned();
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        let query = url.split_once('?').map_or("", |(_, query)| query);
        for (_, method) in form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == LOGIN_METHOD) {
            uri.query.auth_mechanism = Some(method.parse()?);
        }
        let tls = tls.with_query(url)?;
        tls.read()?;
        let asks_for_tls = tls.is_set() || uri.scheme == AMQPScheme::AMQPS;
        Ok(Self { uri, url: without_password(url), tls: asks_for_tls.then_some(tls) })
    }
}

/// lapin takes an IPv6 address in brackets for no host at all, and falls back to localhost.
fn ipv6_address(url: &str) -> Option<&str> {
    let authority = url.split_once("://")?.1.split(['/', '?']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    host.strip_prefix('[')?.split_once(']').map(|(address, _)| address)
}

#[cfg(test)]
mod tests {
    use lapin::uri::SASLMechanism;

    use super::*;

    fn parse(urls: &str) -> Result<Servers, BrokerError> {
        Servers::parse(urls, &Tls::default())
    }

    fn hosts(servers: &Servers) -> Vec<&str> {
        servers.in_turn().map(|(_, server)| server.uri.authority.host.as_str()).collect()
    }

    #[test]
    fn urls_are_read_as_celery_reads_them() {
        let rows = [
            ("amqp://u:p%2Fw@h:1234/v", "h", 1234, "v", false),
            ("amqp://h", "h", 5672, "/", false),
            ("amqp://h/", "h", 5672, "/", false),
            ("amqp://h//", "h", 5672, "/", false),
            ("amqp://h/%2F", "h", 5672, "/", false),
            ("amqps://h/a%20b", "h", 5671, "a b", true),
            ("amqp://u:p@[::1]:1234/v", "::1", 1234, "v", false),
            ("amqp://h//?ssl_ca_certs=/dev/null", "h", 5672, "/", true),
        ];
        for (url, host, port, vhost, tls) in rows {
            let servers = parse(url).expect(url);
            let Server { uri, tls: with, .. } = servers.current();
            let found = (uri.authority.host.as_str(), uri.authority.port, uri.vhost.as_str(), with.is_some());
            assert_eq!(found, (host, port, vhost, tls), "{url}");
            assert_eq!(uri.query.heartbeat, Some(HEARTBEAT));
        }
        assert_eq!(parse("amqp://h?heartbeat=3").unwrap().current().uri.query.heartbeat, Some(3));
        let external = parse("amqps://h//?login_method=EXTERNAL").unwrap();
        assert_eq!(external.current().uri.query.auth_mechanism, Some(SASLMechanism::External));
    }

    #[test]
    fn what_is_no_address_is_refused_without_its_password() {
        let rows = [
            "amqp://u:secret@h:port",
            "amqp://h;amqp://u:secret@h:port",
            "amqp://h;redis://u:secret@h",
            "amqps://u:secret@h/?ssl_cert_reqs=CERT_NONE",
            "amqps://u:secret@h/?ssl_ca_certs=/no/such/file",
            "amqp://u:secret@h/?login_method=SMILE",
            " ; ",
        ];
        for urls in rows {
            let error = parse(urls).expect_err(urls);
            assert!(error.is_permanent() && !error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_list_is_tried_from_the_server_that_was_reached_last() {
        let servers = parse("amqp://a;amqp://b; amqp://c;").unwrap();
        assert_eq!(hosts(&servers), ["a", "b", "c"]);
        servers.reached(1);
        assert_eq!(hosts(&servers), ["b", "c", "a"]);
        assert_eq!(servers.current().url, "amqp://b");
    }
}
