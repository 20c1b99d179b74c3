//! The tasks that run at this moment, by id, so that remote control can end them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rtask_protocol::Request;
use tokio_util::sync::CancellationToken;

/// Shared by every task of a worker.
#[derive(Debug, Default)]
pub(crate) struct Active(Mutex<HashMap<String, Running>>);

#[derive(Debug)]
struct Running {
    request: Arc<Request>,
    terminate: CancellationToken,
    /// The same message may be delivered twice, and both may run.
    runs: usize,
}

/// One run's entry; gone when this is dropped.
pub(crate) struct Entry<'a> {
    active: &'a Active,
    id: String,
    /// Cancelled when the run is to end.
    pub(crate) terminated: CancellationToken,
}

impl Active {
    pub(crate) fn enter(&self, request: &Arc<Request>) -> Entry<'_> {
        let mut running = self.running();
        let entry = running.entry(request.id.clone()).or_insert_with(|| Running {
            request: request.clone(),
            terminate: CancellationToken::new(),
            runs: 0,
        });
        entry.runs += 1;
        Entry { active: self, id: request.id.clone(), terminated: entry.terminate.clone() }
    }

    pub(crate) fn is_running(&self, id: &str) -> bool {
        self.running().contains_key(id)
    }

    /// The ids of those that run and satisfy `condition`.
    pub(crate) fn ids(&self, condition: impl Fn(&Request) -> bool) -> Vec<String> {
        let running = self.running();
        running
            .values()
            .filter(|running| condition(&running.request))
            .map(|running| running.request.id.clone())
            .collect()
    }

    /// End a task, if it runs.
    pub(crate) fn terminate(&self, id: &str) {
        if let Some(running) = self.running().get(id) {
            running.terminate.cancel();
        }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<String, Running>> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut running = self.active.running();
        if let Some(entry) = running.get_mut(&self.id) {
            entry.runs -= 1;
            if entry.runs == 0 {
                running.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtask_protocol::Call;

    #[test]
    fn a_task_can_be_ended_for_as_long_as_it_runs() {
        let active = Active::default();
        let message = Call { id: "a".to_owned(), ..Call::new("t") }.message(jiff::Timestamp::UNIX_EPOCH);
        let request = Arc::new(Request::decode(&message, 1024).unwrap());
        let (first, second) = (active.enter(&request), active.enter(&request));
        active.terminate("b");
        assert!(!first.terminated.is_cancelled());
        active.terminate("a");
        assert!(first.terminated.is_cancelled() && second.terminated.is_cancelled());
        drop(first);
        assert_eq!(active.ids(|request| request.task == "t"), ["a"]);
        drop(second);
        assert!(!active.is_running("a"));
    }
}
