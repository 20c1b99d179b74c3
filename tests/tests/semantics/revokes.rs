//! Revoked tasks.

use rtask_tests::Stage;
use serde_json::json;

facts![
    revoked_before_it_was_sent_is_not_run,
    revoked_while_it_waits_is_not_run,
    revoked_while_it_is_held_for_an_eta_is_not_run,
    revoked_while_it_is_parked_for_an_eta_is_not_run,
    revoke_writes_the_result_itself,
    revoke_of_many_ids_revokes_them_all,
    revoke_of_a_running_task_lets_it_end,
    revoke_of_a_finished_task_leaves_its_result,
    revoke_by_stamps_revokes_what_is_stamped_so,
    terminate_ends_a_running_task,
    terminate_by_stamps_ends_a_running_task,
    terminate_of_an_unknown_task_says_so,
    revoked_ids_are_kept_across_a_restart_unlike_celerys,
];

fn revoked_before_it_was_sent_is_not_run(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
reply = told("revoke", own("early"))
# The store knows it already; this is about what the worker does.
store().delete("celery-task-meta-" + own("early"))
answer({"reply": reply, "raised": raised(app.send_task("probe.echo", args=[1], task_id=own("early")))})
"#,
    );
    let expected = format!("tasks {{'{}'}} flagged as revoked", stage.own("early"));
    assert_eq!(seen["reply"], json!({ "ok": expected }));
    assert_eq!((&seen["raised"]["type"], &seen["raised"]["args"]), (&json!("TaskRevokedError"), &json!(["revoked"])));
}

fn revoked_while_it_waits_is_not_run(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
nap = occupy()
with announced(own("waits")) as records:
    result = app.send_task("probe.echo", args=[1], task_id=own("waits"))
    wait_until(lambda: not waiting())
    told("revoke", result.id)
    at_once = next(records)
    terminate(nap)
    # Met again when its turn came, and stored again, as Celery does.
    again = next(records)
app.send_task("probe.echo", args=[2]).get(timeout=WAIT)
answer([at_once["status"], again["status"], result.state])
"#,
    );
    assert_eq!(seen, json!(["REVOKED", "REVOKED", "REVOKED"]));
    stage.wait_until_unacknowledged("celery", 0);
}

fn revoked_while_it_is_held_for_an_eta_is_not_run(stage: &Stage) {
    stage.configure("worker_eta_horizon = 60");
    assert_is_not_run_after_its_eta(stage);
}

fn revoked_while_it_is_parked_for_an_eta_is_not_run(stage: &Stage) {
    assert_is_not_run_after_its_eta(stage);
}

fn assert_is_not_run_after_its_eta(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
with announced(own("held")) as records:
    result = app.send_task("probe.echo", args=[1], countdown=2, task_id=own("held"))
    told("revoke", result.id)
    at_once = raised(result)
    states = [next(records)["status"], next(records)["status"]]
answer({"at_once": at_once, "states": states, "waiting": waiting()})
"#,
    );
    assert_eq!(seen["at_once"]["args"], json!(["revoked"]));
    assert_eq!((&seen["states"], &seen["waiting"]), (&json!(["REVOKED", "REVOKED"]), &json!(0)));
    stage.wait_until_unacknowledged("celery", 0);
}

fn revoke_writes_the_result_itself(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
told("revoke", own("never-sent"))
# A retry that waits is revoked at once too.
retried = app.send_task("probe.elsewhere", kwargs={"countdown": 3600})
wait_until(lambda: retried.state == "RETRY")
told("revoke", retried.id)
answer([raised(app.AsyncResult(own("never-sent")))["args"], raised(retried)["args"]])
"#,
    );
    assert_eq!(seen, json!([["revoked"], ["revoked"]]));
}

fn revoke_of_many_ids_revokes_them_all(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
ids = [own(name) for name in "abc"]
reply = told("revoke", ids)["ok"]
[app.send_task("probe.echo", args=[1], task_id=task_id) for task_id in ids]
answer({"named": all(repr(task_id) in reply for task_id in ids), "reply": reply,
        "args": [raised(app.AsyncResult(task_id))["args"] for task_id in ids]})
"#,
    );
    assert_eq!((&seen["named"], &seen["args"]), (&json!(true), &json!([["revoked"], ["revoked"], ["revoked"]])));
    let reply = seen["reply"].as_str().unwrap_or_default();
    assert!(reply.starts_with("tasks {'") && reply.ends_with("'} flagged as revoked"), "{reply}");
}

