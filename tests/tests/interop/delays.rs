//! What one of them put aside in RabbitMQ, the other runs when it is due.

use rtask_tests::{Stage, Worker};
use serde_json::json;

/// golden/01b_native_delayed_delivery: a client that knows of quorum queues parks the message itself.
#[test]
fn a_task_that_celerys_client_parked_is_run_by_rtask_when_it_is_due() {
    let stage = Stage::servers();
    stage.configure("task_default_queue_type = \"quorum\"\ntask_default_exchange_type = \"topic\"\n");
    stage.configure_celery(&json!({ "task_default_queue_type": "quorum", "task_default_exchange_type": "topic" }));
    let _ours = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
due = now() + timedelta(seconds=4)
result = app.send_task("probe.tracked", args=[0], countdown=4)
# 4 is the third bit.
wait_until(lambda: waiting("celery_delayed_2") == 1)
answer({"ran_on": result.get(timeout=WAIT), "in_time": done_at(result) >= due})
"#,
    );
    assert_eq!(seen, json!({ "ran_on": "w1@localhost", "in_time": true }));
}

#[test]
fn a_task_that_rtask_parked_is_run_by_celery_when_it_is_due() {
    let stage = Stage::servers();
    let ours = stage.probe(&["-c", "1"]);
    stage.celery(
        r#"
store().set("due", (now() + timedelta(seconds=7)).isoformat())
app.send_task("probe.tracked", args=[0], countdown=7, task_id=own("parked"))
wait_until(lambda: waiting("celery_delayed_2") == 1)
answer(None)
"#,
    );
    // Without a word to anyone, and with nothing in its hands.
    assert_eq!(stage.unacknowledged("celery"), 0);
    ours.kill();
    let _theirs = Worker::start_celery(&stage, "c1", &["-P", "solo"]);
    let seen = stage.celery(
        r#"
result = app.AsyncResult(own("parked"))
ran_on = result.get(timeout=WAIT)
answer({"ran_on": ran_on, "in_time": done_at(result) >= datetime.fromisoformat(store().get("due"))})
"#,
    );
    assert_eq!(seen, json!({ "ran_on": "c1@localhost", "in_time": true }));
}
