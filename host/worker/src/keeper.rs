//! Keeps the catalogue true: follows the registry, loads what is new, replaces a runner that was lost.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use rtask_broker::backoff::Backoff;
use rtask_registry::{Digest, Version, WorkerStatus, module::Readiness};
use rtask_sandbox::{Code, CompileError, ComponentId, LoadError, Runner};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};

use crate::{
    Options, Ports, WorkerError,
    catalogue::{self, Catalogue, Destination, Route},
};

/// How often a worker says that it is alive; well within the registry's `WORKER_LIFETIME`.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(3);
/// How often a module that could not be loaded is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(30);

/// A component in the present runner.
struct Loaded {
    code: Code,
    component: Arc<ComponentId>,
}

/// What became of an attempt to load a component into a runner.
struct Prepared {
    digest: Digest,
    runner: Arc<Runner>,
    outcome: Result<Loaded, Failure>,
}

/// Why a component was not loaded.
enum Failure {
    /// Trying again may help.
    Passing(String),
    /// The component is the reason.
    Lasting(String),
}

pub(crate) struct Keeper {
    catalogue: Catalogue,
    routes: watch::Sender<Arc<HashMap<String, Destination>>>,
    ports: Ports,
    node: String,
    tenant: String,
    runner: Arc<Runner>,
    /// What the registry says should be served, by module.
    wanted: BTreeMap<String, Arc<Version>>,
    /// What is served, by module: the version before, until the wanted one is ready.
    served: HashMap<String, Arc<Version>>,
    loaded: HashMap<Digest, Loaded>,
    readiness: BTreeMap<Digest, Readiness>,
    /// Failed, and not to be tried again.
    hopeless: HashMap<Digest, Arc<str>>,
    preparing: JoinSet<Prepared>,
    /// Whether the registry has something that could not be read yet.
    stale: bool,
    restarts: Backoff,
    /// When the present runner was started.
    started: Instant,
}

impl Keeper {
    /// Load what is deployed now. A module that cannot be loaded is tried again later, and not fatal.
    ///
    /// # Errors
    /// When there is no registry, or no runner.
    pub(crate) async fn open(options: &Options, ports: &Ports) -> Result<Self, WorkerError> {
        let (routes, catalogue) = catalogue::catalogue();
        let mut keeper = Self {
            catalogue,
            routes,
            ports: ports.clone(),
            node: options.instance(),
            tenant: options.tenant.clone(),
            runner: Arc::new(ports.sandbox.runner().await?),
            wanted: BTreeMap::new(),
            served: HashMap::new(),
            loaded: HashMap::new(),
            readiness: BTreeMap::new(),
            hopeless: HashMap::new(),
            preparing: JoinSet::new(),
            stale: false,
            restarts: Backoff::default(),
            started: Instant::now(),
        };
        let versions = ports.registry.current(&keeper.tenant).await?;
        keeper.follow(versions);
        while let Some(prepared) = keeper.preparing.join_next().await {
            keeper.take(prepared);
        }
        keeper.announce().await;
        Ok(keeper)
    }

    pub(crate) fn catalogue(&self) -> Catalogue {
        self.catalogue.clone()
    }

    /// For as long as the worker lives.
    pub(crate) async fn run(mut self) {
        let mut changes = self.ports.registry.changes();
        let mut announce = tokio::time::interval(ANNOUNCE_EVERY);
        announce.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut retry = tokio::time::interval_at(Instant::now() + RETRY_EVERY, RETRY_EVERY);
        loop {
            let runner = self.runner.clone();
            tokio::select! {
                reason = runner.ended() => self.replace_runner(&reason).await,
                Some(prepared) = self.preparing.join_next() => self.take(prepared),
                Ok(()) = changes.changed() => self.refresh().await,
                _ = retry.tick() => self.retry(),
                _ = announce.tick() => if self.stale { self.refresh().await },
            }
            self.announce().await;
        }
    }

    async fn refresh(&mut self) {
        match self.ports.registry.current(&self.tenant).await {
            Ok(versions) => self.follow(versions),
            Err(error) => tracing::warn!(%error, "the registry could not be read; the modules stay as they are"),
        }
    }

    /// Begin to load what is new, forget what is gone. Tasks that run keep the version on which they began, since
    /// they hold its route.
    fn follow(&mut self, versions: Vec<Version>) {
        self.stale = false;
        self.wanted = versions.into_iter().map(|version| (version.module.clone(), Arc::new(version))).collect();
        self.served.retain(|module, _| self.wanted.contains_key(module));
        let is_wanted = |digest: &Digest| self.wanted.values().any(|version| version.digest == *digest);
        self.readiness.retain(|digest, _| is_wanted(digest));
        self.hopeless.retain(|digest, _| is_wanted(digest));
        for version in self.wanted.values().cloned().collect::<Vec<_>>() {
            if self.loaded.contains_key(&version.digest) {
                self.readiness.insert(version.digest, Readiness::Ready);
                self.served.insert(version.module.clone(), version);
            } else if !matches!(self.readiness.get(&version.digest), Some(Readiness::Compiling | Readiness::Failed(_)))
            {
                self.prepare(version.digest, None);
            }
        }
        self.publish();
    }

    fn retry(&mut self) {
        let failed = |(digest, readiness): (&Digest, &Readiness)| match readiness {
            Readiness::Failed(_) if !self.hopeless.contains_key(digest) => Some(*digest),
            Readiness::Failed(_) => None,
            Readiness::Compiling | Readiness::Ready => None,
        };
        for digest in self.readiness.iter().filter_map(failed).collect::<Vec<_>>() {
            self.prepare(digest, None);
        }
    }

