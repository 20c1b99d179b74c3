//! Which tasks are not to run, as far as this worker has heard: the latest revocations, from the ledger at the start and
//! from remote control since. The ledger itself remembers longer.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rtask_broker::Revocation;
use rtask_protocol::Request;
use serde_json::Value;

use crate::options::MAX_REVOKED;

/// Shared by every task of a worker.
#[derive(Debug, Default)]
pub(crate) struct Revoked(Mutex<State>);

/// At most [`MAX_REVOKED`] of each kind.
#[derive(Debug, Default)]
struct State {
    ids: HashSet<String>,
    /// The same ids, oldest first.
    ids_by_age: VecDeque<String>,
    /// By header.
    stamps: HashMap<String, HashSet<String>>,
    /// The same headers and values, oldest first.
    stamps_by_age: VecDeque<(String, String)>,
}

impl Revoked {
    /// `latest_first`, as the ledger answers them.
    pub(crate) fn new(latest_first: Vec<Revocation>) -> Self {
        let revoked = Self::default();
        revoked.extend(latest_first.into_iter().rev());
        revoked
    }

    pub(crate) fn extend(&self, revocations: impl IntoIterator<Item = Revocation>) {
        let mut state = self.state();
        for revocation in revocations {
            match revocation {
                Revocation::Task { id } => state.add_id(id),
                Revocation::Stamp { header, value } => state.add_stamp(header, value),
            }
        }
    }

    pub(crate) fn contains(&self, request: &Request) -> bool {
        let state = self.state();
        let is_revoked =
            |header: &String| state.stamps.get(header).is_some_and(|values| is_stamped(request, header, values));
        state.ids.contains(&request.id) || request.stamps.keys().any(is_revoked)
    }

    /// Whether there may be older ids, which only the ledger knows.
    pub(crate) fn is_full(&self) -> bool {
        self.state().ids.len() >= MAX_REVOKED
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add_id(&mut self, id: String) {
        if !self.ids.insert(id.clone()) {
            return;
        }
        self.ids_by_age.push_back(id);
        if self.ids_by_age.len() > MAX_REVOKED
            && let Some(oldest) = self.ids_by_age.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }

    fn add_stamp(&mut self, header: String, value: String) {
        if !self.stamps.entry(header.clone()).or_default().insert(value.clone()) {
            return;
        }
        self.stamps_by_age.push_back((header, value));
        if self.stamps_by_age.len() > MAX_REVOKED
            && let Some((header, value)) = self.stamps_by_age.pop_front()
            && let Some(values) = self.stamps.get_mut(&header)
        {
            values.remove(&value);
            if values.is_empty() {
                self.stamps.remove(&header);
            }
        }
    }
}

/// Whether a task bears one of `values` under `header`; a stamp is one value or a list of them
/// (`celery/worker/request.py`, `Request.revoked`).
pub(crate) fn is_stamped(request: &Request, header: &str, values: &HashSet<String>) -> bool {
    let text = |value: &Value| match value {
        Value::String(text) => values.contains(text),
        other => values.contains(&other.to_string()),
    };
    match request.stamps.get(header) {
        None | Some(Value::Null) => false,
        Some(Value::Array(stamps)) => stamps.iter().any(text),
        Some(stamp) => text(stamp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtask_protocol::Call;
    use serde_json::json;

    fn request(id: &str, stamps: &Value) -> Request {
        let call = Call { id: id.to_owned(), ..Call::new("t") };
        let mut message = call.message(jiff::Timestamp::UNIX_EPOCH);
        let names: Vec<_> = stamps.as_object().unwrap().keys().cloned().collect();
        message.headers.insert("stamped_headers".to_owned(), json!(names));
        message.headers.insert("stamps".to_owned(), stamps.clone());
        Request::decode(&message, 1024).unwrap()
    }

    #[test]
    fn a_task_is_revoked_by_its_id_or_by_any_of_its_stamps() {
        let stamp = Revocation::Stamp { header: "customer".into(), value: "7".into() };
        let revoked = Revoked::new(vec![Revocation::Task { id: "a".into() }, stamp]);
        let rows = [
            ("a", json!({}), true),
            ("b", json!({}), false),
            ("b", json!({ "customer": "7" }), true),
            ("b", json!({ "customer": 7 }), true),
            ("b", json!({ "customer": ["6", "7"] }), true),
            ("b", json!({ "customer": ["6"], "other": "7" }), false),
            ("b", json!({ "customer": null }), false),
        ];
        for (id, stamps, expected) in rows {
            assert_eq!(revoked.contains(&request(id, &stamps)), expected, "{id} {stamps}");
        }
    }

    #[test]
    fn the_oldest_are_forgotten_first() {
        let revoked = Revoked::default();
        assert!(!revoked.is_full());
        revoked.extend((0..=MAX_REVOKED).map(|number| Revocation::Task { id: number.to_string() }));
        assert!(!revoked.contains(&request("0", &json!({}))));
        assert!(revoked.contains(&request("1", &json!({}))));
        assert_eq!(revoked.state().ids_by_age.len(), MAX_REVOKED);
        assert!(revoked.is_full());
    }

    #[test]
    fn the_oldest_stamps_are_forgotten_with_their_headers() {
        let revoked = Revoked::default();
        let stamp = |number: usize| Revocation::Stamp { header: format!("h{number}"), value: "v".to_owned() };
        revoked.extend((0..=MAX_REVOKED).map(stamp));
        assert!(!revoked.contains(&request("t", &json!({ "h0": "v" }))));
        assert!(revoked.contains(&request("t", &json!({ "h1": "v" }))));
        assert_eq!(revoked.state().stamps.len(), MAX_REVOKED);
    }
}
