//! `link` and `link_error`.

use rtask_tests::Stage;
use serde_json::json;

facts![
    callback_gets_the_result_first,
    callbacks_of_several_are_a_group,
    callback_that_is_immutable_gets_its_own_arguments_only,
    callbacks_are_known_as_children_when_the_result_is_stored,
    callbacks_do_not_follow_a_failure,
    errback_of_the_old_style_gets_the_id,
    errback_of_three_arguments_gets_request_exception_and_traceback,
    errback_that_is_not_registered_is_sent_with_the_id,
    errbacks_do_not_follow_a_success,
    errbacks_follow_the_last_retry_only,
];

fn callback_gets_the_result_first(stage: &Stage) {
    let _worker = stage.probe(&["-c", "2"]);
    let seen = stage.celery(
        r#"
callback = app.signature("probe.echo_all", args=["own"], kwargs={"k": 1}, task_id=own("callback"))
nested = app.signature("probe.request", task_id=own("request"), immutable=True)
result = app.send_task("probe.echo", args=[5], link=[callback])
request = app.send_task("probe.echo", args=[5], link=nested)
answer({"value": result.get(timeout=WAIT), "callback": app.AsyncResult(own("callback")).get(timeout=WAIT),
        "parent": app.AsyncResult(own("request")).get(timeout=WAIT)["parent_id"] == request.id,
        "root": app.AsyncResult(own("request")).get(timeout=WAIT)["root_id"] == request.id})
"#,
    );
    assert_eq!(seen, json!({ "value": 5, "callback": [[5, "own"], { "k": 1 }], "parent": true, "root": true }));
}

/// golden/03_result_backend_redis/17_links_two.json.
fn callbacks_of_several_are_a_group(stage: &Stage) {
    let _worker = stage.probe(&["-c", "2"]);
    let seen = stage.celery(
        r#"
links = [app.signature("probe.echo_all", args=[1]), app.signature("probe.request", immutable=True)]
result = app.send_task("probe.echo", args=[4], link=links)
result.get(timeout=WAIT)
[group] = result.children
values = group.get(timeout=WAIT)
answer({"first": values[0], "group": values[1]["group"] == group.id, "size": len(group.results)})
"#,
    );
    assert_eq!(seen, json!({ "first": [[4, 1], {}], "group": true, "size": 2 }));
}

fn callback_that_is_immutable_gets_its_own_arguments_only(stage: &Stage) {
    let _worker = stage.probe(&["-c", "2"]);
    let seen = stage.celery(
        r#"
result = app.send_task("probe.echo", args=[4], link=app.signature("probe.echo_all", args=[7], immutable=True))
result.get(timeout=WAIT)
answer(result.children[0].get(timeout=WAIT))
"#,
    );
    assert_eq!(seen, json!([[7], {}]));
}

/// Order after success: callbacks first, then the result.
fn callbacks_are_known_as_children_when_the_result_is_stored(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
with announced(own("linked")) as records:
    callback = app.signature("probe.echo", task_id=own("callback"))
    app.send_task("probe.echo", args=[4], task_id=own("linked"), link=callback)
    stored = next(records)
answer([stored["children"] == [[[own("callback"), None], None]], app.AsyncResult(own("callback")).get(timeout=WAIT)])
"#,
    );
    assert_eq!(seen, json!([true, 4]));
}

fn callbacks_do_not_follow_a_failure(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
callback = app.signature("probe.echo", task_id=own("callback"))
raised(app.send_task("probe.auto_all", args=["KeyError"], link=callback))
app.send_task("probe.echo", args=[1]).get(timeout=WAIT)
answer(is_stored(own("callback")))
"#,
    );
    assert_eq!(seen, json!(false));
}

fn errback_of_the_old_style_gets_the_id(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
errback = app.signature("probe.errback_old", task_id=own("errback"))
failed = app.send_task("probe.auto_all", args=["KeyError"], link_error=errback)
answer([raised(failed)["type"], app.AsyncResult(own("errback")).get(timeout=WAIT) == failed.id])
"#,
    );
    assert_eq!(seen, json!(["KeyError", true]));
}

/// Celery calls it inside the worker, and it has no result; here it is a task like any other.
fn errback_of_three_arguments_gets_request_exception_and_traceback(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
errback = app.signature("probe.errback_new", task_id=own("errback"))
failed = app.send_task("probe.auto_all", args=["KeyError"], link_error=[errback])
raised(failed)
answer({"told": app.AsyncResult(own("errback")).get(timeout=WAIT), "id": failed.id})
"#,
    );
    let (request, exception) = (&seen["told"]["request"], &seen["told"]["exc"]);
    assert_eq!((&request["id"], &request["task"]), (&seen["id"], &json!("probe.auto_all")));
    assert_eq!((&request["args"], &exception["exc_type"]), (&json!(["KeyError"]), &json!("KeyError")));
    assert_eq!(exception["exc_message"], json!([0]));
}

/// golden/03_result_backend_redis/19b_link_error_unregistered.json.
fn errback_that_is_not_registered_is_sent_with_the_id(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
errback = app.signature("other.errback", queue="elsewhere")
failed = app.send_task("probe.auto_all", args=["KeyError"], link_error=errback)
sent = take("elsewhere")
answer({"id": failed.id, "task": sent["headers"]["task"], "parent": sent["headers"]["parent_id"],
        "args": json.loads(sent["body"])[0]})
"#,
    );
    assert_eq!(seen["task"], "other.errback");
    assert_eq!((&seen["args"], &seen["parent"]), (&json!([seen["id"]]), &seen["id"]));
}

fn errbacks_do_not_follow_a_success(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
errback = app.signature("probe.errback_old", task_id=own("errback"))
app.send_task("probe.echo", args=[1], link_error=errback).get(timeout=WAIT)
app.send_task("probe.echo", args=[1]).get(timeout=WAIT)
answer(is_stored(own("errback")))
"#,
    );
    assert_eq!(seen, json!(false));
}

fn errbacks_follow_the_last_retry_only(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
with announced(own("errback")) as records:
    errback = app.signature("probe.request", task_id=own("errback"), immutable=True)
    failed = app.send_task("probe.always", args=["boom"], link_error=errback)
    raised(failed)
    first = next(records)
    app.send_task("probe.echo", args=[1]).get(timeout=WAIT)
    answer([first["status"], first["result"]["parent_id"] == failed.id])
"#,
    );
    assert_eq!(seen, json!(["SUCCESS", true]));
}
