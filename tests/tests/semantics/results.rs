//! How results are kept.

use rtask_tests::Stage;
use serde_json::json;

facts![
    result_ttl_is_a_day_without_settings,
    result_ttl_is_result_expires,
    result_ttl_of_zero_keeps_results_for_ever,
    result_extended_tells_of_the_task,
    write_guard_keeps_a_stored_success,
    children_are_the_tasks_that_a_task_has_sent,
];

const TTL: &str = r#"
result = app.send_task("probe.echo", args=[1])
result.get(timeout=WAIT)
answer(record(result.id)["ttl"])
"#;

fn result_ttl_is_a_day_without_settings(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seconds = stage.celery(TTL).as_i64().unwrap_or_default();
    assert!((86_000..=86_400).contains(&seconds), "{seconds}");
}

fn result_ttl_is_result_expires(stage: &Stage) {
    stage.configure("result_expires = 1000");
    let _worker = stage.probe(&["-c", "1"]);
    let seconds = stage.celery(TTL).as_i64().unwrap_or_default();
    assert!((800..=1000).contains(&seconds), "{seconds}");
}

/// -1 is what Redis says of a key without an end.
fn result_ttl_of_zero_keeps_results_for_ever(stage: &Stage) {
    stage.configure("result_expires = 0");
    let _worker = stage.probe(&["-c", "1"]);
    assert_eq!(stage.celery(TTL), json!(-1));
}

/// golden/03_result_backend_redis/50_result_extended.json.
fn result_extended_tells_of_the_task(stage: &Stage) {
    stage.configure("result_extended = true");
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
app.conf.result_extended = True
good = app.send_task("probe.echo_all", args=[1, 2], kwargs={"k": "v"})
bad = app.send_task("probe.auto_all", args=["KeyError"])
good.get(timeout=WAIT), raised(bad)
result = app.AsyncResult(good.id)
answer({"good": [result.name, result.args, result.kwargs, result.worker, result.retries, result.queue],
        "bad": record(bad.id)["record"]})
"#,
    );
    assert_eq!(seen["good"], json!(["probe.echo_all", [1, 2], { "k": "v" }, "w1@localhost", 0, "celery"]));
    let bad = &seen["bad"];
    assert_eq!(
        (&bad["name"], &bad["args"], &bad["queue"]),
        (&json!("probe.auto_all"), &json!(["KeyError"]), &json!("celery"))
    );
}

fn write_guard_keeps_a_stored_success(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
app.backend.store_result(own("done"), 42, "SUCCESS")
app.send_task("probe.auto", args=[9, "KeyError"], task_id=own("done"))
app.send_task("probe.echo", args=[1]).get(timeout=WAIT)
answer(app.AsyncResult(own("done")).get(timeout=WAIT))
"#,
    );
    assert_eq!(seen, json!(42));
}

/// golden/03_result_backend_redis/33_children.json.
fn children_are_the_tasks_that_a_task_has_sent(stage: &Stage) {
    let _worker = stage.probe(&["-c", "2"]);
    let seen = stage.celery(
        r#"
parent = app.send_task("probe.send", args=["probe.request"], root_id=own("root"))
child_id = parent.get(timeout=WAIT)
[child] = parent.children
request = child.get(timeout=WAIT)
quiet = app.send_task("probe.echo", args=[1])
quiet.get(timeout=WAIT)
answer({"same": child.id == child_id, "parent": request["parent_id"] == parent.id, "root": request["root_id"],
        "stored": record(parent.id)["record"]["children"] == [[[child_id, None], None]], "none": quiet.children})
"#,
    );
    assert_eq!(seen, json!({ "same": true, "parent": true, "root": stage.own("root"), "stored": true, "none": [] }));
}
