//! Whom a URL and the settings say to trust over TLS, and who they say we are.

use std::{fs, path::Path};

use url::form_urlencoded;

use crate::Tls;

/// What begins so in a URL's query is about TLS (`kombu/utils/url.py`, `parse_url`).
const PREFIX: &str = "ssl_";

/// The files' contents, PEM.
#[derive(Debug)]
pub(crate) struct Pem {
    /// Certificate authorities; none for those of the system.
    pub ca: Option<Vec<u8>>,
    /// The client's certificate with the chain above it, and its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    /// Whether anything is asked for.
    pub(crate) fn is_set(&self) -> bool {
        *self != Self::default()
    }

    /// What `url`'s query says, by kombu's names, and what is said here of the rest.
    ///
    /// # Errors
    /// For a name that is not known, for what would make TLS worthless, and for half an identity.
    pub(crate) fn with_query(&self, url: &str) -> Result<Self, String> {
        let query = url.split_once('?').map_or("", |(_, query)| query);
        let (mut tls, mut certificate, mut key) = (self.clone(), None, None);
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match name.strip_prefix(PREFIX) {
                None => {}
                Some("ca_certs") => tls.ca = Some(value.as_ref().into()),
                Some("certfile") => certificate = Some(value.as_ref().into()),
                Some("keyfile") => key = Some(value.as_ref().into()),
                Some("cert_reqs") => check_requirement(&value)?,
                Some("check_hostname") if value != "false" && value != "False" => {}
                Some("check_hostname") => return Err(worthless("ssl_check_hostname=false")),
                Some(_) => return Err(format!("`{name}` in its query is not known")),
            }
        }
        match (certificate, key) {
            (None, None) => {}
            (Some(certificate), Some(key)) => tls.identity = Some((certificate, key)),
            _ => return Err("`ssl_certfile` and `ssl_keyfile` go together".to_owned()),
        }
        Ok(tls)
    }

    /// Read the files; anew for each connection, since certificates are renewed while a worker runs.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(crate) fn read(&self) -> Result<Pem, String> {
        let ca = self.ca.as_deref().map(read).transpose()?;
        let identity = match &self.identity {
            Some((certificate, key)) => Some((read(certificate)?, read(key)?)),
            None => None,
        };
        Ok(Pem { ca, identity })
    }
}

/// Python's `ssl.CERT_*`. A client that has been given a certificate, as every TLS client is, checks it under both.
fn check_requirement(value: &str) -> Result<(), String> {
    match value.strip_prefix("CERT_").unwrap_or(value).to_ascii_lowercase().as_str() {
        "required" | "optional" => Ok(()),
        "none" => Err(worthless(&format!("ssl_cert_reqs={value}"))),
        _ => Err(format!("`ssl_cert_reqs` is `{value}`; write CERT_REQUIRED")),
    }
}

fn worthless(asked: &str) -> String {
    format!("{asked} would let anybody read and change what is sent; name the server's authority in `ssl_ca_certs`")
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("failed to read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_goes_before_the_settings() {
        let settings = Tls { ca: Some("ca".into()), identity: Some(("c".into(), "k".into())) };
        let own =
            settings.with_query("amqps://h//?heartbeat=3&ssl_ca_certs=%2Fetc%2Fown.pem&ssl_cert_reqs=CERT_REQUIRED");
        assert_eq!(own.unwrap(), Tls { ca: Some("/etc/own.pem".into()), ..settings.clone() });
        let own = settings.with_query("rediss://h?ssl_certfile=c2&ssl_keyfile=k2&ssl_cert_reqs=required");
        assert_eq!(own.unwrap(), Tls { identity: Some(("c2".into(), "k2".into())), ..settings.clone() });
        assert_eq!(settings.with_query("amqps://h").unwrap(), settings);
        assert!(settings.is_set() && !Tls::default().is_set());
    }

    #[test]
    fn what_makes_tls_worthless_is_refused() {
        let rows = [
            ("ssl_cert_reqs=CERT_NONE", "ssl_ca_certs"),
            ("ssl_cert_reqs=none", "ssl_ca_certs"),
            ("ssl_cert_reqs=maybe", "CERT_REQUIRED"),
            ("ssl_check_hostname=false", "ssl_ca_certs"),
            ("ssl_certfile=c", "ssl_keyfile"),
            ("ssl_keyfile=k", "ssl_certfile"),
            ("ssl_ciphers=ALL", "`ssl_ciphers`"),
        ];
        for (query, reason) in rows {
            let refused = Tls::default().with_query(&format!("amqps://h/?{query}")).unwrap_err();
            assert!(refused.contains(reason), "{query}: {refused}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let tls = Tls { ca: Some("/no/such/ca.pem".into()), identity: None };
        assert!(tls.read().unwrap_err().contains("/no/such/ca.pem"));
    }
}
