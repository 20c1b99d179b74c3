//! What tasks know of their run and do in it, without a host.

use std::time::Duration;

use rtask::{Context, Error, SoftTimeLimitExceeded, Value, json, signature};

#[test]
fn a_test_s_context_knows_its_run() {
    let context = Context::for_test();
    assert_eq!(context.id(), "00000000-0000-0000-0000-000000000000");
    assert_eq!(context.root_id(), Some(context.id()));
    assert_eq!((context.task(), context.hostname()), ("test", "test@localhost"));
    assert_eq!((context.module(), context.version()), ("test", 1));
    assert_eq!((context.retries(), context.max_retries(), context.priority()), (0, Some(3), 0));
    assert_eq!((context.time_limit(), context.soft_time_limit()), (Some(Duration::from_secs(300)), None));
    assert_eq!((context.parent_id(), context.group(), context.eta(), context.expires()), (None, None, None, None));
    assert!(context.headers().is_empty());
}

#[test]
fn a_request_is_read_with_celery_s_names() {
    let context = Context::for_test_with(json!({
        "id": "a", "task": "hello.add", "retries": 2, "root_id": "r", "parent_id": "p", "group": "g",
        "eta": "2026-11-24T08:51:26+00:00", "expires": "2026-11-24T09:51:26+00:00", "timelimit": [10, 7.5],
        "group_index": 3, "max_retries": 5, "correlation_id": "c", "reply_to": "q", "origin": "gen1@host", "shadow": "sh",
        "stamped_headers": ["day"], "stamps": {"day": ["monday"]}, "replaced_task_nesting": 1, "ignore_result": true,
        "delivery_info": {"exchange": "", "routing_key": "celery", "priority": 9, "redelivered": true},
        "priority": 9, "hostname": "celery@host", "headers": {"key": "value"}, "module": "hello", "version": 7,
    }));
    assert_eq!((context.id(), context.task(), context.retries()), ("a", "hello.add", 2));
    assert_eq!((context.root_id(), context.parent_id(), context.group()), (Some("r"), Some("p"), Some("g")));
    assert_eq!(context.eta(), Some("2026-11-24T08:51:26+00:00"));
    assert_eq!(context.expires(), Some("2026-11-24T09:51:26+00:00"));
    assert_eq!((context.priority(), context.hostname()), (9, "celery@host"));
    assert_eq!(context.headers()["key"], "value");
    assert_eq!((context.module(), context.version()), ("hello", 7));
    assert_eq!((context.group_index(), context.max_retries()), (Some(3), Some(5)));
    assert_eq!(context.time_limit(), Some(Duration::from_secs(10)));
    assert_eq!(context.soft_time_limit(), Some(Duration::from_millis(7_500)));
    assert_eq!((context.correlation_id(), context.reply_to()), (Some("c"), Some("q")));
    assert_eq!((context.origin(), context.shadow()), (Some("gen1@host"), Some("sh")));
    assert_eq!((context.stamped_headers(), &context.stamps()["day"]), (&["day".to_owned()][..], &json!(["monday"])));
    assert_eq!((context.replaced_task_nesting(), context.ignore_result()), (1, true));
    let delivery = context.delivery_info();
    assert_eq!((&*delivery.exchange, &*delivery.routing_key), ("", "celery"));
    assert_eq!((delivery.priority, delivery.redelivered), (Some(9), true));
    assert_eq!(context.request()["delivery_info"]["routing_key"], "celery", "all of it can be had as JSON too");
}

#[test]
fn null_is_as_good_as_absent() {
    let context = Context::for_test_with(json!({
        "id": "a", "priority": null, "headers": null, "retries": null, "timelimit": null, "stamps": null,
        "stamped_headers": null, "delivery_info": null, "ignore_result": null, "replaced_task_nesting": null,
    }));
    assert_eq!((context.priority(), context.retries(), context.headers().len()), (0, 0, 0));
    assert_eq!((context.time_limit(), context.soft_time_limit()), (None, None));
    assert_eq!((context.stamps().len(), context.stamped_headers().len()), (0, 0));
    assert_eq!((context.ignore_result(), context.replaced_task_nesting()), (false, 0));
    assert_eq!((&*context.delivery_info().routing_key, context.delivery_info().redelivered), ("", false));
}

#[test]
fn no_end_of_retries_is_none() {
    assert_eq!(Context::for_test_with(json!({"max_retries": null})).max_retries(), None);
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
    context.sleep(Duration::from_micros(1_500)).unwrap();
    assert_eq!(context.remaining(), Duration::from_millis(299_998));
    context.sleep(Duration::MAX).unwrap();
    assert_eq!(context.remaining(), Duration::ZERO);
}

#[test]
fn a_run_without_a_soft_limit_is_never_told_to_end() {
    let context = Context::for_test();
    assert_eq!((context.soft_remaining(), context.check()), (None, Ok(())));
}

#[test]
fn the_soft_limit_ends_a_sleep_early() {
    let context = Context::for_test().with_soft_time_limit(Duration::from_secs(3));
    context.sleep(Duration::from_secs(2)).unwrap();
    assert_eq!((context.soft_remaining(), context.check()), (Some(Duration::from_secs(1)), Ok(())));
    assert_eq!(context.sleep(Duration::from_secs(5)), Err(SoftTimeLimitExceeded));
    assert_eq!(context.remaining(), Duration::from_secs(297), "only what was slept is gone");
    assert_eq!((context.soft_remaining(), context.check()), (Some(Duration::ZERO), Err(SoftTimeLimitExceeded)));
    assert_eq!(context.sleep(Duration::from_secs(1)), Err(SoftTimeLimitExceeded), "it stays over");
    assert_eq!(context.remaining(), Duration::from_secs(296), "but who cleans up may wait");
}

