//! Countdowns, ETAs and expiry.

use rtask_tests::Stage;
use serde_json::json;

facts![
    eta_is_not_run_before_it,
    eta_within_the_horizon_is_held_unacknowledged,
    eta_beyond_the_horizon_takes_no_prefetch_unlike_celerys,
    eta_without_an_offset_is_utc,
    eta_that_has_passed_is_run_at_once,
    expired_on_receipt_is_revoked_without_running,
    expired_before_execution_is_revoked_without_running,
    expires_in_the_future_is_no_reason_not_to_run,
];

fn eta_is_not_run_before_it(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
eta = now() + timedelta(seconds=1.5)
aware = app.send_task("probe.echo", args=[1], eta=eta)
elsewhere = app.send_task("probe.echo", args=[2], eta=eta.astimezone(timezone(timedelta(hours=5, minutes=30))))
sent = now()
countdown = app.send_task("probe.echo", args=[3], countdown=1.5)
at_once = app.send_task("probe.echo", args=[4])
values = [result.get(timeout=WAIT) for result in (aware, elsewhere, countdown, at_once)]
early = [done_at(aware) < eta, done_at(elsewhere) < eta, done_at(countdown) < sent + timedelta(seconds=1.5)]
answer({"values": values, "early": early, "overtaken": done_at(at_once) < eta})
"#,
    );
    assert_eq!(seen, json!({ "values": [1, 2, 3, 4], "early": [false, false, false], "overtaken": true }));
}

fn eta_within_the_horizon_is_held_unacknowledged(stage: &Stage) {
    stage.configure("worker_eta_horizon = 7200");
    let _worker = stage.probe(&["-c", "1", "--prefetch-multiplier", "4"]);
    let value = stage.celery(
        r#"
app.send_task("probe.echo", args=[1], countdown=3600)
answer(app.send_task("probe.echo", args=[2]).get(timeout=WAIT))
"#,
    );
    assert_eq!(value, json!(2));
    stage.wait_until_unacknowledged("celery", 1);
}

/// Ten times what the worker may hold.
fn eta_beyond_the_horizon_takes_no_prefetch_unlike_celerys(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1", "--prefetch-multiplier", "1"]);
    let seen = stage.celery(
        r#"
for number in range(10):
    app.send_task("probe.echo", args=[number], countdown=3600)
value = app.send_task("probe.echo", args=["now"]).get(timeout=WAIT)
answer([value, waiting()])
"#,
    );
    assert_eq!(seen, json!(["now", 0]));
    stage.wait_until_unacknowledged("celery", 0);
}

fn eta_without_an_offset_is_utc(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let early = stage.celery(
        r#"
eta = now() + timedelta(seconds=1.5)
headers = {"lang": "py", "task": "probe.echo", "id": own("naive"), "eta": eta.replace(tzinfo=None).isoformat()}
publish([[1], {}, {}], serializer="json", headers=headers)
result = app.AsyncResult(own("naive"))
answer({"value": result.get(timeout=WAIT), "early": done_at(result) < eta})
"#,
    );
    assert_eq!(early, json!({ "value": 1, "early": false }));
}

fn eta_that_has_passed_is_run_at_once(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let values = stage.celery(
        r#"
yesterday = app.send_task("probe.echo", args=[1], eta=now() - timedelta(days=1))
never = app.send_task("probe.echo", args=[2], countdown=-5)
answer([yesterday.get(timeout=WAIT), never.get(timeout=WAIT)])
"#,
    );
    assert_eq!(values, json!([1, 2]));
}

/// Celery also tells RabbitMQ, which would drop the message; this is one that expired on its way.
fn expired_on_receipt_is_revoked_without_running(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
headers = {"lang": "py", "task": "probe.echo", "id": own("late"), "expires": "2020-01-01T00:00:00+00:00"}
publish([[1], {}, {}], serializer="json", headers=headers)
answer(raised(app.AsyncResult(own("late"))))
"#,
    );
    assert_eq!((&seen["type"], &seen["args"]), (&json!("TaskRevokedError"), &json!(["expired"])));
}

fn expired_before_execution_is_revoked_without_running(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
nap = occupy()
expires = now() + timedelta(seconds=1)
result = app.send_task("probe.echo", args=[1], expires=expires)
wait_until(lambda: now() > expires and not waiting())
terminate(nap)
answer(raised(result))
"#,
    );
    assert_eq!((&seen["type"], &seen["args"]), (&json!("TaskRevokedError"), &json!(["expired"])));
}

fn expires_in_the_future_is_no_reason_not_to_run(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let values = stage.celery(
        r#"
results = [
    app.send_task("probe.echo", args=[1], expires=3600),
    app.send_task("probe.echo", args=[2], expires=now() + timedelta(hours=1)),
    app.send_task("probe.echo", args=[3], expires=3600, countdown=1.2),
]
answer([result.get(timeout=WAIT) for result in results])
"#,
    );
    assert_eq!(values, json!([1, 2, 3]));
}
