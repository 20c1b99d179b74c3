//! The registry in a SQLite file, which may be the broker's and result backend's too.
//!
//! A deploy is one transaction that locks out other writers from its first look on. The times of workers are
//! those of the machine, which all who share a file have in common.

mod schema;
mod store;
mod watch;

use std::{path::PathBuf, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync;

use self::{
    store::{Failure, Store},
    watch::Watch,
};
use crate::{
    Deployment, Digest, Module, Registry, RegistryError, Version, WorkerStatus,
    plan::{self, Owners, Plan, Standing},
    workers,
};

/// Modules, kept in a file.
pub struct SqliteRegistry {
    store: Store,
    watch: Watch,
    worker_lifetime: Duration,
}

impl SqliteRegistry {
    /// Open the file, made with its folder if it does not exist, for its owner alone.
    ///
    /// # Errors
    /// When it cannot be opened, is no database, or was made by a newer rtask.
    pub async fn open(path: PathBuf, worker_lifetime: Duration) -> Result<Self, RegistryError> {
        let store = Store::open(path.clone()).await?;
        let watch = Watch::start(path).await?;
        Ok(Self { store, watch, worker_lifetime })
    }
}

#[async_trait]
impl Registry for SqliteRegistry {
    async fn deploy(&self, deployment: Deployment) -> Result<Version, RegistryError> {
        plan::check(&deployment)?;
        let digest = plan::digest_of(deployment.component.clone()).await;
        let is_kept = plan::is_kept(self.component(&digest).await)?;
        self.store
            .write(move |connection| {
                let standing = standing(&deployment, connection)?;
                let plan = plan::plan(&deployment, digest, &standing, Timestamp::now())?;
                if !is_kept {
                    put_component(&digest, &deployment.component, connection)?;
                }
                if !is_kept || !plan.changes_nothing() {
                    carry_out(&plan, connection)?;
                }
                Ok(plan.version)
            })
            .await
    }

    async fn modules(&self, tenant: &str) -> Result<Vec<Module>, RegistryError> {
        plan::check_name("tenant", tenant)?;
        let tenant = tenant.to_owned();
        self.store.read(move |connection| modules(&tenant, connection)).await
    }

    async fn current(&self, tenant: &str) -> Result<Vec<Version>, RegistryError> {
        plan::check_name("tenant", tenant)?;
        let tenant = tenant.to_owned();
        self.store
            .read(move |connection| {
                let owners = owners(&tenant, connection)?;
                let versions = currents(&tenant, connection)?;
                Ok(versions.into_iter().filter_map(|version| plan::serving(version, &owners)).collect())
            })
            .await
    }

    async fn component(&self, digest: &Digest) -> Result<Bytes, RegistryError> {
        let wanted = digest.to_string();
        let component = self
            .store
            .read(move |connection| {
                let mut select =
                    connection.prepare_cached("SELECT bytes FROM registry_components WHERE digest = ?1")?;
                Ok(select.query_row([wanted], |row| row.get::<_, Vec<u8>>(0)).optional()?)
            })
            .await?;
        plan::verify(digest, component.map(Bytes::from)).await
    }

    fn changes(&self) -> sync::watch::Receiver<u64> {
        self.watch.changes()
    }

    async fn announce(&self, worker: &WorkerStatus) -> Result<(), RegistryError> {
        let (name, status) = (worker.name.clone(), workers::encode(worker)?);
        let lifetime = i64::try_from(self.worker_lifetime.as_millis()).unwrap_or(i64::MAX);
        self.store
            .write(move |connection| {
                let now = Timestamp::now().as_millisecond();
                connection.execute("DELETE FROM registry_workers WHERE expires_at <= ?1", [now])?;
                connection.execute(
                    "INSERT OR REPLACE INTO registry_workers (name, status, expires_at) VALUES (?1, ?2, ?3)",
                    params![name, status, now.saturating_add(lifetime)],
                )?;
                Ok(())
            })
            .await
    }

    async fn retire(&self, worker: &str) -> Result<(), RegistryError> {
        let name = worker.to_owned();
        self.store
            .write(move |connection| {
                connection.execute("DELETE FROM registry_workers WHERE name = ?1", [name])?;
                Ok(())
            })
            .await
    }

    async fn workers(&self) -> Result<Vec<WorkerStatus>, RegistryError> {
        let texts = self.store.read(|connection| {
            let mut select = connection.prepare_cached("SELECT status FROM registry_workers WHERE expires_at > ?1")?;
            let texts = select.query_map([Timestamp::now().as_millisecond()], |row| row.get(0))?;
            Ok(texts.collect::<Result<_, _>>()?)
        });
        texts.await.map(workers::decode)
    }
}

fn standing(deployment: &Deployment, connection: &Connection) -> Result<Standing, Failure> {
    let (tenant, module) = (&deployment.tenant, &deployment.module);
    let latest = connection.query_row(
        "SELECT coalesce(max(number), 0) FROM registry_versions WHERE tenant = ?1 AND module = ?2",
        [tenant, module],
        |row| row.get(0),
    )?;
    let text: Option<String> = connection
        .query_row(
            "SELECT version FROM registry_versions JOIN registry_modules USING (tenant, module)
             WHERE tenant = ?1 AND module = ?2 AND number = current",
            [tenant, module],
            |row| row.get(0),
        )
        .optional()?;
    let current = text.map(|text| plan::decode(tenant, module, &text)).transpose()?;
    Ok(Standing { current, latest, owners: owners(tenant, connection)? })
}

fn put_component(digest: &Digest, component: &Bytes, connection: &Connection) -> Result<(), Failure> {
    connection.execute(
        "INSERT OR REPLACE INTO registry_components (digest, bytes) VALUES (?1, ?2)",
        params![digest.to_string(), &component[..]],
    )?;
    Ok(())
}

fn carry_out(plan: &Plan, connection: &Connection) -> Result<(), Failure> {
    let Version { tenant, module, number, .. } = &plan.version;
    if plan.is_new {
        connection.execute(
            "INSERT INTO registry_versions (tenant, module, number, version) VALUES (?1, ?2, ?3, ?4)",
            params![tenant, module, number, plan::encode(&plan.version)],
        )?;
        connection.execute(
            "INSERT OR REPLACE INTO registry_modules (tenant, module, current) VALUES (?1, ?2, ?3)",
            params![tenant, module, number],
        )?;
    }
    let mut release = connection.prepare_cached("DELETE FROM registry_owners WHERE tenant = ?1 AND task = ?2")?;
    for task in &plan.released {
        release.execute([tenant, task])?;
    }
    let mut claim = connection
        .prepare_cached("INSERT OR REPLACE INTO registry_owners (tenant, task, module) VALUES (?1, ?2, ?3)")?;
    for task in &plan.claimed {
        claim.execute([tenant, task, module])?;
    }
    connection.execute("UPDATE registry_revision SET revision = revision + 1", [])?;
    Ok(())
}

fn owners(tenant: &str, connection: &Connection) -> Result<Owners, Failure> {
    let mut select = connection.prepare_cached("SELECT task, module FROM registry_owners WHERE tenant = ?1")?;
    let owners = select.query_map([tenant], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(owners.collect::<Result<_, _>>()?)
}

fn currents(tenant: &str, connection: &Connection) -> Result<Vec<Version>, Failure> {
    let mut select = connection.prepare_cached(
        "SELECT module, version FROM registry_versions JOIN registry_modules USING (tenant, module)
         WHERE tenant = ?1 AND number = current ORDER BY module",
    )?;
    let mut rows = select.query([tenant])?;
    let mut versions = Vec::new();
    while let Some(row) = rows.next()? {
        let (module, text): (String, String) = (row.get(0)?, row.get(1)?);
        versions.push(plan::decode(tenant, &module, &text)?);
    }
    Ok(versions)
}

fn modules(tenant: &str, connection: &Connection) -> Result<Vec<Module>, Failure> {
    let mut select = connection.prepare_cached(
        "SELECT module, current, version FROM registry_versions JOIN registry_modules USING (tenant, module)
         WHERE tenant = ?1 ORDER BY module, number",
    )?;
    let mut rows = select.query([tenant])?;
    let mut modules: Vec<Module> = Vec::new();
    while let Some(row) = rows.next()? {
        let (name, current, text): (String, u32, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let version = plan::decode(tenant, &name, &text)?;
        match modules.last_mut().filter(|module| module.name == name) {
            Some(module) => module.versions.push(version),
            None => modules.push(Module { name, current, versions: vec![version] }),
        }
    }
    Ok(modules)
}
