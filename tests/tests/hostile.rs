//! A bad task hurts nothing but itself: it fails with a type of its own, and the worker goes on as it was.

use rtask_tests::{Guest, Stage, environment};
use serde_json::json;

/// What each hostile task of examples/hello is reported as.
const ENDS: [(&str, &str); 5] = [
    ("hello.spin", "TimeLimitExceeded"),
    ("hello.hoard", "MemoryLimitExceeded"),
    ("hello.recurse", "StackLimitExceeded"),
    ("hello.trap", "Trap"),
    ("hello.panic", "Panic"),
];

#[test]
fn bad_tasks_fail_by_type_while_a_thousand_good_ones_succeed_in_the_same_processes() {
    let stage = Stage::servers();
    let worker = stage.worker("w1", &["-c", "4"]);
    stage.deploy(&environment::hello());
    let before = worker.processes();
    let seen = stage.celery(
        r#"
BAD = ["hello.spin", "hello.hoard", "hello.recurse", "hello.trap", "hello.panic"]
good, bad = [], []
for number in range(1000):
    good.append(app.send_task("hello.add", args=[number, 1]))
    if number % 100 == 50:
        name = BAD[len(bad) % len(BAD)]
        bad.append((name, app.send_task(name, args=["x"] if name == "hello.panic" else [], time_limit=1)))
sums = [result.get(timeout=WAIT) for result in good]
answer({"sums": sums, "bad": [[name, raised(result)] for name, result in bad]})
"#,
    );
    let sums: Vec<u32> = (1..=1000).collect();
    assert_eq!(seen["sums"], json!(sums));
    for bad in seen["bad"].as_array().into_iter().flatten() {
        let expected = ENDS.iter().find(|(task, _)| bad[0] == *task).map(|(_, kind)| *kind);
        assert_eq!(bad[1]["type"].as_str(), expected, "{bad}");
    }
    assert_eq!(seen["bad"].as_array().map(Vec::len), Some(2 * ENDS.len()));
    assert_eq!(worker.processes(), before);
}

/// As Celery's own worker stores it: golden/03_result_backend_redis/39_hard_time_limit.json.
#[test]
fn a_hard_time_limit_is_stored_as_celery_stores_it() {
    let stage = Stage::servers();
    let _worker = stage.worker("w1", &["-c", "1"]);
    stage.deploy(&environment::hello());
    let seen = stage.celery(
        r#"
result = app.send_task("hello.spin", time_limit=1)
raised(result)
answer(record(result.id)["record"]["result"])
"#,
    );
    let expected = json!({ "exc_type": "TimeLimitExceeded", "exc_message": [1], "exc_module": "billiard.exceptions" });
    assert_eq!(seen, expected);
}

#[test]
fn a_guest_that_answers_no_json_fails_by_itself() {
    let stage = Stage::servers();
    let worker = stage.worker("w1", &["-c", "1"]);
    stage.deploy(&Guest::answering("liar", "liar.lie", "{no json").write(stage.folder(), "liar"));
    stage.deploy(&environment::hello());
    let before = worker.processes();
    let seen = stage.celery(
        r#"
answer({"lie": raised(app.send_task("liar.lie")), "good": app.send_task("hello.add", args=[2, 2]).get(timeout=WAIT)})
"#,
    );
    assert_eq!(seen["good"], json!(4));
    assert_eq!(seen["lie"]["type"], "InvalidResult");
    assert_eq!(worker.processes(), before);
}