#[test]
fn the_soft_limit_is_the_failure_that_celery_knows() {
    fn caught_by_nobody(context: &Context) -> Result<(), Error> {
        context.check()?;
        Ok(())
    }
    let context = Context::for_test().with_soft_time_limit(Duration::ZERO);
    let expected = Error::new("SoftTimeLimitExceeded").module("billiard.exceptions");
    let error = caught_by_nobody(&context).unwrap_err();
    assert_eq!(error, expected);
    assert!(format!("{error:?}").contains("context.rs"), "it knows its line: {error:?}");
}

#[test]
fn a_signature_is_sent_as_celery_writes_it() {
    let context = Context::for_test();
    let id = context
        .send(
            signature("shop.pack")
                .args(("tea", 2))
                .kwarg("gift", true)
                .countdown(Duration::from_millis(1_500))
                .expires(Duration::from_secs(60))
                .priority(9)
                .queue("packers")
                .header("tenant", "a")
                .time_limit(Duration::from_secs(10))
                .soft_time_limit(Duration::from_secs(5))
                .ignore_result(true)
                .shadow("pack tea")
                .link("shop.tell")
                .link(signature("shop.count").args(1).immutable())
                .link_error("shop.cry")
                .task_id("mine"),
        )
        .unwrap();
    let plain = |task: &str| json!({"task": task, "args": [], "kwargs": {}, "options": {}, "subtask_type": null, "immutable": false});
    let expected = json!({
        "task": "shop.pack",
        "args": ["tea", 2],
        "kwargs": {"gift": true},
        "options": {
            "countdown": 1.5, "expires": 60.0, "priority": 9, "queue": "packers", "headers": {"tenant": "a"},
            "time_limit": 10.0, "soft_time_limit": 5.0, "ignore_result": true, "shadow": "pack tea", "task_id": "mine",
            "link": [
                plain("shop.tell"),
                {"task": "shop.count", "args": [1], "kwargs": {}, "options": {}, "subtask_type": null, "immutable": true},
            ],
            "link_error": [plain("shop.cry")],
        },
        "subtask_type": null,
        "immutable": false,
    });
    assert_eq!((&*id, context.sent()), ("mine", vec![expected]));
}

#[test]
fn a_signature_may_name_a_time_and_a_route() {
    let context = Context::for_test();
    context.send(signature("a").eta("2026-11-24T08:51:26Z").exchange("shop").routing_key("tea.green")).unwrap();
    let expected = json!({"eta": "2026-11-24T08:51:26Z", "exchange": "shop", "routing_key": "tea.green"});
    assert_eq!(context.sent()[0]["options"], expected);
}

#[test]
fn ids_that_nobody_chose_are_counted() {
    let context = Context::for_test();
    let ids = ["a", "b"].map(|task| context.send(task).unwrap());
    assert_eq!(ids, ["00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"]);
    let tasks: Vec<Value> = context.sent().iter().map(|signature| signature["task"].clone()).collect();
    assert_eq!(tasks, ["a", "b"]);
}

#[test]
fn arguments_of_a_signature_are_an_array_and_an_object() {
    #[derive(serde::Serialize)]
    struct Named {
        word: &'static str,
    }
    let context = Context::for_test();
    context.send(signature("a").args(vec![1, 2]).kwargs(Named { word: "Hello" }).kwarg("times", 3)).unwrap();
    context.send(signature("a").args("one")).unwrap();
    let [first, second] = &context.sent()[..] else { panic!("two were sent") };
    assert_eq!((&first["args"], &first["kwargs"]), (&json!([1, 2]), &json!({"word": "Hello", "times": 3})));
    assert_eq!(second["args"], json!(["one"]));
}

#[test]
fn what_json_cannot_hold_is_told_when_it_would_be_sent() {
    let no_json = std::collections::BTreeMap::from([((1, 2), 3)]);
    let rows = [
        (signature("a").args([&no_json]), "args cannot be JSON: key must be a string"),
        (signature("a").kwarg("k", &no_json), "k cannot be JSON: key must be a string"),
        (signature("a").kwargs([1]), "kwargs are a map, and not [1]"),
        (signature("a").header("h", &no_json), "h cannot be JSON: key must be a string"),
        (signature("a").link(signature("b").kwargs(1)), "kwargs are a map, and not 1"),
        (signature("a").kwarg("k", &no_json).kwarg("l", 1), "k cannot be JSON: key must be a string"),
    ];
    for (signature, message) in rows {
        let context = Context::for_test();
        assert_eq!(context.send(signature), Err(Error::type_error(message)));
        assert_eq!(context.sent(), Vec::<Value>::new());
    }
}

#[test]
fn a_send_may_be_refused() {
    let refusal = Error::new("OperationalError").module("kombu.exceptions").args("no broker");
    let context = Context::for_test().refusing_sends(refusal.clone());
    assert_eq!(context.send("a"), Err(refusal));
    assert_eq!(context.sent(), Vec::<Value>::new());
}
