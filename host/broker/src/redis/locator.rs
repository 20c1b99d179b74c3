//! What a URL says of where a Redis is, as kombu and Celery read it (`kombu/utils/url.py`, `kombu/connection.py`).
//!
//! - `redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]`, and `rediss://` for TLS
//! - `redis+socket://[USER:PASSWORD@]/PATH[?virtual_host=DATABASE]`
//! - `sentinel://[USER:PASSWORD@]HOST[:PORT][/DATABASE]?master_name=NAME`; user and password are the master's, and what
//!   the sentinels themselves ask for is `sentinel_username` and `sentinel_password`
//!
//! Several are parted by `;`. kombu has no transport for Redis Cluster, whose servers refuse what touches several queues
//! in one step, so there is none here.

use std::{path::PathBuf, time::Duration};

use redis::RedisConnectionInfo;
use url::form_urlencoded;

use crate::{BrokerError, Transport, error::without_password};

/// The schemes of a URL that leads to a Redis, for messages.
pub(crate) const SCHEMES: &str = "redis://, rediss://, redis+socket:// or sentinel://";
const PORT: u16 = 6379;
pub(super) const SENTINEL_PORT: u16 = 26379;

#[derive(Debug)]
pub(super) struct Server {
    pub place: Place,
    pub login: RedisConnectionInfo,
}

#[derive(Debug, PartialEq)]
pub(super) enum Place {
    Plain { host: String, port: u16 },
    Tls { host: String, port: u16 },
    Socket(PathBuf),
}

/// Whether a URL is to be read here, if only to say what is wrong with it.
pub(crate) fn is_redis(scheme: &str) -> bool {
    scheme.starts_with("redis") || scheme == "sentinel"
}

/// One URL, taken apart as kombu does it.
#[derive(Debug)]
pub(super) struct Locator {
    pub scheme: String,
    user: Option<String>,
    password: Option<String>,
    host: Option<String>,
    pub port: Option<u16>,
    /// Without the slash that begins it.
    pub path: String,
    /// With the question mark that begins it.
    pub query: Option<String>,
}

impl Locator {
    pub fn read(url: &str) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| format!("it must begin with {SCHEMES}"))?;
        match scheme {
            "redis" | "rediss" | "redis+socket" | "sentinel" => {}
            cluster if cluster.contains("cluster") => {
                return Err("a Redis Cluster is not supported, as it is not by kombu; name one server".to_owned());
            }
            _ => return Err(format!("it must begin with {SCHEMES}")),
        }
        let (rest, query) = match rest.find('?') {
            Some(start) => (&rest[..start], Some(rest[start..].to_owned())),
            None => (rest, None),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, place) =
            authority.rsplit_once('@').map_or((None, authority), |(login, place)| (Some(login), place));
        let (user, password) = login.map_or((None, None), |login| match login.split_once(':') {
            Some((user, password)) => (Some(user), Some(password)),
            None => (Some(login), None),
        });
        let (host, port) = host_and_port(place)?;
        let given = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(decoded).transpose();
        let parts = Self {
            scheme: scheme.to_owned(),
            user: given(user)?,
            password: given(password)?,
            host: given(host)?,
            port,
            path: decoded(path)?,
            query,
        };
        parts.check_options()?;
        Ok(parts)
    }

    pub fn options(&self) -> impl Iterator<Item = (String, String)> {
        let query = self.query.as_deref().unwrap_or_default().trim_start_matches('?');
        form_urlencoded::parse(query.as_bytes()).into_owned()
    }

    pub fn option(&self, name: &str) -> Option<String> {
        self.options().find(|(found, _)| found == name).map(|(_, value)| value)
    }

    /// Better refused than passed over: whoever wrote it relies on it.
    fn check_options(&self) -> Result<(), String> {
        for (name, _) in self.options() {
            let known = match name.as_str() {
                "visibility_timeout" | "global_keyprefix" | "priority_steps" => true,
                "master_name" | "sentinel_username" | "sentinel_password" => self.scheme == "sentinel",
                "virtual_host" => self.scheme == "redis+socket",
                name => name.starts_with("ssl_") && self.scheme != "redis+socket",
            };
            if !known {
                return Err(format!("`{name}` in its query means nothing to {}://", self.scheme));
            }
        }
        Ok(())
    }

    pub fn server(&self, wants_tls: bool) -> Result<Server, String> {
        let (host, port) = (self.host_or_local(), self.port.unwrap_or(PORT));
        let (place, database) = match self.scheme.as_str() {
            "redis" if !wants_tls => (Place::Plain { host, port }, self.path.clone()),
            "redis" | "rediss" => (Place::Tls { host, port }, self.path.clone()),
            "redis+socket" if self.path.is_empty() => return Err("it names no socket".to_owned()),
            "redis+socket" => {
                let path = PathBuf::from(format!("/{}", self.path));
                (Place::Socket(path), self.option("virtual_host").unwrap_or_default())
            }
            other => return Err(format!("`{other}://` does not go together with {}", SCHEMES)),
        };
        Ok(Server { place, login: self.login(&database)? })
    }

    pub fn login(&self, database: &str) -> Result<RedisConnectionInfo, String> {
        let number = match database.trim_matches('/') {
            "" => 0,
            number => number.parse::<u32>().map_err(|_| format!("a database is a number, not `{database}`"))?,
        };
        let mut login = RedisConnectionInfo::default().set_db(number.into());
        if let Some(user) = &self.user {
            login = login.set_username(user);
        }
        if let Some(password) = &self.password {
            login = login.set_password(password);
        }
        Ok(login)
    }

    pub fn host_or_local(&self) -> String {
        self.host.clone().unwrap_or_else(|| "127.0.0.1".to_owned())
    }
}