    /// Load a component beside everything else; [`Self::take`] hears how that ended.
    fn prepare(&mut self, digest: Digest, code: Option<Code>) {
        self.readiness.insert(digest, Readiness::Compiling);
        let (ports, runner) = (self.ports.clone(), self.runner.clone());
        self.preparing.spawn(async move {
            let outcome = load(&ports, &runner, digest, code).await;
            Prepared { digest, runner, outcome }
        });
    }

    fn take(&mut self, prepared: Result<Prepared, tokio::task::JoinError>) {
        let Prepared { digest, runner, outcome } = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return tracing::error!(%error, "loading a module broke off"),
        };
        if !self.readiness.contains_key(&digest) && !self.served.values().any(|version| version.digest == digest) {
            return;
        }
        let readiness = match outcome {
            // Loaded for a runner that was lost meanwhile; the code is as good as before.
            Ok(Loaded { code, .. }) if !Arc::ptr_eq(&runner, &self.runner) => return self.prepare(digest, Some(code)),
            Err(_) if !Arc::ptr_eq(&runner, &self.runner) => return self.prepare(digest, None),
            Ok(loaded) => {
                self.loaded.insert(digest, loaded);
                Readiness::Ready
            }
            Err(Failure::Passing(reason)) => Readiness::Failed(reason),
            Err(Failure::Lasting(reason)) => {
                self.hopeless.insert(digest, reason.as_str().into());
                Readiness::Failed(reason)
            }
        };
        for version in self.wanted.values().filter(|version| version.digest == digest) {
            let (module, number) = (&version.module, version.number);
            match &readiness {
                Readiness::Failed(reason) => tracing::error!(module, version = number, reason, "module not loaded"),
                Readiness::Compiling | Readiness::Ready => {
                    tracing::info!(module, version = number, "module loaded");
                    self.served.insert(module.clone(), version.clone());
                }
            }
        }
        self.readiness.insert(digest, readiness);
        self.publish();
    }

    /// Swap the routes as a whole, and drop what no route leads to.
    fn publish(&mut self) {
        let mut routes = HashMap::new();
        for version in self.wanted.values() {
            let reason = self.hopeless.get(&version.digest);
            let destination = || reason.map_or(Destination::Unavailable, |reason| Destination::Failed(reason.clone()));
            routes.extend(version.manifest.tasks.iter().map(|spec| (spec.name.clone(), destination())));
        }
        for version in self.served.values() {
            let Some(loaded) = self.loaded.get(&version.digest) else { continue };
            for spec in &version.manifest.tasks {
                let (spec, version, runner) = (spec.clone(), version.clone(), self.runner.clone());
                let route = Route { spec, version, component: loaded.component.clone(), runner };
                routes.insert(route.spec.name.clone(), Destination::Ready(Arc::new(route)));
            }
        }
        self.routes.send_replace(Arc::new(routes));
        let (wanted, served) = (&self.wanted, &self.served);
        self.loaded.retain(|digest, _| wanted.values().chain(served.values()).any(|version| version.digest == *digest));
    }

    /// Only tasks that ran in it are lost with a runner; their messages bring them back.
    async fn replace_runner(&mut self, reason: &str) {
        tracing::error!(reason, "a runner process was lost; starting another");
        // One that dies at once must not be started in a tight loop.
        tokio::time::sleep(self.restarts.pause_after(self.started.elapsed())).await;
        self.runner = Arc::new(self.start_runner().await);
        self.started = Instant::now();
        let again: Vec<_> = self.loaded.drain().map(|(digest, loaded)| (digest, loaded.code)).collect();
        for (digest, code) in again {
            self.prepare(digest, Some(code));
        }
        self.publish();
    }

    async fn start_runner(&mut self) -> Runner {
        loop {
            match self.ports.sandbox.runner().await {
                Ok(runner) => return runner,
                Err(error) => tracing::error!(%error, "trying again"),
            }
            self.restarts.wait().await;
        }
    }

    async fn announce(&mut self) {
        let status = WorkerStatus {
            name: self.node.clone(),
            tenants: vec![self.tenant.clone()],
            modules: self.readiness.clone(),
        };
        if let Err(error) = self.ports.registry.announce(&status).await {
            tracing::warn!(%error, "the registry could not be told that this worker is alive");
            // What could not be written could not be read either, and a change may have passed unseen.
            self.stale = true;
        }
    }
}

async fn load(ports: &Ports, runner: &Runner, digest: Digest, code: Option<Code>) -> Result<Loaded, Failure> {
    let code = match code {
        Some(code) => code,
        None => {
            let read = ports.registry.component(&digest).await;
            compile(ports, &read.map_err(|error| Failure::Passing(error.to_string()))?).await?
        }
    };
    let component = runner.load(&code).await.map_err(|error| match error {
        LoadError::Lost(_) => Failure::Passing(error.to_string()),
        LoadError::NoHandler | LoadError::OtherVersion(_) | LoadError::Refused(_) => {
            Failure::Lasting(error.to_string())
        }
    })?;
    Ok(Loaded { code, component: Arc::new(component) })
}

async fn compile(ports: &Ports, component: &[u8]) -> Result<Code, Failure> {
    ports.sandbox.compile(component).await.map_err(|error| match error {
        CompileError::Died(_) | CompileError::NotStarted(_) => Failure::Passing(error.to_string()),
        CompileError::TooLarge { .. }
        | CompileError::NotWasm
        | CompileError::CoreModule
        | CompileError::MachineCode
        | CompileError::Invalid(_)
        | CompileError::Time(_)
        | CompileError::Memory(_)
        | CompileError::CodeSize(_) => Failure::Lasting(error.to_string()),
    })
}
