//! How to get to a Redis: of several servers the first that can be reached, or the master that a sentinel names.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, ProtocolVersion,
    RedisConnectionInfo, RedisError, RedisResult, TlsCertificates, io::tcp::TcpSettings,
};
use tokio::time::timeout;

use super::{
    failure,
    locator::{Locator, Place, SENTINEL_PORT, Server},
};
use crate::{BrokerError, Tls, Transport, connect::CONNECT_WITHIN, error::without_password};

/// However many servers are tried within [`CONNECT_WITHIN`], each gets at least so long.
const SHORTEST_ATTEMPT: Duration = Duration::from_secs(1);

/// One Redis, behind one or several addresses.
#[derive(Clone)]
pub(super) struct Address {
    way: Arc<Way>,
    tls: Tls,
    /// Without passwords.
    url: String,
}

enum Way {
    /// The number is of the server that was reached last.
    Servers(Vec<Server>, AtomicUsize),
    Sentinels {
        sentinels: Vec<Server>,
        master_name: String,
        master: RedisConnectionInfo,
        tls: bool,
    },
}

impl Address {
    /// # Errors
    /// [`BrokerError::Address`], with what is wrong.
    pub fn parse(url: &str, transport: &Transport) -> Result<Self, BrokerError> {
        let parts = url.split(';').map(Locator::read).collect::<Result<Vec<_>, _>>();
        let address = parts.and_then(|parts| Self::of(parts, url, transport));
        address.map_err(|reason| BrokerError::Address { url: without_password(url), of: "Redis", reason })
    }

    fn of(parts: Vec<Locator>, url: &str, transport: &Transport) -> Result<Self, String> {
        let Some(first) = parts.first() else {
            return Err("it is empty".to_owned());
        };
        let tls = transport.tls.with_query(first.query.as_deref().unwrap_or_default())?;
        // As for kombu, whoever names certificates wants TLS, whatever the scheme.
        let wants_tls = tls.is_set() || first.options().any(|(name, _)| name.starts_with("ssl_"));
        let way = match first.scheme.as_str() {
            "sentinel" => sentinels(&parts, wants_tls, transport)?,
            _ => {
                let servers = parts.iter().map(|parts| parts.server(wants_tls)).collect::<Result<_, _>>()?;
                Way::Servers(servers, AtomicUsize::new(0))
            }
        };
        Ok(Self { way: Arc::new(way), tls, url: without_password(url) })
    }

    /// Fit for messages.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The number of the database, which is part of some channels' names.
    pub fn database(&self) -> i64 {
        match &*self.way {
            Way::Servers(servers, _) => servers.first().map_or(0, |server| server.login.db()),
            Way::Sentinels { master, .. } => master.db(),
        }
    }

    /// Open a connection of some kind to the first server that can be reached, in a single attempt.
    pub async fn connect<T, F>(&self, protocol: ProtocolVersion, open: impl Fn(Client) -> F) -> Result<T, BrokerError>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let connected = match &*self.way {
            Way::Servers(servers, last) => self.reach(servers, last, protocol, open).await,
            Way::Sentinels { sentinels, master_name, master, tls } => {
                let (host, port) = self.find_master(sentinels, master_name).await?;
                let place = if *tls { Place::Tls { host, port } } else { Place::Plain { host, port } };
                let master = Server { place, login: master.clone() };
                self.attempt(&master, protocol, CONNECT_WITHIN, &open).await
            }
        };
        connected.map_err(|error| failure::connecting(&self.url, &error))
    }

    async fn reach<T, F>(
        &self,
        servers: &[Server],
        last: &AtomicUsize,
        protocol: ProtocolVersion,
        open: impl Fn(Client) -> F,
    ) -> RedisResult<T>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let within = share(servers.len());
        let first = last.load(Ordering::Relaxed);
        let mut failure = None;
        for index in (first..servers.len()).chain(0..first.min(servers.len())) {
            match self.attempt(&servers[index], protocol, within, &open).await {
                Ok(connection) => {
                    last.store(index, Ordering::Relaxed);
                    return Ok(connection);
                }
                // The first one's, which is the one that was in use.
                Err(error) => _ = failure.get_or_insert(error),
            }
        }
        Err(failure.unwrap_or_else(|| invalid("it names no server")))
    }

    async fn attempt<T, F>(
        &self,
        server: &Server,
        protocol: ProtocolVersion,
        within: Duration,
        open: &impl Fn(Client) -> F,
    ) -> RedisResult<T>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let client = server.client(&self.tls, protocol)?;
        match timeout(within, open(client)).await {
            Ok(answer) => answer,
            Err(elapsed) => Err(std::io::Error::from(elapsed).into()),
        }
    }

    /// Ask the sentinels, one after the other, who the master is.
    async fn find_master(&self, sentinels: &[Server], master_name: &str) -> Result<(String, u16), BrokerError> {
        let ask = |client: Client| async move {
            let mut connection = client.get_multiplexed_async_connection().await?;
            let mut command = redis::cmd("SENTINEL");
            command.arg("GET-MASTER-ADDR-BY-NAME").arg(master_name);
            command.query_async::<Option<(String, u16)>>(&mut connection).await
        };
        let within = share(sentinels.len());
        let mut failure = None;
        for sentinel in sentinels {
            match self.attempt(sentinel, ProtocolVersion::RESP2, within, &ask).await {
                Ok(Some(master)) => return Ok(master),
                Ok(None) => {}
                Err(error) => _ = failure.get_or_insert(failure::connecting(&self.url, &error)),
            }
        }
        // A sentinel that has just started may come to know it.
        let reason = format!("no sentinel knows a master named `{master_name}`");
        Err(failure.unwrap_or(BrokerError::Unreachable { url: self.url.clone(), reason }))
    }
}

