//! How many messages a worker holds.

use rtask_tests::Stage;
use serde_json::json;

facts![
    prefetch_is_concurrency_times_the_multiplier,
    prefetch_multiplier_of_zero_has_no_limit,
    prefetch_that_is_disabled_reserves_one_at_a_time,
    prefetch_is_of_each_queue,
];

/// Two tasks that occupy the worker, thirty messages, and what is left of these when the worker takes no more: an
/// answered ping comes after whatever it had begun to take.
const LEFT: &str = r#"
def left(expected, queue="celery"):
    wait_until(lambda: waiting(queue) <= expected)
    told("time_limit", "probe.echo", hard=60)
    return waiting(queue)

naps = [occupy(), occupy()]
for number in range(30):
    app.send_task("probe.echo", args=[number])
"#;

fn prefetch_is_concurrency_times_the_multiplier(stage: &Stage) {
    let _worker = stage.probe(&["-c", "2", "--prefetch-multiplier", "3"]);
    assert_eq!(stage.celery(&format!("{LEFT}answer(left(26))")), json!(26));
    stage.wait_until_unacknowledged("celery", 6);
}

fn prefetch_multiplier_of_zero_has_no_limit(stage: &Stage) {
    let _worker = stage.probe(&["-c", "2", "--prefetch-multiplier", "0"]);
    assert_eq!(stage.celery(&format!("{LEFT}answer(left(0))")), json!(0));
    stage.wait_until_unacknowledged("celery", 32);
}

fn prefetch_that_is_disabled_reserves_one_at_a_time(stage: &Stage) {
    let _worker = stage.probe(&["-c", "2", "--disable-prefetch"]);
    assert_eq!(stage.celery(&format!("{LEFT}answer(left(30))")), json!(30));
    stage.wait_until_unacknowledged("celery", 2);
}

fn prefetch_is_of_each_queue(stage: &Stage) {
    let _worker = stage.probe(&["-c", "2", "--prefetch-multiplier", "1", "-Q", "celery,other"]);
    let seen = stage.celery(&format!(
        r#"{LEFT}
for number in range(5):
    app.send_task("probe.echo", args=[number], queue="other")
answer([left(30), left(3, "other")])
"#
    ));
    assert_eq!(seen, json!([30, 3]));
}
