//! What the registry keeps.

use std::{collections::BTreeMap, fmt, str::FromStr};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::Manifest;

/// The sha256 of a component.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    pub fn of(component: &[u8]) -> Self {
        Self(Sha256::digest(component).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A digest's text is `sha256:` and 64 hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no sha256 digest")]
pub struct NotADigest(String);

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let mut bytes = [0; 32];
        let digits = text.strip_prefix("sha256:").ok_or_else(|| NotADigest(text.to_owned()))?;
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| NotADigest(text.to_owned()))?;
        Ok(Self(bytes))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = NotADigest;

    fn try_from(text: String) -> Result<Self, NotADigest> {
        text.parse()
    }
}

/// A component that is to become a version.
#[derive(Clone, Debug)]
pub struct Deployment {
    pub tenant: String,
    /// The module's name.
    pub module: String,
    pub component: Bytes,
    pub manifest: Manifest,
    /// Who deploys: a login name, for people to read.
    pub by: String,
    /// Take task names over from the modules that have them now.
    pub take_over: bool,
}

/// One immutable version of a module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Version {
    pub tenant: String,
    pub module: String,
    /// 1 for a module's first.
    pub number: u32,
    pub digest: Digest,
    /// The component's size in bytes.
    pub size: u64,
    pub manifest: Manifest,
    pub deployed_at: Timestamp,
    pub deployed_by: String,
}

/// A module with its history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Module {
    pub name: String,
    /// The number of the current version.
    pub current: u32,
    /// Oldest first.
    pub versions: Vec<Version>,
}

/// What a live worker says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Node name, such as `celery@host`.
    pub name: String,
    pub tenants: Vec<String>,
    /// What became of each version that the worker has heard of.
    pub modules: BTreeMap<Digest, Readiness>,
}

/// Whether a worker can run a version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Readiness {
    Compiling,
    Ready,
    /// The reason, for people.
    Failed(String),
}
