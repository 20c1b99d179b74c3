//! Retries: asked for by the task, or automatic.

use rtask_tests::Stage;
use serde_json::json;

facts![
    retry_stores_its_cause_and_keeps_the_id,
    retry_keeps_what_the_message_said,
    retry_changes_what_the_task_asks_for,
    retry_stays_in_its_queue,
    retry_waits_for_its_countdown,
    retry_of_an_early_task_is_a_new_message_too,
    max_retries_without_a_cause_is_max_retries_exceeded,
    max_retries_raises_the_original_exception,
    max_retries_of_the_retry_goes_before_the_tasks,
    autoretry_tries_again_and_backs_off,
    autoretry_ends_with_the_original_exception,
    autoretry_heeds_which_exceptions_are_meant,
];

fn retry_stores_its_cause_and_keeps_the_id(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
with announced(own("flaky")) as records:
    result = app.send_task("probe.flaky", args=[2], task_id=own("flaky"))
    stored = [next(records) for number in range(3)]
answer({"value": result.get(timeout=WAIT), "stored": stored})
"#,
    );
    let (stored, id) = (&seen["stored"], json!(stage.own("flaky")));
    for (number, retry) in [(1, &stored[0]), (2, &stored[1])] {
        let cause = json!({
            "exc_type": "ValueError", "exc_message": [format!("{number} of 2")], "exc_module": "builtins"
        });
        assert_eq!((&retry["status"], &retry["task_id"], &retry["result"]), (&json!("RETRY"), &id, &cause));
        assert_eq!(retry["date_done"], json!(null));
    }
    assert_eq!((&stored[2]["status"], &stored[2]["task_id"], &seen["value"]), (&json!("SUCCESS"), &id, &json!(2)));
    // golden/03_result_backend_redis/04_retry_then_success.json: a retry is a child of its own task.
    assert_eq!(stored[2]["parent_id"], id);
}

fn retry_keeps_what_the_message_said(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let request = stage.celery(
        r#"
result = app.send_task("probe.elsewhere", task_id=own("kept"), root_id=own("root"), parent_id=own("parent"), priority=3,
                       headers={"tenant": "a"}, time_limit=50, soft_time_limit=40, shadow="seen as", expires=3600)
answer(result.get(timeout=WAIT))
"#,
    );
    assert_eq!((&request["id"], &request["retries"]), (&json!(stage.own("kept")), &json!(1)));
    assert_eq!((&request["root_id"], &request["parent_id"]), (&json!(stage.own("root")), &json!(stage.own("kept"))));
    assert_eq!((&request["priority"], &request["headers"]["tenant"]), (&json!(3), &json!("a")));
    assert_eq!((&request["timelimit"], &request["shadow"]), (&json!([50.0, 40.0]), &json!("seen as")));
    assert!(request["expires"].is_string(), "{request}");
}

fn retry_changes_what_the_task_asks_for(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1", "-Q", "celery,other"]);
    let request = stage.celery(
        r#"
result = app.send_task("probe.elsewhere", kwargs={"queue": "other", "priority": 6})
answer(result.get(timeout=WAIT))
"#,
    );
    assert_eq!((&request["priority"], &request["delivery_info"]["routing_key"]), (&json!(6), &json!("other")));
}

fn retry_stays_in_its_queue(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1", "-Q", "celery,other"]);
    let request = stage.celery(r#"answer(app.send_task("probe.elsewhere", queue="other").get(timeout=WAIT))"#);
    assert_eq!((&request["retries"], &request["delivery_info"]["routing_key"]), (&json!(1), &json!("other")));
}

fn retry_waits_for_its_countdown(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
sent = now()
result = app.send_task("probe.elsewhere", kwargs={"countdown": 1.5})
wait_until(lambda: result.state == "RETRY")
# Meanwhile others run.
value = app.send_task("probe.echo", args=[1]).get(timeout=WAIT)
request = result.get(timeout=WAIT)
early = done_at(result) < sent + timedelta(seconds=1.5)
answer({"value": value, "early": early, "eta": datetime.fromisoformat(request["eta"]) > sent})
"#,
    );
    assert_eq!(seen, json!({ "value": 1, "early": false, "eta": true }));
}

fn retry_of_an_early_task_is_a_new_message_too(stage: &Stage) {
    stage.configure("task_acks_late = false");
    let _worker = stage.probe(&["-c", "1"]);
    assert_eq!(stage.celery(r#"answer(app.send_task("probe.flaky", args=[2]).get(timeout=WAIT))"#), json!(2));
}

fn max_retries_without_a_cause_is_max_retries_exceeded(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
with announced(own("always")) as records:
    result = app.send_task("probe.always", task_id=own("always"))
    states = [next(records)["status"] for number in range(3)]
try:
    result.get(timeout=WAIT)
except MaxRetriesExceededError as error:
    answer({"states": states, "message": str(error)})
"#,
    );
    assert_eq!(seen["states"], json!(["RETRY", "RETRY", "FAILURE"]));
    let message = seen["message"].as_str().unwrap_or_default();
    assert!(message.contains("probe.always") && message.contains(&stage.own("always")), "{message}");
}

fn max_retries_raises_the_original_exception(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(r#"answer(raised(app.send_task("probe.always", args=["boom"])))"#);
    assert_eq!((&seen["type"], &seen["args"]), (&json!("ValueError"), &json!(["boom"])));
}

fn max_retries_of_the_retry_goes_before_the_tasks(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let states = stage.celery(
        r#"
with announced(own("once")) as records:
    app.send_task("probe.always", kwargs={"max_retries": 1}, task_id=own("once"))
    answer([next(records)["status"] for number in range(2)])
"#,
    );
    assert_eq!(states, json!(["RETRY", "FAILURE"]));
}

fn autoretry_tries_again_and_backs_off(stage: &Stage) {
    let _worker = stage.probe(&["-c", "2"]);
    let seen = stage.celery(
        r#"
sent = now()
plain, named = app.send_task("probe.auto", args=[2]), app.send_task("probe.auto", args=[1, "Busy", "shop.errors"])
values = [plain.get(timeout=WAIT), named.get(timeout=WAIT)]
# A second each: the backoff's first, and its maximum.
answer({"values": values, "early": done_at(plain) < sent + timedelta(seconds=2)})
"#,
    );
    assert_eq!(seen, json!({ "values": [2, 1], "early": false }));
}

fn autoretry_ends_with_the_original_exception(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(r#"answer(raised(app.send_task("probe.auto_all", args=["RuntimeError"])))"#);
    assert_eq!((&seen["type"], &seen["args"]), (&json!("RuntimeError"), &json!([1])));
}

fn autoretry_heeds_which_exceptions_are_meant(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
answer([raised(app.send_task("probe.auto", args=[9, "KeyError"])),
        raised(app.send_task("probe.auto", args=[9, "UnicodeError"])),
        raised(app.send_task("probe.auto_all", args=["KeyError"]))])
"#,
    );
    for (seen, class) in [(&seen[0], "KeyError"), (&seen[1], "UnicodeError"), (&seen[2], "KeyError")] {
        assert_eq!((&seen["type"], &seen["args"]), (&json!(class), &json!([0])));
    }
}