fn host_and_port(place: &str) -> Result<(Option<&str>, Option<u16>), String> {
    let (host, port) = match place.strip_prefix('[').and_then(|place| place.split_once(']')) {
        Some((address, rest)) => (address, rest.strip_prefix(':')),
        None => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
    };
    let port = port.filter(|port| !port.is_empty());
    let port = port.map(|port| port.parse().map_err(|_| format!("`{port}` is no port"))).transpose()?;
    Ok((Some(host), port))
}

/// Without its percent-encoding.
fn decoded(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.get(..2).filter(|_| byte == b'%').and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| "what it encodes is no UTF-8".to_owned())
}

/// What the query of `url` says of `transport`.
///
/// # Errors
/// [`BrokerError::Address`] for a value that is none.
pub(crate) fn with_query(url: &str, mut transport: Transport) -> Result<Transport, BrokerError> {
    let wrong = |reason: String| BrokerError::Address { url: without_password(url), of: "Redis", reason };
    let first = Locator::read(url.split(';').next().unwrap_or_default()).map_err(wrong)?;
    if let Some(prefix) = first.option("global_keyprefix") {
        transport.key_prefix = prefix;
    }
    if let Some(seconds) = first.option("visibility_timeout") {
        let timeout = seconds.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let timeout = timeout.filter(|timeout| !timeout.is_zero());
        transport.visibility_timeout =
            timeout.ok_or_else(|| wrong(format!("`visibility_timeout` is `{seconds}`; write seconds above 0")))?;
    }
    if let Some(steps) = first.option("priority_steps") {
        let parsed: Result<Vec<u8>, _> =
            steps.trim_matches(['[', ']']).split(',').map(|step| step.trim().parse()).collect();
        let ascending = parsed.ok().filter(|steps| steps.is_sorted_by(|one, next| one < next));
        transport.priority_steps =
            ascending.ok_or_else(|| wrong(format!("`priority_steps` is `{steps}`; write such as `0,3,6,9`")))?;
    }
    Ok(transport)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_goes_before_the_settings() {
        let url = "redis://h?visibility_timeout=2.5&global_keyprefix=p-&priority_steps=0,5";
        let transport = with_query(url, Transport::default()).unwrap();
        assert_eq!(transport.visibility_timeout, Duration::from_millis(2_500));
        assert_eq!((transport.key_prefix.as_str(), transport.priority_steps), ("p-", vec![0, 5]));
        for query in ["visibility_timeout=0", "visibility_timeout=soon", "priority_steps=", "priority_steps=3,3"] {
            assert!(with_query(&format!("redis://h?{query}"), Transport::default()).is_err(), "{query}");
        }
    }
}
