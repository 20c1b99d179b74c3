//! Celery reads what rtask stored as if Celery had stored it.

use rtask_tests::{Stage, Worker, facts};
use serde_json::json;

facts![rabbitmq = servers, redis = redis; [
    the_same_life_leaves_the_same_records,
    celery_reads_states_and_children_of_rtasks_tasks,
]];

/// Everything but ids, times and tracebacks is compared to the letter.
fn the_same_life_leaves_the_same_records(stage: &Stage) {
    let _ours = stage.probe(&["-c", "1", "-Q", "ours"]);
    let _theirs = Worker::start_celery(stage, "c1", &["-P", "solo", "-Q", "theirs"]);
    let lives = stage.celery(
        r#"
def life(queue):
    """All that is announced of some tasks, by what they do."""
    app.control.revoke(own(f"revoked-{queue}"), reply=True, limit=2, timeout=WAIT)
    tasks = {
        "returned": dict(name="probe.echo", args=[{"a": [1, None, "é"]}]),
        "raised": dict(name="probe.always", kwargs={"cause": "no", "max_retries": 0}),
        "gave up": dict(name="probe.always"),
        "retried": dict(name="probe.flaky", args=[2]),
        "started": dict(name="probe.tracked", args=[0]),
        "sent": dict(name="probe.send", args=["probe.echo", [1]]),
        "unknown": dict(name="probe.nope"),
        "revoked": dict(name="probe.echo", args=[1]),
        "expired": dict(name="probe.echo", args=[1], expires=now() - timedelta(seconds=5)),
    }
    return {what: following(own(f"{what}-{queue}"), task, queue) for what, task in tasks.items()}


def following(task_id, task, queue):
    seen = []
    with announced(task_id) as records:
        if "expires" in task:
            # Without the property over which RabbitMQ would drop it, and nobody would hear of it.
            headers = {"lang": "py", "task": task["name"], "id": task_id, "expires": task["expires"].isoformat()}
            publish([task["args"], {}, {}], queue, serializer="json", headers=headers)
        else:
            app.send_task(**task, queue=queue, task_id=task_id)
        for record in records:
            seen.append(compared(json.loads(json.dumps(record).replace(task_id, "its own id"))))
            if record["status"] in ("SUCCESS", "FAILURE", "REVOKED"):
                return seen


def compared(record):
    result = record["result"]
    for volatile in ("task_id", "date_done", "traceback"):
        assert volatile in record
        record[volatile] = type(record[volatile]).__name__ if volatile != "traceback" else None
    if record["status"] == "STARTED":
        record["result"] = sorted(result)
    if isinstance(result, str):
        record["result"] = "another's id, or a name"
    if record.get("children"):
        record["children"] = [[["an id" for part in child[0] if part], child[1]] for child in record["children"]]
    return record


answer({"ours": life("ours"), "theirs": life("theirs")})
"#,
    );
    for (what, theirs) in lives["theirs"].as_object().expect("a life is an object") {
        assert_eq!(&lives["ours"][what], theirs, "{what}");
    }
}

fn celery_reads_states_and_children_of_rtasks_tasks(stage: &Stage) {
    let _ours = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
waits = app.send_task("probe.elsewhere", kwargs={"countdown": 3600})
wait_until(lambda: waits.state == "RETRY")
told("revoke", waits.id)
wait_until(lambda: waits.state == "REVOKED")
parent = app.send_task("probe.send", args=["probe.echo", ["from below"]])
child = app.AsyncResult(parent.get(timeout=WAIT))
[found] = app.AsyncResult(parent.id).children
answer({
    "raised": raised(waits),
    "found": found.id == child.id,
    "value": found.get(timeout=WAIT),
    "collected": [value for _, value in app.AsyncResult(parent.id).collect()][1:],
})
"#,
    );
    assert_eq!(seen["raised"]["type"], "TaskRevokedError");
    assert_eq!((&seen["found"], &seen["value"]), (&json!(true), &json!("from below")));
    assert_eq!(seen["collected"], json!(["from below"]));
}

/// golden/03b_result_backend_rpc
#[test]
fn results_that_travel_as_messages_come_from_workers_of_both_kinds() {
    let stage = Stage::rpc();
    let _ours = stage.probe(&["-c", "1", "--prefetch-multiplier", "1"]);
    let _theirs = Worker::start_celery(&stage, "c1", &["-P", "solo", "--prefetch-multiplier", "1"]);
    let seen = stage.celery(
        r#"
results = [app.send_task("probe.tracked", args=[0.2]) for number in range(20)]
ran_on = sorted({result.get(timeout=WAIT) for result in results})
states = []
app.send_task("probe.tracked", args=[0]).get(timeout=WAIT, on_message=lambda body: states.append(body["status"]))
failures = {raised(app.send_task("probe.always", kwargs={"cause": "no"}))["type"] for number in range(10)}
answer({"ran_on": ran_on, "states": states, "failures": sorted(failures)})
"#,
    );
    let expected = json!({
        "ran_on": ["c1@localhost", "w1@localhost"], "states": ["STARTED", "SUCCESS"], "failures": ["ValueError"],
    });
    assert_eq!(seen, expected);
}
