//! An unmodified Celery client cannot tell an rtask worker from a Celery one.

use rtask_tests::{Stage, Worker, environment};
use serde_json::{Value, json};

/// RabbitMQ, Redis and one worker that is ready to run examples/hello and tests/guests/probe.
fn stage() -> (Stage, Worker) {
    let stage = Stage::servers();
    let worker = stage.worker("w1", &["-c", "4", "-l", "DEBUG"]);
    stage.deploy(&environment::hello());
    stage.deploy(&environment::probe());
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

#[test]
fn an_unknown_task_is_not_registered_and_its_message_a_dead_letter() {
    let (stage, _worker) = stage();
    let seen = stage.celery(
        r#"
result = app.send_task("nope.nope", args=[1], kwargs={"k": 2})
try:
    result.get(timeout=WAIT)
except NotRegistered as error:
    answer({"args": error.args, "id": result.id, "dead": take("celery.dead")})
"#,
    );
    assert_eq!(seen["args"], json!(["nope.nope"]));
    let (headers, body) = (&seen["dead"]["headers"], &seen["dead"]["body"]);
    assert_eq!((&headers["task"], &headers["id"]), (&json!("nope.nope"), &seen["id"]));
    assert_eq!(headers["x-rtask-death-queue"], "celery");
    assert!(
        headers["x-rtask-death-reason"].as_str().is_some_and(|reason| reason.contains("no deployed module")),
        "{headers}"
    );
    let body: Value = serde_json::from_str(body.as_str().unwrap_or_default()).unwrap();
    assert_eq!((&body[0], &body[1]), (&json!([1]), &json!({ "k": 2 })));
}

#[test]
fn an_undecodable_message_is_a_dead_letter_and_fails_whoever_waits_for_it() {
    let (stage, _worker) = stage();
    let seen = stage.celery(
        r#"
publish(b"{not json", content_type="application/json", content_encoding="utf-8",
        headers={"task": "hello.add", "id": "bad-1", "lang": "py"})
answer({"dead": take("celery.dead"), "raised": raised(app.AsyncResult("bad-1"))})
"#,
    );
    let dead = &seen["dead"];
    assert_eq!((&dead["body"], &dead["headers"]["id"]), (&json!("{not json"), &json!("bad-1")));
    assert_eq!(
        (&dead["headers"]["x-rtask-death-code"], &dead["content_type"]),
        (&json!("undecodable"), &json!("application/json"))
    );
    let reason = dead["headers"]["x-rtask-death-reason"].as_str().unwrap_or_default();
    assert!(reason.contains("the body is not"), "{dead}");
    assert!(seen["raised"]["args"].to_string().contains("the body is not"), "{seen}");
}

#[test]
fn a_message_that_is_no_task_is_a_dead_letter() {
    let (stage, _worker) = stage();
    let dead = stage.celery(r#"publish(b"[]", content_type="application/json"); answer(take("celery.dead"))"#);
    assert_eq!((&dead["body"], &dead["headers"]["x-rtask-death-code"]), (&json!("[]"), &json!("not-a-task")));
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

#[test]
fn a_result_that_nobody_wants_is_not_stored() {
    let stage = Stage::servers();
    // One after the other: when the last is done, all are.
    let _worker = stage.worker("w1", &["-c", "1"]);
    stage.deploy(&environment::probe());
    let stored = stage.celery(
        r#"
by_call = app.send_task("probe.environment", ignore_result=True)
by_task = app.send_task("probe.quiet")
wanted = app.send_task("probe.quiet", ignore_result=False)
wanted.get(timeout=WAIT)
answer([store().exists("celery-task-meta-" + result.id) for result in (by_call, by_task, wanted)])
"#,
    );
    assert_eq!(stored, json!([0, 0, 1]));
}

#[test]
fn a_tracked_task_is_started_before_it_is_done() {
    let (stage, worker) = stage();
    let states = stage.celery(
        r#"
with store().pubsub() as announced:
    announced.subscribe("celery-task-meta-tracked-1")
    app.send_task("probe.tracked", args=[0.05], task_id="tracked-1")
    messages = (json.loads(message["data"]) for message in announced.listen() if message["type"] == "message")
    answer([next(messages), next(messages)])
"#,
    );
    assert_eq!((&states[0]["status"], &states[1]["status"]), (&json!("STARTED"), &json!("SUCCESS")));
    assert_eq!(states[0]["result"], json!({ "pid": worker.pid(), "hostname": "w1@localhost" }));
    assert_eq!(states[1]["task_id"], "tracked-1");
}

#[test]
fn an_expired_task_is_revoked_without_running() {
    let (stage, worker) = stage();
    let seen = stage.celery(
        r#"
# Celery also tells RabbitMQ, which would drop the message; this is one that expired on its way.
headers = {"lang": "py", "task": "hello.add", "id": "late-1", "root_id": "late-1", "retries": 0,
           "expires": "2020-01-01T00:00:00+00:00"}
publish([[2, 2], {}, {}], serializer="json", headers=headers)
answer(raised(app.AsyncResult("late-1")))
"#,
    );
    assert_eq!((&seen["type"], &seen["args"]), (&json!("TaskRevokedError"), &json!(["expired"])), "{}", worker.log());
}

#[test]
fn a_task_with_an_eta_does_not_run_before_it() {
    let (stage, _worker) = stage();
    let early = stage.celery(
        r#"
from datetime import datetime, timedelta, timezone
eta = datetime.now(timezone.utc) + timedelta(seconds=1.5)
held = app.send_task("hello.add", args=[2, 2], eta=eta)
at_once = app.send_task("hello.add", args=[2, 3])
values = [at_once.get(timeout=WAIT), held.get(timeout=WAIT)]
done = [datetime.fromisoformat(record(result.id)["record"]["date_done"]) for result in (at_once, held)]
answer({"values": values, "early": [moment < eta for moment in done]})
"#,
    );
    assert_eq!(early, json!({ "values": [5, 4], "early": [true, false] }));
}
