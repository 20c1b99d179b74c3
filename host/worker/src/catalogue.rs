//! The deployed modules, loaded: which task name leads to which component in which runner.
//!
//! [`Keeper`] follows the registry and the runner process; tasks only ever read [`Catalogue`], whose content is
//! swapped as a whole, so that a deploy takes effect between two tasks.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rtask_broker::backoff::Backoff;
use rtask_registry::{Digest, Version, WorkerStatus, manifest::TaskSpec, module::Readiness};
use rtask_sandbox::{Code, ComponentId, Runner, RunnerError};

use crate::{Options, Ports, WorkerError};

/// How often a worker says that it is alive; well within the registry's `WORKER_LIFETIME`.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(3);

/// Everything that a run needs to know of its task's module.
#[derive(Debug)]
pub(crate) struct Route {
    pub spec: TaskSpec,
    pub version: Arc<Version>,
    pub component: Arc<ComponentId>,
    pub runner: Arc<Runner>,
}

/// The routes of this moment.
#[derive(Debug, Default)]
pub(crate) struct Catalogue(RwLock<Arc<HashMap<String, Arc<Route>>>>);

impl Catalogue {
    pub(crate) fn route(&self, task: &str) -> Option<Arc<Route>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(task).cloned()
    }

    fn replace(&self, routes: HashMap<String, Arc<Route>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(routes);
    }
}

/// A version whose code is in the runner.
struct Loaded {
    version: Arc<Version>,
    code: Code,
    component: Arc<ComponentId>,
}

/// Keeps a catalogue true.
pub(crate) struct Keeper {
    catalogue: Arc<Catalogue>,
    ports: Ports,
    name: String,
    tenant: String,
    runner: Arc<Runner>,
    /// By module name.
    loaded: HashMap<String, Loaded>,
    modules: BTreeMap<Digest, Readiness>,
}

impl Keeper {
    /// Load what is deployed now. A module that cannot be loaded is left out and reported, not fatal.
    ///
    /// # Errors
    /// When there is no runner or no registry.
    pub(crate) async fn open(options: &Options, ports: &Ports) -> Result<Self, WorkerError> {
        let mut keeper = Self {
            catalogue: Arc::default(),
            ports: ports.clone(),
            name: options.name.clone(),
            tenant: options.tenant.clone(),
            runner: Arc::new(ports.sandbox.runner().await?),
            loaded: HashMap::new(),
            modules: BTreeMap::new(),
        };
        let versions = ports.registry.current(&keeper.tenant).await?;
        keeper.follow(versions).await;
        keeper.announce().await;
        Ok(keeper)
    }

    pub(crate) fn catalogue(&self) -> Arc<Catalogue> {
        self.catalogue.clone()
    }

    /// For as long as the worker lives.
    pub(crate) async fn run(mut self) {
        let mut changes = self.ports.registry.changes();
        let mut announce = tokio::time::interval(ANNOUNCE_EVERY);
        announce.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let runner = self.runner.clone();
            tokio::select! {
                reason = runner.ended() => self.replace_runner(&reason).await,
                Ok(()) = changes.changed() => self.refresh().await,
                _ = announce.tick() => {}
            }
            self.announce().await;
        }
    }

    async fn refresh(&mut self) {
        match self.ports.registry.current(&self.tenant).await {
            Ok(versions) => self.follow(versions).await,
            Err(error) => tracing::warn!(%error, "the registry could not be read; the modules stay as they are"),
        }
    }

    /// Load what is new, forget what is gone. Tasks that run keep the version on which they began, since they
    /// hold its route.
    async fn follow(&mut self, versions: Vec<Version>) {
        self.modules.retain(|digest, _| versions.iter().any(|version| version.digest == *digest));
        self.loaded.retain(|module, _| versions.iter().any(|version| version.module == *module));
        for version in versions {
            let module = version.module.clone();
            let known = self.loaded.get_mut(&module).filter(|loaded| loaded.version.digest == version.digest);
            if let Some(loaded) = known {
                // The same code under other names, after another module took one over.
                loaded.version = Arc::new(version);
                continue;
            }
            self.load(version).await;
        }
        self.publish();
    }

    async fn load(&mut self, version: Version) {
        let (digest, module, number) = (version.digest, version.module.clone(), version.number);
        self.modules.insert(digest, Readiness::Compiling);
        self.announce().await;
        let readiness = match self.prepare(version).await {
            Ok(loaded) => {
                tracing::info!(module, version = number, "module loaded");
                self.loaded.insert(module, loaded);
                Readiness::Ready
            }
            // The version before goes on being served.
            Err(reason) => {
                tracing::error!(module, version = number, reason, "module not loaded");
                Readiness::Failed(reason)
            }
        };
        self.modules.insert(digest, readiness);
    }

    async fn prepare(&self, version: Version) -> Result<Loaded, String> {
        let component = self.ports.registry.component(&version.digest).await.map_err(|error| error.to_string())?;
        let code = self.ports.sandbox.compile(&component).await.map_err(|error| error.to_string())?;
        let component = self.runner.load(&code).await.map_err(|error| error.to_string())?;
        Ok(Loaded { version: Arc::new(version), code, component: Arc::new(component) })
    }

    fn publish(&self) {
        let route = |loaded: &Loaded, spec: &TaskSpec| Route {
            spec: spec.clone(),
            version: loaded.version.clone(),
            component: loaded.component.clone(),
            runner: self.runner.clone(),
        };
        let routes = self.loaded.values().flat_map(|loaded| {
            let specs = loaded.version.manifest.tasks.iter();
            specs.map(|spec| (spec.name.clone(), Arc::new(route(loaded, spec))))
        });
        self.catalogue.replace(routes.collect());
    }

    /// Only tasks that ran in it are lost with a runner; their messages bring them back.
    async fn replace_runner(&mut self, reason: &str) {
        tracing::error!(reason, "a runner process was lost; starting another");
        self.runner = Arc::new(self.start_runner().await);
        let mut again = HashMap::new();
        for (module, loaded) in self.loaded.drain() {
            match self.runner.load(&loaded.code).await {
                Ok(component) => {
                    again.insert(module, Loaded { component: Arc::new(component), ..loaded });
                }
                Err(error) => {
                    tracing::error!(module, %error, "module not loaded again");
                    self.modules.insert(loaded.version.digest, Readiness::Failed(error.to_string()));
                }
            }
        }
        self.loaded = again;
        self.publish();
    }

    async fn start_runner(&self) -> Runner {
        let mut backoff = Backoff::default();
        loop {
            match self.ports.sandbox.runner().await {
                Ok(runner) => return runner,
                Err(error @ RunnerError::NotStarted(_)) => tracing::error!(%error, "trying again"),
            }
            backoff.wait().await;
        }
    }

    async fn announce(&self) {
        let status =
            WorkerStatus { name: self.name.clone(), tenants: vec![self.tenant.clone()], modules: self.modules.clone() };
        if let Err(error) = self.ports.registry.announce(&status).await {
            tracing::warn!(%error, "the registry could not be told that this worker is alive");
        }
    }
}
