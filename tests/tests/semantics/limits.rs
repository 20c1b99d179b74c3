//! Time limits and rate limits.

use rtask_tests::Stage;
use serde_json::json;

facts![
    soft_time_limit_lets_the_task_come_to_an_end,
    soft_time_limit_that_is_not_caught_is_raised,
    soft_time_limit_that_is_ignored_ends_the_task,
    soft_time_limit_is_of_the_message_too,
    hard_time_limit_ends_the_task_and_what_went_on_after_the_soft_one,
    rate_limit_of_a_task_is_kept,
    rate_limit_is_set_and_lifted_by_remote_control,
    rate_limit_of_all_workers_together_is_kept_unlike_celerys,
];

/// golden/03_result_backend_redis/38_soft_time_limit.json.
const SOFT: (&str, &str) = ("SoftTimeLimitExceeded", "billiard.exceptions");
const HARD: (&str, &str) = ("TimeLimitExceeded", "billiard.exceptions");

fn soft_time_limit_lets_the_task_come_to_an_end(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let value = stage.celery(r#"answer(app.send_task("probe.soft", args=["return"]).get(timeout=WAIT))"#);
    assert_eq!(value, json!("came to an end"));
}

fn soft_time_limit_that_is_not_caught_is_raised(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(r#"answer(raised(app.send_task("probe.soft", args=["raise"])))"#);
    assert_eq!((&seen["type"], &seen["module"]), (&json!(SOFT.0), &json!(SOFT.1)));
}

/// Celery raises it in the middle of whatever the task does; a sandbox cannot, and ends the task instead.
fn soft_time_limit_that_is_ignored_ends_the_task(stage: &Stage) {
    let worker = stage.probe(&["-c", "1"]);
    let before = worker.processes();
    let seen = stage.celery(r#"answer(raised(app.send_task("probe.soft", args=["ignore"])))"#);
    assert_eq!((&seen["type"], &seen["module"]), (&json!(SOFT.0), &json!(SOFT.1)));
    assert_eq!(worker.processes(), before);
}

/// Header `timelimit` is `[hard, soft]`.
fn soft_time_limit_is_of_the_message_too(stage: &Stage) {
    let _worker = stage.probe(&["-c", "2"]);
    let seen = stage.celery(
        r#"
soft = app.send_task("probe.nap", args=[3600], soft_time_limit=0.3, time_limit=60)
told = app.send_task("probe.request", soft_time_limit=30, time_limit=60)
answer({"soft": raised(soft), "told": told.get(timeout=WAIT)["timelimit"]})
"#,
    );
    assert_eq!((&seen["soft"]["type"], &seen["told"]), (&json!(SOFT.0), &json!([60.0, 30.0])));
}

fn hard_time_limit_ends_the_task_and_what_went_on_after_the_soft_one(stage: &Stage) {
    let worker = stage.probe(&["-c", "2"]);
    let before = worker.processes();
    let seen = stage.celery(
        r#"
plain = app.send_task("probe.nap", args=[3600], time_limit=1)
after_soft = app.send_task("probe.soft", args=["go on"], soft_time_limit=0.3, time_limit=2)
answer([raised(plain), raised(after_soft), plain.traceback])
"#,
    );
    for (ended, limit) in [(&seen[0], 1), (&seen[1], 2)] {
        assert_eq!((&ended["type"], &ended["module"]), (&json!(HARD.0), &json!(HARD.1)));
        assert_eq!(ended["args"], json!([limit]));
    }
    assert_eq!(seen[2], json!(null));
    assert_eq!(worker.processes(), before);
}

/// When the last of several is done at the earliest, for a rate in seconds between two.
const SPREAD: &str = r#"
def is_spread(count, every, name="probe.slow_rate"):
    """Whether so many tasks that are sent at once are done no earlier than their rate allows."""
    sent = now()
    results = [app.send_task(name) for number in range(count)]
    for result in results:
        result.get(timeout=WAIT)
    return max(done_at(result) for result in results) >= sent + timedelta(seconds=every * (count - 1))
"#;

fn rate_limit_of_a_task_is_kept(stage: &Stage) {
    let _worker = stage.probe(&["-c", "4"]);
    assert_eq!(stage.celery(&format!("{SPREAD}answer(is_spread(6, 0.2))")), json!(true));
}

fn rate_limit_is_set_and_lifted_by_remote_control(stage: &Stage) {
    let _worker = stage.probe(&["-c", "4"]);
    let seen = stage.celery(&format!(
        r#"{SPREAD}
set_ = told("rate_limit", "probe.environment", "2/s")
spread = is_spread(4, 0.5, "probe.environment")
# A turn an hour: without lifting it, the third would not come.
slow = told("rate_limit", "probe.environment", "1/h")
lifted = told("rate_limit", "probe.environment", 0)
for number in range(3):
    app.send_task("probe.environment").get(timeout=WAIT)
unknown, bad = told("rate_limit", "nope.nope", "1/s"), told("rate_limit", "probe.environment", "often")
answer([set_, spread, slow, lifted, unknown, list(bad)])
"#
    ));
    assert_eq!(
        seen,
        json!([
            { "ok": "new rate limit set successfully" },
            true,
            { "ok": "new rate limit set successfully" },
            { "ok": "rate limit disabled successfully" },
            { "error": "unknown task" },
            ["error"],
        ])
    );
}

/// Two workers, and one turn for both.
fn rate_limit_of_all_workers_together_is_kept_unlike_celerys(stage: &Stage) {
    stage.configure("task_global_rate_limits = { \"probe.environment\" = \"4/s\" }");
    let _first = stage.probe(&["-c", "2", "--prefetch-multiplier", "1"]);
    let _second = stage.worker("w2", &["-c", "2", "--prefetch-multiplier", "1"]);
    assert_eq!(stage.celery(&format!("{SPREAD}answer(is_spread(7, 0.25, 'probe.environment'))")), json!(true));
}
