//! Modules and their versions: what is deployed, and which live workers are ready to run it.
//!
//! A module is a component with a name in a tenant; each deploy makes an immutable, numbered version of it, of
//! which one is current. Nothing here compiles, runs or even parses wasm, and nothing here carries tasks.
//!
//! Read [`manifest`] first (what a module says of itself), then [`module`], then the trait below. The rooms are
//! [`redis`] and [`sqlite`]; one conformance suite, tests/conformance.rs, holds for both.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

pub mod connect;
pub mod error;
pub mod manifest;
pub mod module;
mod plan;
pub mod redis;
pub mod sqlite;
mod workers;

pub use connect::{Tls, connect, connect_over_tls};
pub use error::RegistryError;
pub use manifest::Manifest;
pub use module::{Deployment, Digest, Module, Version, WorkerStatus};

/// The tenant of those who never named one.
pub const DEFAULT_TENANT: &str = "default";

/// How long a worker counts as alive after its last [`Registry::announce`].
pub const WORKER_LIFETIME: Duration = Duration::from_secs(10);

/// The largest component that is kept, in bytes.
pub const MAX_COMPONENT: usize = 64 << 20;

/// Keeps modules. All of it is shared by every worker and every `rtask` command that names the same store.
#[async_trait]
pub trait Registry: Send + Sync {
    /// Store a new version and make it current, in one step. The same bytes and manifest as the current version
    /// again are answered with that version, and nothing changes, unless something was amiss: a damaged component
    /// is replaced, and lost task names are claimed again.
    ///
    /// # Errors
    /// [`RegistryError::NameTaken`] if another module of the tenant has a task of the same name, unless it is to be
    /// taken over; nothing is stored on any error. After [`RegistryError::Unreachable`] it may have been stored;
    /// deploying again is safe, and tells.
    async fn deploy(&self, deployment: Deployment) -> Result<Version, RegistryError>;

    /// Every module of a tenant, by name, with all of its versions as they were deployed.
    ///
    /// # Errors
    /// When the store cannot be reached; so for all below.
    async fn modules(&self, tenant: &str) -> Result<Vec<Module>, RegistryError>;

    /// What a worker serves: the current version of every module of a tenant, by name. Its manifest has only those
    /// tasks whose names the module still owns, so that each name is in one version; a module that has lost all of
    /// its names to others is left out.
    async fn current(&self, tenant: &str) -> Result<Vec<Version>, RegistryError>;

    /// The component of a version, checked against its digest.
    ///
    /// # Errors
    /// Also [`RegistryError::UnknownDigest`] and [`RegistryError::Damaged`].
    async fn component(&self, digest: &Digest) -> Result<Bytes, RegistryError>;

    /// A counter that grows whenever something was deployed by anyone, or might have been. At most a second late.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Say that a worker is alive and what it is ready to run; to be repeated well within [`WORKER_LIFETIME`].
    async fn announce(&self, worker: &WorkerStatus) -> Result<(), RegistryError>;

    /// Say that a worker is gone.
    async fn retire(&self, worker: &str) -> Result<(), RegistryError>;

    /// The workers that are alive.
    async fn workers(&self) -> Result<Vec<WorkerStatus>, RegistryError>;
}

/// The port as it is passed about.
pub type SharedRegistry = Arc<dyn Registry>;