impl Server {
    /// The certificates are read anew for each connection, since they are renewed while a worker runs.
    fn client(&self, tls: &Tls, protocol: ProtocolVersion) -> RedisResult<Client> {
        let place = match &self.place {
            Place::Plain { host, port } => ConnectionAddr::Tcp(host.clone(), *port),
            Place::Tls { host, port } => {
                ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None }
            }
            Place::Socket(path) => ConnectionAddr::Unix(path.clone()),
        };
        let information: ConnectionInfo = place
            .into_connection_info()?
            .set_redis_settings(
                self.login.clone().set_protocol(protocol).set_lib_name("rtask", env!("CARGO_PKG_VERSION")),
            )
            // A lone command must not wait for company; the pipeline batches by itself.
            .set_tcp_settings(TcpSettings::default().set_nodelay(true));
        match &self.place {
            Place::Tls { .. } if tls.is_set() => {
                let pem = tls.read().map_err(|reason| invalid(&reason))?;
                let client_tls =
                    pem.identity.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
                Client::build_with_tls(information, TlsCertificates { client_tls, root_cert: pem.ca })
            }
            _ => Client::open(information),
        }
    }
}

fn invalid(reason: &str) -> RedisError {
    (ErrorKind::InvalidClientConfig, "it cannot be used", reason.to_owned()).into()
}

/// What one of `count` attempts may take.
fn share(count: usize) -> Duration {
    let count = u32::try_from(count.max(1)).unwrap_or(u32::MAX);
    (CONNECT_WITHIN / count).max(SHORTEST_ATTEMPT)
}

