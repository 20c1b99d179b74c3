//! Messages that no worker can run.

use rtask_tests::Stage;
use serde_json::{Value, json};

facts![
    unknown_task_is_not_registered_and_its_message_a_dead_letter_unlike_celerys,
    not_a_task_message_is_a_dead_letter_unlike_celerys,
    bad_body_is_a_dead_letter_and_fails_who_waits_unlike_celerys,
    refused_content_types_are_dead_letters_and_fail_who_waits_unlike_celerys,
    bad_eta_is_a_dead_letter_and_fails_who_waits_unlike_celerys,
    refused_messages_leave_the_worker_at_work,
];

fn unknown_task_is_not_registered_and_its_message_a_dead_letter_unlike_celerys(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
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

fn not_a_task_message_is_a_dead_letter_unlike_celerys(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let dead = stage.celery(r#"publish(b"[]", content_type="application/json"); answer(take("celery.dead"))"#);
    assert_eq!((&dead["body"], &dead["headers"]["x-rtask-death-code"]), (&json!("[]"), &json!("not-a-task")));
}

fn bad_body_is_a_dead_letter_and_fails_who_waits_unlike_celerys(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
publish(b"{not json", content_type="application/json", content_encoding="utf-8",
        headers={"task": "probe.echo", "id": own("bad"), "lang": "py"})
answer({"dead": take("celery.dead"), "raised": raised(app.AsyncResult(own("bad")))})
"#,
    );
    let (dead, raised) = (&seen["dead"], &seen["raised"]);
    assert_eq!((&dead["body"], &dead["headers"]["id"]), (&json!("{not json"), &json!(stage.own("bad"))));
    assert_eq!(
        (&dead["headers"]["x-rtask-death-code"], &dead["content_type"]),
        (&json!("undecodable"), &json!("application/json"))
    );
    assert_eq!((&raised["type"], &raised["module"]), (&json!("DecodeError"), &json!("kombu.exceptions")));
    assert!(raised["args"][0].as_str().is_some_and(|reason| !reason.is_empty()), "{raised}");
}

fn refused_content_types_are_dead_letters_and_fail_who_waits_unlike_celerys(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
def refusal(serializer):
    result = app.send_task("probe.echo", args=[1], serializer=serializer)
    return {"raised": raised(result), "dead": take("celery.dead")}

answer([refusal("pickle"), refusal("yaml")])
"#,
    );
    for (refusal, content_type) in [(&seen[0], "application/x-python-serialize"), (&seen[1], "application/x-yaml")] {
        let (dead, raised) = (&refusal["dead"], &refusal["raised"]);
        assert_eq!(raised["type"], "ContentDisallowed", "{refusal}");
        assert_eq!(dead["headers"]["x-rtask-death-code"], "refused-content", "{refusal}");
        assert_eq!(dead["content_type"], content_type);
    }
    let pickle = &seen[0]["raised"]["args"][0];
    assert!(pickle.as_str().is_some_and(|reason| reason.contains("pickle")), "{pickle}");
}

fn bad_eta_is_a_dead_letter_and_fails_who_waits_unlike_celerys(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
headers = {"lang": "py", "task": "probe.echo", "id": own("tomorrow"), "eta": "tomorrow"}
publish([[1], {}, {}], serializer="json", headers=headers)
answer({"raised": raised(app.AsyncResult(own("tomorrow"))), "dead": take("celery.dead")})
"#,
    );
    assert!(seen["raised"]["args"].to_string().contains("eta"), "{seen}");
    assert_eq!(seen["dead"]["headers"]["x-rtask-death-code"], "bad-header");
}

fn refused_messages_leave_the_worker_at_work(stage: &Stage) {
    let worker = stage.probe(&["-c", "1"]);
    let before = worker.processes();
    let seen = stage.celery(
        r#"
ROWS = [
    ({}, b""),
    ({"task": "probe.echo"}, b"[[1], {}, {}]"),
    ({"task": "probe.echo", "id": own("a")}, b"\xff\xfe"),
    ({"task": "probe.echo", "id": own("b")}, b"[" * 100_000),
    ({"task": "probe.echo", "id": own("c"), "retries": -1}, b"[[1], {}, {}]"),
    ({"task": "probe.echo", "id": own("d"), "timelimit": "soon"}, b"[[1], {}, {}]"),
    ({"task": "probe.echo", "id": own("e"), "compression": "application/x-gzip"}, b"[[1], {}, {}]"),
    ({"task": "probe.echo", "id": own("f")}, b'[{"no": "list"}, [], 3]'),
]
for headers, body in ROWS:
    publish(body, content_type="application/json", content_encoding="utf-8", headers=headers)
good = app.send_task("probe.echo", args=[1]).get(timeout=WAIT)
codes = [take("celery.dead")["headers"]["x-rtask-death-code"] for row in ROWS]
answer({"good": good, "dead": len(codes), "left": waiting("celery.dead"), "waiting": waiting()})
"#,
    );
    assert_eq!(seen, json!({ "good": 1, "dead": 8, "left": 0, "waiting": 0 }));
    assert_eq!(worker.processes(), before);
}
