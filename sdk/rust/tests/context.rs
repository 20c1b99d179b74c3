//! What tasks know of their run and do in it, without a host.

use std::time::Duration;

use rtask::{Context, json};

#[test]
fn a_test_s_context_knows_its_run() {
    let context = Context::for_test();
    assert_eq!(context.id(), "00000000-0000-0000-0000-000000000000");
    assert_eq!(context.root_id(), Some(context.id()));
    assert_eq!((context.task(), context.hostname()), ("test", "test@localhost"));
    assert_eq!((context.module(), context.version()), ("test", 1));
    assert_eq!((context.retries(), context.priority()), (0, 0));
    assert_eq!((context.parent_id(), context.group(), context.eta(), context.expires()), (None, None, None, None));
    assert!(context.headers().is_empty());
}

#[test]
fn a_request_is_read_with_celery_s_names() {
    let context = Context::for_test_with(json!({
        "id": "a", "task": "hello.add", "retries": 2, "root_id": "r", "parent_id": "p", "group": "g",
        "eta": "2026-11-24T08:51:26+00:00", "expires": "2026-11-24T09:51:26+00:00", "timelimit": [10, null],
        "priority": 9, "hostname": "celery@host", "headers": {"key": "value"}, "module": "hello", "version": 7,
    }));
    assert_eq!((context.id(), context.task(), context.retries()), ("a", "hello.add", 2));
    assert_eq!((context.root_id(), context.parent_id(), context.group()), (Some("r"), Some("p"), Some("g")));
    assert_eq!(context.eta(), Some("2026-11-24T08:51:26+00:00"));
    assert_eq!(context.expires(), Some("2026-11-24T09:51:26+00:00"));
    assert_eq!((context.priority(), context.hostname()), (9, "celery@host"));
    assert_eq!(context.headers()["key"], "value");
    assert_eq!((context.module(), context.version()), ("hello", 7));
}

#[test]
fn null_is_as_good_as_absent() {
    let context = Context::for_test_with(json!({"id": "a", "priority": null, "headers": null, "retries": null}));
    assert_eq!((context.priority(), context.retries(), context.headers().len()), (0, 0, 0));
}

#[test]
fn states_are_remembered() {
    let context = Context::for_test();
    context.set_state("PROGRESS", json!({"done": 1})).unwrap();
    context.set_state("PROGRESS", [2, 3]).unwrap();
    let expected = [("PROGRESS".to_owned(), json!({"done": 1})), ("PROGRESS".to_owned(), json!([2, 3]))];
    assert_eq!(context.states(), expected);
}

#[test]
fn a_state_that_json_cannot_hold_is_a_type_error() {
    let context = Context::for_test();
    let error = context.set_state("PROGRESS", std::collections::BTreeMap::from([((1, 2), 3)])).unwrap_err();
    assert_eq!(error.to_string(), r#"TypeError("the meta of state PROGRESS: key must be a string")"#);
    assert_eq!(context.states(), []);
}

#[test]
fn sleep_uses_the_time_that_remains() {
    let context = Context::for_test();
    assert_eq!(context.remaining(), Duration::from_secs(300));
    context.sleep(Duration::from_micros(1_500));
    assert_eq!(context.remaining(), Duration::from_millis(299_998));
    context.sleep(Duration::MAX);
    assert_eq!(context.remaining(), Duration::ZERO);
}
