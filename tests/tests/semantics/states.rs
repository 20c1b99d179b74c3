//! States beside success and failure, and whether they are stored.

use rtask_tests::Stage;
use serde_json::json;

facts![
    custom_states_are_stored_with_their_meta,
    track_started_tells_who_runs_the_task,
    track_started_of_the_settings_is_for_tasks_that_do_not_say,
    ignore_result_of_the_message_goes_before_the_tasks,
    store_errors_even_if_ignored_stores_errors_only,
    custom_task_ids_are_kept,
];

fn custom_states_are_stored_with_their_meta(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
with announced(own("progress")) as records:
    result = app.send_task("probe.progress", args=[3], task_id=own("progress"))
    stored = []
    while not stored or stored[-1]["status"] != "SUCCESS":
        stored.append(next(records))
nap = occupy()
info = nap.info
terminate(nap)
answer({"states": [[record["status"], record["result"]] for record in stored], "info": info})
"#,
    );
    assert_eq!(
        seen["states"],
        json!([
            ["PROGRESS", { "done": 1, "of": 3 }],
            ["PROGRESS", { "done": 2, "of": 3 }],
            ["PROGRESS", { "done": 3, "of": 3 }],
            ["SUCCESS", 3],
        ])
    );
    assert_eq!(seen["info"], json!({ "redelivered": false }));
}

fn track_started_tells_who_runs_the_task(stage: &Stage) {
    let worker = stage.probe(&["-c", "1"]);
    let states = stage.celery(
        r#"
with announced(own("tracked")) as records:
    app.send_task("probe.tracked", args=[0.05], task_id=own("tracked"))
    answer([next(records), next(records)])
"#,
    );
    assert_eq!((&states[0]["status"], &states[1]["status"]), (&json!("STARTED"), &json!("SUCCESS")));
    assert_eq!(states[0]["result"], json!({ "pid": worker.pid(), "hostname": "w1@localhost" }));
    assert_eq!(states[1]["task_id"], json!(stage.own("tracked")));
}

fn track_started_of_the_settings_is_for_tasks_that_do_not_say(stage: &Stage) {
    stage.configure("task_track_started = true");
    let _worker = stage.probe(&["-c", "1"]);
    let states = stage.celery(
        r#"
with announced(own("echo")) as records:
    app.send_task("probe.echo", args=[1], task_id=own("echo"))
    answer([next(records)["status"], next(records)["status"]])
"#,
    );
    assert_eq!(states, json!(["STARTED", "SUCCESS"]));
}

/// One task after the other: when the last is done, all are.
fn ignore_result_of_the_message_goes_before_the_tasks(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let stored = stage.celery(
        r#"
by_call = app.send_task("probe.echo", args=[1], ignore_result=True)
by_task = app.send_task("probe.quiet")
failed = app.send_task("probe.strict", ignore_result=True)
wanted = app.send_task("probe.quiet", ignore_result=False)
wanted.get(timeout=WAIT)
answer([is_stored(result.id) for result in (by_call, by_task, failed, wanted)])
"#,
    );
    assert_eq!(stored, json!([false, false, false, true]));
}

fn store_errors_even_if_ignored_stores_errors_only(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
quiet = app.send_task("probe.quiet_until_it_fails", args=[False])
failed = app.send_task("probe.quiet_until_it_fails", args=[True])
answer({"raised": raised(app.AsyncResult(failed.id)), "stored": is_stored(quiet.id)})
"#,
    );
    assert_eq!((&seen["raised"]["args"], &seen["stored"]), (&json!(["no longer quiet"]), &json!(false)));
}

fn custom_task_ids_are_kept(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
ids = [own("an id with spaces & ümläuts/:"), own("x" * 200)]
results = [app.send_task("probe.request", task_id=task_id) for task_id in ids]
answer([result.get(timeout=WAIT)["id"] == task_id for result, task_id in zip(results, ids)])
"#,
    );
    assert_eq!(seen, json!([true, true]));
}