/// As kombu has it, TLS is to the master; sentinels are spoken to in plain, and told no password of the master's.
fn sentinels(parts: &[Locator], tls: bool, transport: &Transport) -> Result<Way, String> {
    let first = &parts[0];
    let master_name = first.option("master_name").or_else(|| transport.master_name.clone());
    let master_name =
        master_name.ok_or("which master is meant? Name it in `?master_name=` or the transport options")?;
    let mut login = RedisConnectionInfo::default();
    if let Some(user) = first.option("sentinel_username") {
        login = login.set_username(user);
    }
    if let Some(password) = first.option("sentinel_password") {
        login = login.set_password(password);
    }
    let sentinel = |parts: &Locator| match parts.scheme.as_str() {
        "sentinel" => {
            let place = Place::Plain { host: parts.host_or_local(), port: parts.port.unwrap_or(SENTINEL_PORT) };
            Ok(Server { place, login: login.clone() })
        }
        other => Err(format!("`{other}://` does not go together with sentinel://")),
    };
    let sentinels = parts.iter().map(sentinel).collect::<Result<_, _>>()?;
    Ok(Way::Sentinels { sentinels, master_name, master: first.login(&first.path)?, tls })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(url: &str) -> Vec<(Place, i64, Option<String>, Option<String>)> {
        let address = Address::parse(url, &Transport::default()).expect(url);
        let Way::Servers(servers, _) = &*address.way else { panic!("{url}") };
        let text = |text: Option<&str>| text.map(str::to_owned);
        let read = |server: &Server| match &server.place {
            Place::Plain { host, port } => Place::Plain { host: host.clone(), port: *port },
            Place::Tls { host, port } => Place::Tls { host: host.clone(), port: *port },
            Place::Socket(path) => Place::Socket(path.clone()),
        };
        let row = |server: &Server| {
            (read(server), server.login.db(), text(server.login.username()), text(server.login.password()))
        };
        servers.iter().map(row).collect()
    }

    fn plain(host: &str, port: u16) -> Place {
        Place::Plain { host: host.to_owned(), port }
    }

    #[test]
    fn urls_are_read_as_kombu_reads_them() {
        let text = |text: &str| Some(text.to_owned());
        let tls = || Place::Tls { host: "h".to_owned(), port: 6380 };
        let rows = [
            ("redis://", plain("127.0.0.1", 6379), 0, None, None),
            ("redis:///2", plain("127.0.0.1", 6379), 2, None, None),
            ("redis://h", plain("h", 6379), 0, None, None),
            ("redis://h:80//", plain("h", 80), 0, None, None),
            ("redis://:p%2Fw%40@h/3", plain("h", 6379), 3, None, text("p/w@")),
            ("redis://u:p:w@h:1/", plain("h", 1), 0, text("u"), text("p:w")),
            ("redis://u:p@[::1]:1/4", plain("::1", 1), 4, text("u"), text("p")),
            ("rediss://:p@h:6380/1?ssl_cert_reqs=required", tls(), 1, None, text("p")),
            ("redis://h:6380?ssl_cert_reqs=required", tls(), 0, None, None),
            ("redis+socket:///run/redis.sock?virtual_host=5", Place::Socket("/run/redis.sock".into()), 5, None, None),
            ("redis+socket://:p@/run/redis.sock", Place::Socket("/run/redis.sock".into()), 0, None, text("p")),
        ];
        for (url, place, database, user, password) in rows {
            assert_eq!(servers(url), [(place, database, user, password)], "{url}");
        }
    }

    #[test]
    fn a_list_is_several_servers_or_sentinels() {
        let places: Vec<_> =
            servers("redis://a;redis://b:1/1").into_iter().map(|server| (server.0, server.1)).collect();
        assert_eq!(places, [(plain("a", 6379), 0), (plain("b", 1), 1)]);
        let url = "sentinel://u:p@a/2?master_name=m&sentinel_password=s;sentinel://b:1";
        let address = Address::parse(url, &Transport::default()).unwrap();
        let Way::Sentinels { sentinels, master_name, master, tls: false } = &*address.way else { panic!() };
        assert_eq!((master_name.as_str(), master.db(), master.password()), ("m", 2, Some("p")));
        let places: Vec<_> = sentinels.iter().map(|sentinel| (&sentinel.place, sentinel.login.password())).collect();
        assert_eq!(places, [(&plain("a", SENTINEL_PORT), Some("s")), (&plain("b", 1), Some("s"))]);
        assert_eq!(address.database(), 2);
        let named = Transport { master_name: Some("m".to_owned()), ..Transport::default() };
        assert!(Address::parse("sentinel://a", &named).is_ok());
    }

    #[test]
    fn what_cannot_be_kept_is_refused_with_the_reason() {
        let rows = [
            ("redis://h/celery", "number"),
            ("redis://h:port", "`port`"),
            ("redis://h?socket_timeout=3", "`socket_timeout`"),
            ("redis+socket:///s?ssl_ca_certs=a", "`ssl_ca_certs`"),
            ("rediss://h?ssl_cert_reqs=CERT_NONE", "ssl_ca_certs"),
            ("rediss://h?ssl_certfile=c", "ssl_keyfile"),
            ("redis+socket://", "no socket"),
            ("redis+cluster://h", "Cluster"),
            ("sentinel://h", "master_name"),
            ("sentinel://h?master_name=m;redis://h", "redis://"),
            ("redis://h;nonsense", "sentinel://"),
        ];
        for (url, expected) in rows {
            let error = Address::parse(url, &Transport::default()).err().expect(url);
            assert!(error.is_permanent() && error.to_string().contains(expected), "{url}: {error}");
        }
    }
}
