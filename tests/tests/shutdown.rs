//! A worker that is asked to end (TERM) finishes what it began and leaves the rest to others.

use rtask_tests::{Stage, Worker, environment, proc};
use serde_json::json;

#[test]
fn a_running_task_is_finished_and_waiting_ones_are_left() {
    let stage = Stage::servers();
    let worker = stage.worker("w1", &["-c", "1", "-l", "DEBUG"]);
    stage.deploy(&environment::probe());
    stage.celery(
        r#"
result = app.send_task("probe.tracked", args=[8.0], task_id="running")
wait_until(lambda: result.state == "STARTED")
for number in range(20):
    app.send_task("probe.tracked", args=[0.0], task_id=f"waiting-{number}")
answer(None)
"#,
    );
    worker.ask_to_end();
    let status = worker.wait();
    assert_eq!(status.code(), Some(0));
    let states = stage.celery(
        r#"
waiting = [app.AsyncResult(f"waiting-{number}").state for number in range(20)]
answer([app.AsyncResult("running").state, sorted(set(waiting))])
"#,
    );
    assert_eq!(states, json!(["SUCCESS", ["PENDING"]]));

    let _next = stage.worker("w2", &["-c", "1"]);
    let values =
        stage.celery(r#"answer([app.AsyncResult(f"waiting-{number}").get(timeout=WAIT) for number in range(20)])"#);
    assert_eq!(values, json!(vec!["w2@localhost"; 20]));
}

/// A terminal tells the worker's children too; they must leave it to the worker.
#[test]
fn ctrl_c_lets_the_running_task_finish() {
    let stage = Stage::servers();
    let worker = Worker::start_as_job(&stage, "w1", &["-c", "1"]);
    stage.deploy(&environment::probe());
    stage.celery(
        r#"
result = app.send_task("probe.tracked", args=[4.0], task_id="running")
wait_until(lambda: result.state == "STARTED")
answer(None)
"#,
    );
    worker.press_ctrl_c();
    assert_eq!(worker.wait().code(), Some(0));
    assert_eq!(stage.celery(r#"answer(app.AsyncResult("running").state)"#), json!("SUCCESS"));
}

#[test]
fn an_idle_worker_ends_at_once_and_takes_its_children_with_it() {
    let stage = Stage::sqlite();
    let worker = stage.worker("w1", &["-c", "1"]);
    stage.deploy(&environment::hello());
    let children = worker.children();
    assert!(!children.is_empty());
    worker.ask_to_end();
    assert_eq!(worker.wait().code(), Some(0));
    children.into_iter().for_each(proc::wait_for_end);
}
