//! Messages of other ages and other clients.

use rtask_tests::Stage;
use serde_json::json;

facts![
    protocol_1_messages_are_understood,
    protocol_1_of_gocelery_is_understood,
    keyword_only_messages_are_understood,
    headers_that_are_missing_do_not_matter,
    null_arguments_are_none,
    request_tells_what_the_message_said,
];

/// golden/01_amqp_task_messages/61_protocol_1.json.
fn protocol_1_messages_are_understood(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
app.conf.task_protocol = 1
callback = app.signature("probe.echo_all", args=["callback"], task_id=own("callback"))
plain = app.send_task("probe.echo_all", args=[1], kwargs={"k": 2}, link=callback)
eta = now() + timedelta(seconds=1.5)
held, failed = app.send_task("probe.echo", args=[3], eta=eta), app.send_task("probe.auto", args=[9, "KeyError"])
retried, expired = app.send_task("probe.flaky", args=[1]), app.send_task("probe.echo", args=[1], expires=now())
limited = app.send_task("probe.nap", args=[3600], time_limit=0.5)
answer({"plain": plain.get(timeout=WAIT), "callback": app.AsyncResult(own("callback")).get(timeout=WAIT),
        "held": held.get(timeout=WAIT), "early": done_at(held) < eta, "failed": raised(failed)["type"],
        "retried": retried.get(timeout=WAIT), "limited": raised(limited)["type"]})
"#,
    );
    assert_eq!(
        seen,
        json!({
            "plain": [[1], { "k": 2 }], "callback": [[[[1], { "k": 2 }], "callback"], {}], "held": 3, "early": false,
            "failed": "KeyError", "retried": 1, "limited": "TimeLimitExceeded",
        })
    );
}

/// It names only some of the fields, and no priority.
fn protocol_1_of_gocelery_is_understood(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
by_position = {"id": own("go"), "task": "probe.echo_all", "args": [1, 2], "kwargs": None, "retries": 0, "eta": None,
               "expires": None}
by_name = {"id": own("go-kwargs"), "task": "probe.echo_all", "args": None, "kwargs": {"a": 1}, "retries": 0, "eta": ""}
for body in (by_position, by_name):
    publish(json.dumps(body).encode(), content_type="application/json", content_encoding="utf-8")
answer([app.AsyncResult(own(name)).get(timeout=WAIT) for name in ("go", "go-kwargs")])
"#,
    );
    assert_eq!(seen, json!([[[1, 2], {}], [[], { "a": 1 }]]));
}

fn keyword_only_messages_are_understood(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
headers = {"lang": "rust", "task": "probe.echo_all", "id": own("rust")}
publish([[], {"x": 1, "y": 2}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}],
        serializer="json", headers=headers)
publish(json.dumps({"id": own("bare"), "task": "probe.echo_all", "kwargs": {"x": 3}}).encode(),
        content_type="application/json", content_encoding="utf-8")
answer([app.AsyncResult(own(name)).get(timeout=WAIT) for name in ("rust", "bare")])
"#,
    );
    assert_eq!(seen, json!([[[], { "x": 1, "y": 2 }], [[], { "x": 3 }]]));
}

/// No `lang`, no `retries`, no `root_id`, no correlation id, no content encoding.
fn headers_that_are_missing_do_not_matter(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
publish(b'[["bare"], {}, {}]', content_type="application/json", content_encoding="utf-8",
        headers={"task": "probe.echo", "id": own("bare")})
answer(app.AsyncResult(own("bare")).get(timeout=WAIT))
"#,
    );
    assert_eq!(seen, json!("bare"));
}

fn null_arguments_are_none(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
publish(b'[null, null, null]', content_type="application/json", content_encoding="utf-8",
        headers={"task": "probe.echo_all", "id": own("null")})
answer(app.AsyncResult(own("null")).get(timeout=WAIT))
"#,
    );
    assert_eq!(seen, json!([[], {}]));
}

fn request_tells_what_the_message_said(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
result = app.send_task("probe.request", task_id=own("all"), priority=4, headers={"x-mine": [1, {"a": None}]},
                       root_id=own("root"), parent_id=own("parent"), group_id=own("group"), group_index=2,
                       shadow="shown", time_limit=90, soft_time_limit=60, expires=3600)
request = result.get(timeout=WAIT)
stamped = app.signature("probe.request").set(stamped_headers=["customer"], customer="7").apply_async()
stamps = stamped.get(timeout=WAIT)
answer({"request": request, "stamps": [stamps["stamped_headers"], stamps["stamps"]]})
"#,
    );
    let request = &seen["request"];
    let own = |name: &str| json!(stage.own(name));
    let rows = [
        ("id", own("all")),
        ("task", json!("probe.request")),
        ("retries", json!(0)),
        ("root_id", own("root")),
        ("parent_id", own("parent")),
        ("group", own("group")),
        ("group_index", json!(2)),
        ("shadow", json!("shown")),
        ("timelimit", json!([90.0, 60.0])),
        ("priority", json!(4)),
        ("correlation_id", own("all")),
        ("hostname", json!("w1@localhost")),
        ("module", json!("probe")),
        ("headers", json!({ "x-mine": [1, { "a": null }] })),
    ];
    for (name, expected) in rows {
        assert_eq!(request[name], expected, "{name}: {request}");
    }
    for name in ["reply_to", "origin", "expires"] {
        assert!(request[name].as_str().is_some_and(|text| !text.is_empty()), "{name}: {request}");
    }
    assert_eq!(request["delivery_info"]["redelivered"], json!(false));
    assert_eq!(seen["stamps"], json!([["customer"], { "customer": "7" }]));
}