fn revoke_of_a_running_task_lets_it_end(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
result = app.send_task("probe.tracked", args=[1])
wait_until(lambda: result.state == "STARTED")
told("revoke", result.id)
state = result.state
answer([state, result.get(timeout=WAIT)])
"#,
    );
    assert_eq!(seen, json!(["STARTED", "w1@localhost"]));
}

fn revoke_of_a_finished_task_leaves_its_result(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
good, bad = app.send_task("probe.echo", args=[1]), app.send_task("probe.auto", args=[9, "KeyError"])
good.get(timeout=WAIT), raised(bad)
told("revoke", [good.id, bad.id])
answer([app.AsyncResult(good.id).state, app.AsyncResult(bad.id).state])
"#,
    );
    assert_eq!(seen, json!(["SUCCESS", "FAILURE"]));
}

fn revoke_by_stamps_revokes_what_is_stamped_so(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
def stamped(**stamps):
    options = {"stamped_headers": list(stamps), **stamps}
    return app.signature("probe.echo", args=[1]).set(**options).apply_async()

reply = told("revoke_by_stamped_headers", {"customer": ["7", "8"]})
answer({"reply": reply, "7": raised(stamped(customer="7"))["args"], "8": raised(stamped(customer=["1", "8"]))["args"],
        "9": stamped(customer="9").get(timeout=WAIT), "other": stamped(shop="7").get(timeout=WAIT)})
"#,
    );
    assert_eq!(
        seen,
        json!({
            "reply": { "ok": "headers {'customer': ['7', '8']} flagged as revoked, but not terminated" },
            "7": ["revoked"], "8": ["revoked"], "9": 1, "other": 1,
        })
    );
}

fn terminate_ends_a_running_task(stage: &Stage) {
    let worker = stage.probe(&["-c", "1"]);
    let before = worker.processes();
    let seen = stage.celery(
        r#"
nap = occupy()
reply = told("revoke", nap.id, terminate=True, signal="SIGKILL")
answer({"reply": reply == {"ok": f"terminate: {nap.id}"}, "raised": raised(nap),
        "next": app.send_task("probe.echo", args=[1]).get(timeout=WAIT)})
"#,
    );
    assert_eq!((&seen["reply"], &seen["next"]), (&json!(true), &json!(1)));
    let raised = &seen["raised"];
    assert_eq!((&raised["type"], &raised["args"]), (&json!("TaskRevokedError"), &json!(["terminated"])));
    assert_eq!(worker.processes(), before);
    stage.wait_until_unacknowledged("celery", 0);
}

fn terminate_by_stamps_ends_a_running_task(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
nap = app.signature("probe.nap", args=[3600]).set(stamped_headers=["customer"], customer="7").apply_async()
wait_until(lambda: nap.state == "NAPPING")
told("revoke_by_stamped_headers", {"customer": "7"}, terminate=True)
answer(raised(nap)["args"])
"#,
    );
    assert_eq!(seen, json!(["terminated"]));
}

fn terminate_of_an_unknown_task_says_so(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let reply = stage.celery(r#"answer(told("revoke", own("unknown"), terminate=True))"#);
    assert_eq!(reply, json!({ "ok": "terminate: tasks unknown" }));
}

fn revoked_ids_are_kept_across_a_restart_unlike_celerys(stage: &Stage) {
    let worker = stage.probe(&["-c", "1"]);
    stage.celery(
        r#"
told("revoke", own("kept"))
told("revoke_by_stamped_headers", {"customer": "7"})
store().delete("celery-task-meta-" + own("kept"))
answer(None)
"#,
    );
    worker.ask_to_end();
    assert_eq!(worker.wait().code(), Some(0));
    let _next = stage.worker("w2", &["-c", "1"]);
    let seen = stage.celery(
        r#"
by_id = app.send_task("probe.echo", args=[1], task_id=own("kept"))
by_stamp = app.signature("probe.echo", args=[1]).set(stamped_headers=["customer"], customer="7").apply_async()
answer([raised(by_id)["args"], raised(by_stamp)["args"]])
"#,
    );
    assert_eq!(seen, json!([["revoked"], ["revoked"]]));
}
