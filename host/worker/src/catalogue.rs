//! The deployed modules: which task name leads to which component in which runner.
//!
//! Tasks read a [`Catalogue`], whose content is swapped as a whole, so that a deploy takes effect between two
//! tasks. The `Keeper` (keeper.rs) alone writes it.

use std::{collections::HashMap, sync::Arc};

use rtask_registry::{Version, manifest::TaskSpec};
use rtask_sandbox::{ComponentId, Runner};
use tokio::sync::watch;

/// Everything that a run needs to know of its task's module.
#[derive(Debug)]
pub(crate) struct Route {
    pub spec: TaskSpec,
    pub version: Arc<Version>,
    pub component: Arc<ComponentId>,
    pub runner: Arc<Runner>,
}

/// Where a task name leads at this moment.
#[derive(Clone, Debug)]
pub(crate) enum Destination {
    Ready(Arc<Route>),
    /// The task is deployed, and this worker cannot run it now: its module is being loaded, or its runner replaced.
    Unavailable,
    /// The task is deployed, and trying again would not make this worker able to run it. For people.
    Failed(Arc<str>),
    Unknown,
}

type Routes = HashMap<String, Destination>;

/// What is known of the deployed tasks. Clones see the same.
#[derive(Clone, Debug)]
pub(crate) struct Catalogue(watch::Receiver<Arc<Routes>>);

/// A catalogue, and the one who writes it.
pub(crate) fn catalogue() -> (watch::Sender<Arc<Routes>>, Catalogue) {
    let (sender, receiver) = watch::channel(Arc::default());
    (sender, Catalogue(receiver))
}

impl Catalogue {
    /// Whatever is found here is what [`Self::changed`] waits for a change of.
    pub(crate) fn find(&mut self, task: &str) -> Destination {
        let routes = self.0.borrow_and_update().clone();
        match routes.get(task) {
            None => Destination::Unknown,
            // The keeper has not noticed yet.
            Some(Destination::Ready(route)) if route.runner.has_ended() => Destination::Unavailable,
            Some(destination) => destination.clone(),
        }
    }

    /// Where a task that can be run here at this moment leads.
    pub(crate) fn ready(&self, task: &str) -> Option<Arc<Route>> {
        match self.clone().find(task) {
            Destination::Ready(route) => Some(route),
            Destination::Unavailable | Destination::Failed(_) | Destination::Unknown => None,
        }
    }

    /// Wait until something may be found where it was not.
    pub(crate) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // The keeper is gone, as it is while the worker stops; nothing changes any more.
            std::future::pending::<()>().await;
        }
    }
}
