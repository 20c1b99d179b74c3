//! When a message is acknowledged, and what becomes of it when its task does not succeed.

use rtask_tests::{Stage, Worker};
use serde_json::{Value, json};

facts![
    early_ack_of_a_task_that_asks_for_it_is_sent_before_it_runs,
    late_ack_is_the_default_unlike_celerys,
    acks_late_and_failure_are_acknowledged,
    acks_late_and_failure_are_rejected_if_the_task_says_so,
    acks_late_and_timeout_are_acknowledged,
    acks_late_and_timeout_go_back_if_the_task_says_so_though_not_for_ever_unlike_celerys,
    worker_lost_runs_a_late_task_again,
    worker_lost_fails_a_late_task_that_has_no_second_chance,
    worker_lost_fails_an_early_task,
    ignore_settles_the_message_and_stores_nothing,
    reject_stores_a_failure_and_leaves_a_dead_letter_unlike_celerys,
    reject_with_requeue_runs_the_task_again,
    reject_with_requeue_is_not_for_ever_unlike_celerys,
];

/// A killed worker's messages are restored so soon, where the broker has no connections to watch.
const QUICK_RESTORE: &str = "broker_transport_options = { visibility_timeout = 2 }\n";

/// What nobody holds and nobody waits for, here and among the dead letters.
fn assert_nothing_is_left(stage: &Stage) {
    stage.wait_until_unacknowledged("celery", 0);
    assert_eq!(stage.celery(r#"answer([waiting(), waiting("celery.dead")])"#), json!([0, 0]));
}

fn early_ack_of_a_task_that_asks_for_it_is_sent_before_it_runs(stage: &Stage) {
    stage.configure(QUICK_RESTORE);
    let worker = stage.probe(&["-c", "1"]);
    let id = start(stage, "probe.early");
    stage.wait_until_unacknowledged("celery", 0);
    worker.kill();
    // One task after the other: when the second is done, the first would have been begun.
    let _other = stage.worker("w2", &["-c", "1"]);
    let states = stage.celery(&format!(
        r#"
next = app.send_task("probe.echo", args=[1])
next.get(timeout=WAIT)
answer([app.AsyncResult({id}).state, next.state])
"#
    ));
    assert_eq!(states, json!(["STARTED", "SUCCESS"]));
}

fn late_ack_is_the_default_unlike_celerys(stage: &Stage) {
    stage.configure(QUICK_RESTORE);
    let worker = stage.probe(&["-c", "1"]);
    let id = stage.celery("answer(occupy().id)");
    stage.wait_until_unacknowledged("celery", 1);
    worker.kill();
    let _other = stage.worker("w2", &["-c", "1"]);
    let state = stage.celery(&format!(
        r#"
nap = app.AsyncResult({id})
wait_until(lambda: nap.info == {{"redelivered": True}})
terminate(nap)
answer(raised(nap)["args"])
"#
    ));
    assert_eq!(state, json!(["terminated"]));
    assert_nothing_is_left(stage);
}

/// An id, as Python writes it, of a task that has started and does not end by itself.
fn start(stage: &Stage, task: &str) -> Value {
    stage.celery(&format!(
        r#"
result = app.send_task("{task}", args=[3600])
wait_until(lambda: result.state == "STARTED")
answer(result.id)
"#
    ))
}

fn acks_late_and_failure_are_acknowledged(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(r#"answer(raised(app.send_task("probe.auto", args=[9, "KeyError"])))"#);
    assert_eq!((&seen["type"], &seen["args"]), (&json!("KeyError"), &json!([0])));
    assert_nothing_is_left(stage);
}

fn acks_late_and_failure_are_rejected_if_the_task_says_so(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
result = app.send_task("probe.strict")
answer({"raised": raised(result), "id": result.id, "dead": take("celery.dead")})
"#,
    );
    assert_eq!((&seen["raised"]["type"], &seen["raised"]["args"]), (&json!("ValueError"), &json!(["strict"])));
    let headers = &seen["dead"]["headers"];
    assert_eq!((&headers["id"], &headers["x-rtask-death-code"]), (&seen["id"], &json!("failed")));
    assert_nothing_is_left(stage);
}

fn acks_late_and_timeout_are_acknowledged(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(r#"answer(raised(app.send_task("probe.nap", args=[3600], time_limit=0.5)))"#);
    assert_eq!((&seen["type"], &seen["args"]), (&json!("TimeLimitExceeded"), &json!([0.5])));
    assert_nothing_is_left(stage);
}

fn acks_late_and_timeout_go_back_if_the_task_says_so_though_not_for_ever_unlike_celerys(stage: &Stage) {
    stage.configure("delivery_limit = 2");
    let _worker = stage.probe(&["-c", "1"]);
    let attempts = stage.celery(
        r#"
task_id = own("strict")
with announced(task_id) as records:
    app.send_task("probe.strict_timeout", task_id=task_id)
    answer([next(records)["result"]["exc_type"] for attempt in range(2)])
"#,
    );
    assert_eq!(attempts, json!(["TimeLimitExceeded", "TimeLimitExceeded"]));
    stage.wait_until_unacknowledged("celery", 0);
    assert_eq!(stage.celery("answer(waiting())"), json!(0));
}

fn worker_lost_runs_a_late_task_again(stage: &Stage) {
    let worker = stage.probe(&["-c", "1"]);
    let id = stage.celery("answer(occupy().id)");
    worker.kill_runner();
    let state = stage.celery(&format!(
        r#"
nap = app.AsyncResult({id})
wait_until(lambda: nap.info == {{"redelivered": True}})
terminate(nap)
answer(raised(nap)["args"])
"#
    ));
    assert_eq!(state, json!(["terminated"]));
}

fn worker_lost_fails_a_late_task_that_has_no_second_chance(stage: &Stage) {
    assert_fails_with_its_runner(stage, "probe.no_second_chance");
}

fn worker_lost_fails_an_early_task(stage: &Stage) {
    assert_fails_with_its_runner(stage, "probe.early");
}

fn assert_fails_with_its_runner(stage: &Stage, task: &str) {
    let worker: Worker = stage.probe(&["-c", "1"]);
    let id = start(stage, task);
    worker.kill_runner();
    let seen = stage.celery(&format!("answer(raised(app.AsyncResult({id})))"));
    assert_eq!((&seen["type"], &seen["module"]), (&json!("WorkerLostError"), &json!("billiard.exceptions")));
    assert_nothing_is_left(stage);
}

fn ignore_settles_the_message_and_stores_nothing(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
ignored = app.send_task("probe.ignore")
app.send_task("probe.echo", args=[1]).get(timeout=WAIT)
answer([ignored.state, is_stored(ignored.id)])
"#,
    );
    assert_eq!(seen, json!(["PENDING", false]));
    assert_nothing_is_left(stage);
}

/// golden/03_result_backend_redis/13_reject_late.json, and the letter beside it.
fn reject_stores_a_failure_and_leaves_a_dead_letter_unlike_celerys(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
result = app.send_task("probe.reject")
try:
    result.get(timeout=WAIT)
except Reject as error:
    answer({"args": error.args, "id": result.id, "dead": take("celery.dead")["headers"]})
"#,
    );
    assert_eq!(seen["args"], json!(["spam", false]));
    let dead = &seen["dead"];
    assert_eq!((&dead["id"], &dead["x-rtask-death-code"]), (&seen["id"], &json!("rejected")));
    assert_eq!(dead["x-rtask-death-reason"], "spam");
    assert_nothing_is_left(stage);
}

fn reject_with_requeue_runs_the_task_again(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(r#"answer(app.send_task("probe.reject", args=[True, True]).get(timeout=WAIT))"#);
    assert_eq!(seen, json!("delivered again"));
    assert_nothing_is_left(stage);
}

fn reject_with_requeue_is_not_for_ever_unlike_celerys(stage: &Stage) {
    stage.configure("delivery_limit = 3");
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
result = app.send_task("probe.reject", args=[True])
answer({"raised": raised(result), "id": result.id, "dead": take("celery.dead")["headers"]})
"#,
    );
    let dead = &seen["dead"];
    assert_eq!((&dead["id"], &dead["x-rtask-death-attempts"]), (&seen["id"], &json!(3)));
    assert_eq!(dead["x-rtask-death-code"], "delivery-limit");
    assert_eq!(seen["raised"]["type"], "WorkerLostError");
}
