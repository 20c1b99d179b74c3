//! An unmodified Celery client cannot tell an rtask worker from a Celery one: arguments, exceptions and records. All else
//! that a worker does with a task is in `semantics`.

use rtask_tests::{Stage, Worker, environment};
use serde_json::{Value, json};

/// RabbitMQ, Redis and one worker that is ready to run examples/hello.
fn stage() -> (Stage, Worker) {
    let stage = Stage::servers();
    let worker = stage.worker("w1", &["-c", "4"]);
    stage.deploy(&environment::hello());
    (stage, worker)
}

#[test]
fn arguments_arrive_by_position_and_by_name() {
    let (stage, _worker) = stage();
    let sums = stage.celery(
        r#"
by_position = app.send_task("hello.add", args=[2, 2])
by_name = app.send_task("hello.add", kwargs={"x": 2, "y": 3})
mixed = app.send_task("hello.add", args=[2], kwargs={"y": 4})
answer([result.get(timeout=WAIT) for result in (by_position, by_name, mixed)])
"#,
    );
    assert_eq!(sums, json!([4, 5, 6]));
}

#[test]
fn arguments_that_do_not_fit_are_a_type_error() {
    let (stage, _worker) = stage();
    let seen = stage.celery(r#"answer(raised(app.send_task("hello.add", args=[1, 2, 3])))"#);
    assert_eq!((&seen["type"], &seen["module"]), (&json!("TypeError"), &json!("builtins")));
}

#[test]
fn a_raised_exception_is_raised_in_python_with_its_class_and_arguments() {
    let (stage, _worker) = stage();
    let seen = stage.celery(
        r#"
result = app.send_task("hello.fail", args=["no", 1])
try:
    result.get(timeout=WAIT)
except ValueError as error:
    answer({"class": type(error) is ValueError, "args": error.args, "state": result.state})
"#,
    );
    assert_eq!(seen, json!({ "class": true, "args": ["no", 1], "state": "FAILURE" }));
}

#[test]
fn a_panic_is_raised_in_python_with_its_message_and_the_guests_backtrace() {
    let (stage, _worker) = stage();
    let seen = stage.celery(
        r#"
result = app.send_task("hello.panic", args=["the disk is round"])
answer({"raised": raised(result), "traceback": result.traceback})
"#,
    );
    assert!(seen["raised"]["args"].to_string().contains("the disk is round"), "{seen}");
    let traceback = seen["traceback"].as_str().unwrap_or_default();
    assert!(traceback.contains("hello"), "{seen}");
}

/// golden/03_result_backend_redis, files 01 and 02.
#[test]
fn stored_records_have_celerys_fields_and_live_for_a_day() {
    let (stage, _worker) = stage();
    let seen = stage.celery(
        r#"
good, bad = app.send_task("hello.add", args=[2, 2]), app.send_task("hello.fail", args=["boom"])
good.get(timeout=WAIT), raised(bad)
answer({"good": record(good.id), "good_id": good.id, "bad": record(bad.id), "bad_id": bad.id})
"#,
    );
    let (good, bad) = (&seen["good"]["record"], &seen["bad"]["record"]);
    let fields = ["children", "date_done", "result", "status", "task_id", "traceback"];
    for record in [good, bad] {
        let names: Vec<_> = record.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, fields);
        let done = record["date_done"].as_str().unwrap_or_default();
        assert!(done.len() == "2026-11-24T08:50:42.048607+00:00".len() && done.ends_with("+00:00"), "{record}");
        assert_eq!(record["children"], json!([]));
    }
    assert_eq!((&good["status"], &good["result"], &good["traceback"]), (&json!("SUCCESS"), &json!(4), &Value::Null));
    let exception = json!({ "exc_type": "ValueError", "exc_message": ["boom"], "exc_module": "builtins" });
    assert_eq!((&bad["status"], &bad["result"]), (&json!("FAILURE"), &exception));
    assert_eq!((&good["task_id"], &bad["task_id"]), (&seen["good_id"], &seen["bad_id"]));
    for lifetime in [&seen["good"]["ttl"], &seen["bad"]["ttl"]] {
        let seconds = lifetime.as_u64().unwrap_or_default();
        assert!((86_000..=86_400).contains(&seconds), "{seen}");
    }
}
