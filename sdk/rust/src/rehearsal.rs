//! Outside a component: a host that only remembers, so that tasks can be tested as functions.

use std::{
    cell::{Cell, RefCell},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{Context, Error, log::Level};

/// The hard time limit of a rehearsed run (milliseconds): the workers' default.
const TIME_LIMIT: u32 = 300_000;

pub(crate) struct Host {
    request: Value,
    remaining_ms: Cell<u32>,
    soft_remaining_ms: Cell<Option<u32>>,
    /// A sleep was ended early, or not begun, for the soft limit.
    woken: Cell<bool>,
    states: RefCell<Vec<(String, Value)>>,
    sent: RefCell<Vec<Value>>,
    /// What every send is answered with, if not with an id.
    refusal: Option<Error>,
}

impl Host {
    pub(crate) fn new() -> Self {
        let id = made_up_id(0);
        let request = json!({
            "id": id, "task": "test", "root_id": id, "max_retries": 3, "timelimit": [TIME_LIMIT / 1_000, null],
            "hostname": "test@localhost", "module": "test", "version": 1,
        });
        Self {
            request,
            remaining_ms: Cell::new(TIME_LIMIT),
            soft_remaining_ms: Cell::default(),
            woken: Cell::default(),
            states: RefCell::default(),
            sent: RefCell::default(),
            refusal: None,
        }
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

    pub(crate) fn soft_remaining_ms(&self) -> Option<u32> {
        self.soft_remaining_ms.get()
    }

    /// Takes no time but the task's.
    pub(crate) fn sleep(&self, milliseconds: u32) -> bool {
        let soft = self.soft_remaining_ms.get();
        let passed = soft.is_some_and(|soft| milliseconds >= soft);
        let slept = match soft {
            Some(soft) if passed && !self.woken.replace(true) => soft,
            Some(_) | None => milliseconds,
        };
        self.soft_remaining_ms.set(soft.map(|soft| soft.saturating_sub(slept)));
        self.remaining_ms.set(self.remaining_ms.get().saturating_sub(slept));
        passed
    }

    pub(crate) fn send(&self, signature: &str) -> Result<String, Error> {
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        let signature: Value = serde_json::from_str(signature).expect("the context wrote it");
        let mut sent = self.sent.borrow_mut();
        let id = match &signature["options"]["task_id"] {
            Value::String(id) => id.clone(),
            _ => made_up_id(sent.len() + 1),
        };
        sent.push(signature);
        Ok(id)
    }
}

fn made_up_id(number: usize) -> String {
    format!("00000000-0000-0000-0000-{number:012}")
}

pub(crate) fn log(level: Level, message: &str) {
    eprintln!("{level:?}: {message}");
}

/// For tests of tasks; not there inside a component.
impl Context {
    /// A run without a host: it has an id of zeros, three retries and five minutes, which only
    /// [`sleep`](Self::sleep) uses up (at once), and remembers its [`states`](Self::states) and what it
    /// [`sent`](Self::sent).
    pub fn for_test() -> Self {
        Self::current()
    }

    /// Like [`for_test`](Self::for_test), with these fields of the request, such as
    /// `json!({"retries": 2, "headers": {"key": "value"}})`.
    ///
    /// # Panics
    /// When they are no object.
    pub fn for_test_with(fields: Value) -> Self {
        let mut host = Host::new();
        match (&mut host.request, fields) {
            (Value::Object(request), Value::Object(fields)) => request.extend(fields),
            (_, other) => panic!("a request is an object, and not {other}"),
        }
        Self::on(host)
    }

    /// With a soft time limit after this time of sleep; zero is over at once.
    #[must_use]
    pub fn with_soft_time_limit(self, after: Duration) -> Self {
        let milliseconds = u32::try_from(after.as_millis()).unwrap_or(u32::MAX);
        self.host.soft_remaining_ms.set(Some(milliseconds));
        self
    }

    /// Where the host answers every [`send`](Self::send) with this.
    #[must_use]
    pub fn refusing_sends(mut self, refusal: impl Into<Error>) -> Self {
        self.host.refusal = Some(refusal.into());
        self
    }

    /// What the task stored with [`set_state`](Self::set_state) so far.
    pub fn states(&self) -> Vec<(String, Value)> {
        self.host.states.borrow().clone()
    }

    /// What the task sent with [`send`](Self::send) so far: signatures as Celery writes them, such as
    /// `{"task": "shop.greet", "args": ["Ada"], "kwargs": {}, "options": {"queue": "slow"}, ..}`. The ids that `send`
    /// answers count from one.
    pub fn sent(&self) -> Vec<Value> {
        self.host.sent.borrow().clone()
    }
}
