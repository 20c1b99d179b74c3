//! How servers are reached, beside their URLs.

use std::{fmt, path::PathBuf, str::FromStr};

use rtask_broker::{Patience, Tls, Transport};
use serde::{Deserialize, Serialize};

use super::{
    Seconds, Settings, SettingsError,
    units::{listed, value},
};

/// `broker_use_ssl` and `redis_backend_use_ssl`: PEM files, with the names that Celery takes from Python's `ssl`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsFiles {
    /// Certificate authorities; without it, those of the system.
    pub ca_certs: Option<PathBuf>,
    /// The client's certificate, with the chain above it.
    pub certfile: Option<PathBuf>,
    /// Its key.
    pub keyfile: Option<PathBuf>,
}

/// `broker_transport_options`, as kombu's Redis transport knows them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrokerOptions {
    /// When the messages of a worker that has not been heard of go back to their queue.
    pub visibility_timeout: Seconds,
    /// Before every key.
    #[serde(deserialize_with = "value")]
    pub global_keyprefix: String,
    /// The priorities that are told apart.
    #[serde(deserialize_with = "listed")]
    pub priority_steps: PrioritySteps,
    /// Which of their masters is asked of Redis's sentinels.
    pub master_name: Option<String>,
}

/// `result_backend_transport_options`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BackendOptions {
    /// Before every key.
    #[serde(deserialize_with = "value")]
    pub global_keyprefix: String,
    /// Which of their masters is asked of Redis's sentinels.
    pub master_name: Option<String>,
}

impl Default for BrokerOptions {
    fn default() -> Self {
        let Transport { visibility_timeout, key_prefix, priority_steps, .. } = Transport::default();
        Self {
            visibility_timeout: visibility_timeout.into(),
            global_keyprefix: key_prefix,
            priority_steps: PrioritySteps(priority_steps),
            master_name: None,
        }
    }
}

impl Settings {
    /// # Errors
    /// For a certificate without a key, a key without a certificate, and messages that nobody may hold for any time.
    pub fn broker_transport(&self, patience: Patience) -> Result<Transport, SettingsError> {
        let BrokerOptions { visibility_timeout, global_keyprefix, priority_steps, master_name } =
            &self.broker_transport_options;
        let Some(visibility_timeout) = visibility_timeout.limit() else {
            return Err(SettingsError::invalid("broker_transport_options.visibility_timeout", "it must be above 0"));
        };
        Ok(Transport {
            patience,
            tls: self.broker_use_ssl.tls("broker_use_ssl")?,
            key_prefix: global_keyprefix.clone(),
            visibility_timeout,
            priority_steps: priority_steps.0.clone(),
            master_name: master_name.clone(),
        })
    }

    /// Of the result backend, and of the ledger beside it.
    ///
    /// # Errors
    /// For a certificate without a key, and a key without a certificate.
    pub fn backend_transport(&self, patience: Patience) -> Result<Transport, SettingsError> {
        let BackendOptions { global_keyprefix, master_name } = &self.result_backend_transport_options;
        Ok(Transport {
            patience,
            tls: self.redis_backend_use_ssl.tls("redis_backend_use_ssl")?,
            key_prefix: global_keyprefix.clone(),
            master_name: master_name.clone(),
            ..Transport::default()
        })
    }
}

impl Settings {
    /// The registry's: it follows the result backend.
    ///
    /// # Errors
    /// For a certificate without a key, and a key without a certificate.
    pub fn registry_tls(&self) -> Result<rtask_registry::Tls, SettingsError> {
        let Tls { ca, identity } = self.redis_backend_use_ssl.tls("redis_backend_use_ssl")?;
        Ok(rtask_registry::Tls { ca, identity })
    }
}

impl TlsFiles {
    fn tls(&self, setting: &str) -> Result<Tls, SettingsError> {
        let identity = match (&self.certfile, &self.keyfile) {
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            (None, None) => None,
            (Some(_), None) => return Err(SettingsError::invalid(setting, "`certfile` needs its `keyfile`")),
            (None, Some(_)) => return Err(SettingsError::invalid(setting, "`keyfile` needs its `certfile`")),
        };
        Ok(Tls { ca: self.ca_certs.clone(), identity })
    }

    /// Every file that is named.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.ca_certs, &self.certfile, &self.keyfile].into_iter().flatten()
    }
}

/// Priorities, ascending and beginning with 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrioritySteps(Vec<u8>);

#[derive(Debug, thiserror::Error)]
#[error("it is no list of priorities; write ascending numbers below 256 that begin with 0, such as `0,3,6,9`")]
pub struct NotPrioritySteps;

impl FromStr for PrioritySteps {
    type Err = NotPrioritySteps;

    fn from_str(text: &str) -> Result<Self, NotPrioritySteps> {
        let steps: Result<Vec<u8>, _> = text.split(',').map(|step| step.trim().parse()).collect();
        let steps = steps.map_err(|_| NotPrioritySteps)?;
        // The lowest one takes what has no priority.
        let is_right = steps.first() == Some(&0) && steps.is_sorted_by(|one, next| one < next);
        is_right.then_some(Self(steps)).ok_or(NotPrioritySteps)
    }
}

impl fmt::Display for PrioritySteps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: Vec<String> = self.0.iter().map(u8::to_string).collect();
        f.write_str(&steps.join(","))
    }
}

impl Serialize for PrioritySteps {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_certificate_and_its_key_go_together() {
        let file = |name: &str| Some(PathBuf::from(name));
        let files = |ca_certs, certfile, keyfile| TlsFiles { ca_certs, certfile, keyfile }.tls("broker_use_ssl");
        assert_eq!(files(None, None, None).unwrap(), Tls::default());
        let both = files(file("ca"), file("cert"), file("key")).unwrap();
        assert_eq!((both.ca, both.identity), (file("ca"), Some(("cert".into(), "key".into()))));
        for (certificate, key, missing) in [(file("c"), None, "`keyfile`"), (None, file("k"), "`certfile`")] {
            let error = files(None, certificate, key).unwrap_err().to_string();
            assert!(error.contains("broker_use_ssl") && error.contains(missing), "{error}");
        }
    }

    #[test]
    fn priority_steps_ascend_from_0() {
        assert_eq!("0, 3,6".parse::<PrioritySteps>().unwrap(), PrioritySteps(vec![0, 3, 6]));
        for text in ["", "1,2", "0,3,3", "0,9,3", "0,256", "low,high"] {
            assert!(text.parse::<PrioritySteps>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_set_reaches_the_transport() {
        let mut settings = Settings::default();
        settings.broker_transport_options.visibility_timeout = Seconds(Duration::from_secs(10));
        settings.broker_transport_options.global_keyprefix = "b-".to_owned();
        settings.result_backend_transport_options.global_keyprefix = "r-".to_owned();
        settings.redis_backend_use_ssl.ca_certs = Some("ca.pem".into());
        let broker = settings.broker_transport(Patience::FailFast).unwrap();
        assert_eq!((broker.visibility_timeout.as_secs(), broker.key_prefix.as_str()), (10, "b-"));
        assert_eq!((broker.patience, broker.tls), (Patience::FailFast, Tls::default()));
        let backend = settings.backend_transport(Patience::Forever).unwrap();
        assert_eq!((backend.key_prefix.as_str(), backend.tls.ca), ("r-", Some("ca.pem".into())));
        settings.broker_transport_options.visibility_timeout = Seconds(Duration::ZERO);
        assert!(settings.broker_transport(Patience::FailFast).is_err());
    }
}
