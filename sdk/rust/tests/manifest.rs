//! What a module says of itself.

use std::collections::BTreeMap;

use rtask::{Context, Value, json, task, testing::describe};

rtask::module! { name = "shop" }

/// Divides.
///
/// Slowly.
#[task(name = "math.div", time_limit = 0.5, memory = "32 MiB", acks_late = false, ignore_result, track_started)]
fn div(_context: &Context, a: f64, #[default = 1.0] b: f64, note: Option<String>) -> f64 {
    a / b + note.map_or(0.0, |_| 0.0)
}

#[task]
fn all(#[args] values: Vec<Value>, #[kwargs] named: BTreeMap<String, Value>) -> usize {
    values.len() + named.len()
}

#[task(
    soft_time_limit = 4,
    max_retries = 5,
    default_retry_delay = 0,
    autoretry_for = ["ValueError", "shop.errors.Busy"],
    dont_autoretry_for = ["KeyError"],
    retry_backoff = 2,
    retry_backoff_max = 60,
    retry_jitter = false,
    rate_limit = "10/m",
    acks_on_failure = false,
    acks_on_timeout = false,
    reject_on_worker_lost = false,
    store_errors_even_if_ignored,
    queue = "slow",
    priority = 3,
    expires = 60
)]
fn careful() {}

#[task(max_retries = unlimited, autoretry_for = ["Exception"], retry_backoff)]
fn stubborn() {}

#[task(retry_backoff = false)]
fn list(#[default] items: Vec<Vec<i64>>, #[default = "a"] text: String) -> usize {
    items.len() + text.len()
}

#[test]
fn the_manifest_tells_all_tasks_by_name() {
    let manifest: Value = serde_json::from_str(&describe()).unwrap();
    let expected = json!({
        "module": "shop",
        "sdk": concat!("rust/", env!("CARGO_PKG_VERSION")),
        "tasks": [
            {
                "name": "manifest.all",
                "parameters": [
                    {"name": "values", "kind": "variadic", "required": false, "type": "Vec<Value>"},
                    {"name": "named", "kind": "keywords", "required": false, "type": "BTreeMap<String, Value>"},
                ],
                "options": {},
            },
            {
                "name": "manifest.careful",
                "parameters": [],
                "options": {
                    "soft_time_limit": 4.0,
                    "max_retries": 5,
                    "default_retry_delay": 0.0,
                    "autoretry_for": ["ValueError", "shop.errors.Busy"],
                    "dont_autoretry_for": ["KeyError"],
                    "retry_backoff": 2.0,
                    "retry_backoff_max": 60.0,
                    "retry_jitter": false,
                    "rate_limit": "10/m",
                    "acks_on_failure": false,
                    "acks_on_timeout": false,
                    "reject_on_worker_lost": false,
                    "store_errors_even_if_ignored": true,
                    "queue": "slow",
                    "priority": 3,
                    "expires": 60.0,
                },
            },
            {
                "name": "manifest.list",
                "parameters": [
                    {"name": "items", "kind": "normal", "required": false, "default": [], "type": "Vec<Vec<i64>>"},
                    {"name": "text", "kind": "normal", "required": false, "default": "a", "type": "String"},
                ],
                "options": {},
            },
            {
                "name": "manifest.stubborn",
                "parameters": [],
                "options": {"max_retries": null, "autoretry_for": ["Exception"], "retry_backoff": 1.0},
            },
            {
                "name": "math.div",
                "doc": "Divides.\n\nSlowly.",
                "parameters": [
                    {"name": "a", "kind": "normal", "required": true, "type": "f64"},
                    {"name": "b", "kind": "normal", "required": false, "default": 1.0, "type": "f64"},
                    {"name": "note", "kind": "normal", "required": false, "default": null, "type": "Option<String>"},
                ],
                "options": {
                    "acks_late": false,
                    "ignore_result": true,
                    "track_started": true,
                    "time_limit": 0.5,
                    "memory": 33554432,
                },
            },
        ],
    });
    assert_eq!(manifest, expected);
}

#[test]
fn described_tasks_are_functions_too() {
    assert_eq!(div(&Context::for_test(), 1.0, 2.0, None), 0.5);
    assert_eq!(all(vec![Value::Null], BTreeMap::new()), 1);
    assert_eq!(list(vec![], "a".to_owned()), 1);
    careful();
    stubborn();
}
