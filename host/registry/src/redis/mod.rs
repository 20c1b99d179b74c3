//! The registry in a Redis database, beside the results.
//!
//! A deploy runs on a connection of its own: it watches the tenant's keys, decides, and commits in one
//! transaction that Redis drops if another deploy came between; then it decides anew. Components travel on such
//! connections too, so that a large one never holds up the commands of others. Nothing kept here expires but
//! workers; a Redis that evicts keys must not be given this to keep.

mod keys;
mod link;
mod watch;

use std::{collections::BTreeMap, time::Duration};

use ::redis::{Value, aio::MultiplexedConnection, pipe};
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync;

use self::{link::Link, watch::Watch};
use crate::{
    Deployment, Digest, Module, Registry, RegistryError, Version, WorkerStatus,
    connect::Tls,
    plan::{self, Owners, Plan, Standing},
    workers,
};

/// Somebody else's deploy succeeded each time that one of these did not.
const DEPLOY_ATTEMPTS: usize = 100;

/// Answers the living and forgets the dead in one step, so that one who comes back meanwhile is not forgotten.
const LIVING: &str = "
local living = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local status = redis.call('GET', ARGV[1] .. name)
  if status then
    living[#living + 1] = status
  else
    redis.call('SREM', KEYS[1], name)
  end
end
return living
";

/// Modules, kept in Redis.
pub struct RedisRegistry {
    link: Link,
    watch: Watch,
    worker_lifetime: Duration,
}

impl RedisRegistry {
    /// # Errors
    /// For a URL that is none of Redis's, and when the server is down or refuses.
    pub async fn connect(url: &str, worker_lifetime: Duration, tls: &Tls) -> Result<Self, RegistryError> {
        let link = Link::connect(url, tls).await?;
        let watch = Watch::start(&link).await?;
        Ok(Self { link, watch, worker_lifetime })
    }

    /// What `deployment` meets, with its keys watched from now on.
    async fn standing(
        &self,
        deployment: &Deployment,
        connection: &mut MultiplexedConnection,
    ) -> Result<Standing, RegistryError> {
        let (tenant, module) = (&deployment.tenant, &deployment.module);
        let mut watch_and_read = pipe();
        watch_and_read.cmd("WATCH").arg(keys::modules(tenant)).arg(keys::owners(tenant)).ignore();
        watch_and_read.hget(keys::modules(tenant), module).hgetall(keys::owners(tenant));
        watch_and_read.llen(keys::versions(tenant, module));
        let (current, owners, latest): (Option<u32>, Owners, u32) =
            self.link.ask_once(&watch_and_read, connection).await?;
        let current = match current {
            Some(number) => {
                let mut read = pipe();
                read.cmd("LINDEX").arg(keys::versions(tenant, module)).arg(place(number));
                let (text,): (Option<String>,) = self.link.ask_once(&read, connection).await?;
                Some(plan::decode(tenant, module, &text.unwrap_or_default())?)
            }
            None => None,
        };
        Ok(Standing { current, latest, owners })
    }

    /// Answers whether the plan was carried out; it was not if another deploy came before it.
    async fn commit(
        &self,
        plan: &Plan,
        component: Option<&Bytes>,
        connection: &mut MultiplexedConnection,
    ) -> Result<bool, RegistryError> {
        let Version { tenant, module, number, digest, .. } = &plan.version;
        let mut commit = pipe();
        commit.atomic();
        if let Some(component) = component {
            commit.set(keys::component(digest), &component[..]);
        }
        if plan.is_new {
            commit.rpush(keys::versions(tenant, module), plan::encode(&plan.version));
            commit.hset(keys::modules(tenant), module, *number);
        }
        for task in &plan.released {
            commit.hdel(keys::owners(tenant), task);
        }
        for task in &plan.claimed {
            commit.hset(keys::owners(tenant), task, module);
        }
        commit.incr(keys::REVISION, 1).publish(keys::CHANGES, tenant);
        let committed: Option<Value> = self.link.ask_once(&commit, connection).await?;
        Ok(committed.is_some())
    }

    /// The number of each module's current version, and who owns which task.
    async fn tenant(&self, tenant: &str) -> Result<(BTreeMap<String, u32>, Owners), RegistryError> {
        plan::check_name("tenant", tenant)?;
        let mut read = pipe();
        read.atomic().hgetall(keys::modules(tenant)).hgetall(keys::owners(tenant));
        self.link.ask(&read).await
    }
}

#[async_trait]
impl Registry for RedisRegistry {
    async fn deploy(&self, deployment: Deployment) -> Result<Version, RegistryError> {
        plan::check(&deployment)?;
        let digest = plan::digest_of(deployment.component.clone()).await;
        let is_kept = plan::is_kept(self.component(&digest).await)?;
        let missing = (!is_kept).then_some(&deployment.component);
        let mut connection = self.link.apart().await?;
        for _ in 0..DEPLOY_ATTEMPTS {
            let standing = self.standing(&deployment, &mut connection).await?;
            let plan = plan::plan(&deployment, digest, &standing, Timestamp::now())?;
            let is_done = is_kept && plan.changes_nothing();
            if is_done || self.commit(&plan, missing, &mut connection).await? {
                return Ok(plan.version);
            }
        }
        Err(RegistryError::Contended { module: deployment.module })
    }

    async fn modules(&self, tenant: &str) -> Result<Vec<Module>, RegistryError> {
        let (currents, _) = self.tenant(tenant).await?;
        let mut read = pipe();
        for name in currents.keys() {
            read.lrange(keys::versions(tenant, name), 0, -1);
        }
        let histories: Vec<Vec<String>> = self.link.ask(&read).await?;
        let decode = |((name, current), history): ((String, u32), Vec<String>)| {
            let versions = history.iter().map(|text| plan::decode(tenant, &name, text)).collect::<Result<_, _>>()?;
            Ok(Module { name, current, versions })
        };
        currents.into_iter().zip(histories).map(decode).collect()
    }

    async fn current(&self, tenant: &str) -> Result<Vec<Version>, RegistryError> {
        let (currents, owners) = self.tenant(tenant).await?;
        let mut read = pipe();
        for (name, number) in &currents {
            read.cmd("LINDEX").arg(keys::versions(tenant, name)).arg(place(*number));
        }
        let texts: Vec<Option<String>> = self.link.ask(&read).await?;
        let mut versions = Vec::with_capacity(texts.len());
        for (name, text) in currents.keys().zip(texts) {
            let version = plan::decode(tenant, name, &text.unwrap_or_default())?;
            versions.extend(plan::serving(version, &owners));
        }
        Ok(versions)
    }

    async fn component(&self, digest: &Digest) -> Result<Bytes, RegistryError> {
        let mut read = pipe();
        read.get(keys::component(digest));
        let mut connection = self.link.apart().await?;
        let (component,): (Option<Bytes>,) = self.link.ask_once(&read, &mut connection).await?;
        plan::verify(digest, component).await
    }

    fn changes(&self) -> sync::watch::Receiver<u64> {
        self.watch.changes()
    }

    async fn announce(&self, worker: &WorkerStatus) -> Result<(), RegistryError> {
        let status = workers::encode(worker)?;
        let lifetime = u64::try_from(self.worker_lifetime.as_millis()).unwrap_or(u64::MAX);
        let mut write = pipe();
        write.atomic().pset_ex(keys::worker(&worker.name), status, lifetime).ignore();
        write.sadd(keys::WORKERS, &worker.name).ignore();
        self.link.ask(&write).await
    }

    async fn retire(&self, worker: &str) -> Result<(), RegistryError> {
        let mut write = pipe();
        write.atomic().del(keys::worker(worker)).ignore().srem(keys::WORKERS, worker).ignore();
        self.link.ask(&write).await
    }

    async fn workers(&self) -> Result<Vec<WorkerStatus>, RegistryError> {
        let mut read = pipe();
        read.cmd("EVAL").arg(LIVING).arg(1).arg(keys::WORKERS).arg(keys::worker(""));
        let (living,) = self.link.ask(&read).await?;
        Ok(workers::decode(living))
    }
}

/// Of a version in its module's list.
fn place(number: u32) -> i64 {
    i64::from(number) - 1
}
