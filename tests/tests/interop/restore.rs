//! What a worker held when it was killed, a worker of the other kind takes up.

use rtask_tests::{Stage, Worker, environment, facts, wait_until};
use serde_json::{Value, json};

facts![rabbitmq = servers, redis = redis; [
    celery_restores_what_a_killed_rtask_worker_held,
    rtask_restores_what_a_killed_celery_worker_held,
]];

/// Redis never learns that a worker has died; the others find out by the time that its messages have been held
/// (golden/02_redis_transport/23_visibility_timeout_restore_fast_sweep.json).
fn soon_visible(stage: &Stage, seconds: u32) {
    if stage.broker.starts_with("redis") {
        stage.configure(&format!("[broker_transport_options]\nvisibility_timeout = {seconds}\n"));
        let options = json!({
            "visibility_timeout": seconds, "unacked_restore_interval": 0.5, "unacked_restore_throttle": 1,
        });
        stage.configure_celery(&json!({ "broker_transport_options": options }));
    }
}

fn celery(stage: &Stage) -> Worker {
    Worker::start_celery(stage, "c1", &["-P", "solo"])
}

/// One task that runs and will never end on `node`, and two behind it that wait: in its worker, unless that does not look
/// at its queue while it runs a task, as Celery's does on Redis.
fn give_tasks_to(stage: &Stage, node: &str) {
    stage.celery(&format!(
        r#"
held = app.send_task("probe.tracked", args=[0, "{node}"], task_id=own("held-0"))
wait_until(lambda: held.state == "STARTED")
for number in (1, 2):
    app.send_task("probe.tracked", args=[0], task_id=own(f"held-{{number}}"))
wait_until(lambda: waiting() == 0 or "{node}" == "c1@localhost")
answer(None)
"#
    ));
}

fn who_ran_them(stage: &Stage) -> Value {
    stage.celery(r#"answer([app.AsyncResult(own(f"held-{number}")).get(timeout=WAIT) for number in range(3)])"#)
}

fn assert_nothing_is_left(stage: &Stage) {
    assert_eq!(stage.celery("answer(waiting())"), json!(0));
    wait_until("nothing is held", || stage.unacknowledged("celery") == 0);
}

fn celery_restores_what_a_killed_rtask_worker_held(stage: &Stage) {
    soon_visible(stage, 2);
    let ours = stage.probe(&["-c", "1"]);
    give_tasks_to(stage, "w1@localhost");
    ours.kill();
    let _theirs = celery(stage);
    assert_eq!(who_ran_them(stage), json!(vec!["c1@localhost"; 3]));
    assert_nothing_is_left(stage);
}

fn rtask_restores_what_a_killed_celery_worker_held(stage: &Stage) {
    soon_visible(stage, 2);
    let theirs = celery(stage);
    give_tasks_to(stage, "c1@localhost");
    theirs.kill();
    let _ours = stage.probe(&["-c", "1"]);
    assert_eq!(who_ran_them(stage), json!(vec!["w1@localhost"; 3]));
    assert_nothing_is_left(stage);
}

/// A task of 90 s and a visibility timeout of 10 s, in a hurry: of 15 s and 2 s. Whoever holds a message renews its
/// lease, be the task running or waiting for its turn, so that neither kind of worker takes it away.
#[test]
fn a_task_of_90_s_on_redis_with_visibility_timeout_10_runs_once() {
    let (task, timeout) = if environment::is_full() { (90, 10) } else { (15, 2) };
    let stage = Stage::redis();
    soon_visible(&stage, timeout);
    let _ours = stage.probe(&["-c", "1"]);
    stage.celery(&format!(
        r#"
long = app.send_task("probe.tracked", args=[{task}], task_id=own("long"))
wait_until(lambda: long.state == "STARTED")
app.send_task("probe.tracked", args=[0], task_id=own("behind"))
wait_until(lambda: waiting() == 0)
answer(None)
"#
    ));
    // These have nothing to do but to look for what nobody seems to hold.
    let _other = stage.worker("w2", &["-c", "1"]);
    let _theirs = celery(&stage);
    let seen = stage.celery(
        r#"
with announced(own("long")) as long, announced(own("behind")) as behind:
    states = []
    for records in (long, behind):
        for record in records:
            states.append(record["status"])
            if record["status"] == "SUCCESS":
                break
    ran_on = [app.AsyncResult(own(name)).get(timeout=WAIT) for name in ("long", "behind")]
answer({"states": states, "ran_on": ran_on, "waiting": waiting()})
"#,
    );
    // Neither began a second time.
    assert_eq!(seen["states"], json!(["SUCCESS", "STARTED", "SUCCESS"]));
    assert_eq!(seen["ran_on"], json!(["w1@localhost", "w1@localhost"]));
    assert_eq!(seen["waiting"], 0);
    wait_until("nothing is held", || stage.unacknowledged("celery") == 0);
}
