//! Outside a component: a host that only remembers, so that tasks can be tested as functions.

use std::cell::{Cell, RefCell};

use serde_json::{Value, json};

use crate::{Context, log::Level};

/// The hard time limit of a rehearsed run (milliseconds): the workers' default.
const TIME_LIMIT: u32 = 300_000;

pub(crate) struct Host {
    request: Value,
    remaining_ms: Cell<u32>,
    states: RefCell<Vec<(String, Value)>>,
}

impl Host {
    pub(crate) fn new() -> Self {
        let id = "00000000-0000-0000-0000-000000000000";
        let request = json!({
            "id": id, "task": "test", "root_id": id, "hostname": "test@localhost", "module": "test", "version": 1,
        });
        Self { request, remaining_ms: Cell::new(TIME_LIMIT), states: RefCell::default() }
    }

    pub(crate) fn request(&self) -> String {
        self.request.to_string()
    }

    pub(crate) fn set_state(&self, state: &str, meta: &str) {
        let meta = serde_json::from_str(meta).expect("the context wrote it");
        self.states.borrow_mut().push((state.to_owned(), meta));
    }

    pub(crate) fn remaining_ms(&self) -> u32 {
        self.remaining_ms.get()
    }

    /// Takes no time but the task's.
    pub(crate) fn sleep(&self, milliseconds: u32) {
        self.remaining_ms.set(self.remaining_ms.get().saturating_sub(milliseconds));
    }
}

pub(crate) fn log(level: Level, message: &str) {
    eprintln!("{level:?}: {message}");
}

/// For tests of tasks; not there inside a component.
impl Context {
    /// A run without a host: it has an id of zeros, five minutes, which only [`sleep`](Self::sleep) uses up (at once),
    /// and remembers its [`states`](Self::states).
    pub fn for_test() -> Self {
        Self::current()
    }

    /// Like [`for_test`](Self::for_test), with a request such as `json!({"retries": 2, "headers": {"key": "value"}})`.
    pub fn for_test_with(request: Value) -> Self {
        Self::on(Host { request, ..Host::new() })
    }

    /// What the task stored with [`set_state`](Self::set_state) so far.
    pub fn states(&self) -> Vec<(String, Value)> {
        self.host.states.borrow().clone()
    }
}
