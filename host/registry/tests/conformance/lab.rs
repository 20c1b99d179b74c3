//! A store to try, and things to put into it.

use std::time::Duration;

use bytes::Bytes;
use rtask_registry::{
    Deployment, Digest, Manifest, RegistryError, SharedRegistry, Version, connect, connect::connect_with,
};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

/// What is expected to happen happens within this, on the slowest machine.
const SOON: Duration = Duration::from_secs(30);
/// Between two looks at a condition that nobody signals.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Two connections to one store, and a tenant that is this test's alone.
pub struct Lab {
    pub registry: SharedRegistry,
    pub other: SharedRegistry,
    pub tenant: String,
    pub url: String,
    /// Where the file is, until the lab goes.
    pub folder: Option<TempDir>,
}

impl Lab {
    pub async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("rtask.db").display());
        Self::new(url, Some(folder)).await
    }

    pub async fn redis() -> Self {
        Self::new(redis_url(), None).await
    }

    async fn new(url: String, folder: Option<TempDir>) -> Self {
        Self {
            registry: connect(&url).await.unwrap(),
            other: connect(&url).await.unwrap(),
            tenant: unique("tenant"),
            url,
            folder,
        }
    }

    /// A connection whose workers expire after `lifetime`.
    pub async fn forgetting(&self, lifetime: Duration) -> SharedRegistry {
        connect_with(&self.url, lifetime).await.unwrap()
    }

    /// Bytes that no other test has.
    pub fn component(&self, component: &str) -> Bytes {
        Bytes::from(format!("{component} of {}", self.tenant))
    }

    /// A deployment for this lab's tenant.
    pub fn deployment(&self, module: &str, tasks: &[&str], component: &str) -> Deployment {
        Deployment {
            tenant: self.tenant.clone(),
            module: module.to_owned(),
            component: self.component(component),
            manifest: manifest(tasks),
            by: "ada".to_owned(),
            take_over: false,
        }
    }

    pub async fn deploy(&self, module: &str, tasks: &[&str], component: &str) -> Result<Version, RegistryError> {
        self.registry.deploy(self.deployment(module, tasks, component)).await
    }

    pub async fn take_over(&self, module: &str, tasks: &[&str], component: &str) -> Version {
        let deployment = Deployment { take_over: true, ..self.deployment(module, tasks, component) };
        self.registry.deploy(deployment).await.unwrap()
    }

    /// What is served: module, version and tasks, as the other connection sees it.
    pub async fn served(&self) -> Vec<(String, u32, Vec<String>)> {
        let names = |version: &Version| version.manifest.tasks.iter().map(|task| task.name.clone()).collect();
        let versions = self.other.current(&self.tenant).await.unwrap();
        versions.iter().map(|version| (version.module.clone(), version.number, names(version))).collect()
    }

    /// The numbers of a module's versions.
    pub async fn numbers(&self, module: &str) -> Vec<u32> {
        let modules = self.other.modules(&self.tenant).await.unwrap();
        let module = modules.into_iter().find(|found| found.name == module).unwrap();
        module.versions.iter().map(|version| version.number).collect()
    }

    /// Put other bytes, or none, in the place of a component.
    pub async fn replace_component(&self, digest: &Digest, component: Option<&[u8]>) {
        match self.url.strip_prefix("sqlite:") {
            Some(path) => crate::sqlite::replace_component(path, digest, component),
            None => crate::redis::replace_component(&self.url, digest, component).await,
        }
    }
}

/// `served` of one module.
pub fn row(module: &str, number: u32, tasks: &[&str]) -> (String, u32, Vec<String>) {
    (module.to_owned(), number, tasks.iter().map(|task| (*task).to_owned()).collect())
}

pub fn manifest(tasks: &[&str]) -> Manifest {
    let tasks: Vec<_> = tasks.iter().map(|name| json!({ "name": name })).collect();
    Manifest::parse(&json!({ "module": "m", "sdk": "test/1", "tasks": tasks }).to_string()).unwrap()
}

pub fn redis_url() -> String {
    std::env::var("RTASK_TEST_REDIS_URL").unwrap_or_else(|_| {
        panic!("this test needs a Redis and RTASK_TEST_REDIS_URL names none; run `cargo xtask test`, which starts it")
    })
}

pub fn unique(what: &str) -> String {
    format!("{what}-{}", uuid::Uuid::new_v4())
}

/// What a future that ends soon answers.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("it takes too long")
}

/// Ask until it is so.
pub async fn until(condition: impl AsyncFn() -> bool) {
    soon(async {
        while !condition().await {
            sleep(LOOK_AGAIN).await;
        }
    })
    .await;
}
