//! Where things are in Redis. Names of tenants and modules hold no `:`, so no two keys meet.

use crate::Digest;

/// A counter of deploys, over all tenants.
pub(super) const REVISION: &str = "rtask:registry:revision";
/// Every deploy is published here after its commit; the message says whose it was, for people who listen.
pub(super) const CHANGES: &str = "rtask:registry:changes";
/// The set of the names of workers, of which some may be dead.
pub(super) const WORKERS: &str = "rtask:registry:workers";

/// A hash from a module's name to the number of its current version.
pub(super) fn modules(tenant: &str) -> String {
    format!("rtask:registry:tenant:{tenant}:modules")
}

/// A hash from a task's name to the module that owns it.
pub(super) fn owners(tenant: &str) -> String {
    format!("rtask:registry:tenant:{tenant}:owners")
}

/// A list of versions as JSON; number n is at n - 1.
pub(super) fn versions(tenant: &str, module: &str) -> String {
    format!("rtask:registry:tenant:{tenant}:versions:{module}")
}

pub(super) fn component(digest: &Digest) -> String {
    format!("rtask:registry:component:{digest}")
}

/// A worker's status, for as long as it lives.
pub(super) fn worker(name: &str) -> String {
    format!("rtask:registry:worker:{name}")
}
