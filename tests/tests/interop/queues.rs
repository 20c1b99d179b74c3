//! Each consumes what the other published, and in the same order.

use rtask_tests::{Stage, Worker, facts};
use serde_json::{Value, json};

facts![rabbitmq = servers, redis = redis; [
    workers_of_both_kinds_take_tasks_from_one_queue,
    celery_runs_what_rtask_published,
    kombu_can_read_what_rtask_published,
    rtask_runs_what_kombu_published,
    both_take_tasks_in_the_same_order_of_priority,
]];

const ONE_AT_A_TIME: [&str; 2] = ["--prefetch-multiplier", "1"];

fn celery(stage: &Stage, flags: &[&str]) -> Worker {
    Worker::start_celery(stage, "c1", &[&["-P", "solo"], flags].concat())
}

fn workers_of_both_kinds_take_tasks_from_one_queue(stage: &Stage) {
    let _ours = stage.probe(&[&["-c", "1"], ONE_AT_A_TIME.as_slice()].concat());
    let _theirs = celery(stage, &ONE_AT_A_TIME);
    for number in 0..4 {
        let id = stage.own(&format!("by-rtask-{number}"));
        stage.rtask(["call", "probe.tracked", "--args", "[0.2]", "--task-id", &id]).succeeded();
    }
    // Each holds one or two at a time, and they take long enough for both to have their share.
    let ran_on = stage.celery(
        r#"
ids = [own(f"by-rtask-{number}") for number in range(4)]
ids += [app.send_task("probe.tracked", args=[0.2]).id for number in range(16)]
answer(sorted({app.AsyncResult(id).get(timeout=WAIT) for id in ids}))
"#,
    );
    assert_eq!(ran_on, json!(["c1@localhost", "w1@localhost"]));
}

fn celery_runs_what_rtask_published(stage: &Stage) {
    let _theirs = celery(stage, &[]);
    let call = |flags: &[&str]| {
        let arguments = ["--json", "call", "probe.tracked", "--args", "[0]", "--wait"];
        stage.rtask([&arguments, flags].concat()).succeeded().json()["result"].clone()
    };
    assert_eq!(call(&[]), "c1@localhost");
    assert_eq!(call(&["--countdown", "1", "--expires", "600", "--priority", "5"]), "c1@localhost");
}

fn kombu_can_read_what_rtask_published(stage: &Stage) {
    let id = stage.own("plain");
    stage.rtask(["call", "probe.echo", "--args", r#"["é"]"#, "--kwargs", "{}", "--task-id", &id]).succeeded();
    let taken = stage.celery(r#"answer(take("celery"))"#);
    assert_eq!(taken["content_type"], "application/json");
    assert_eq!((&taken["headers"]["id"], &taken["headers"]["task"]), (&json!(id), &json!("probe.echo")));
    let body: Value = serde_json::from_str(taken["body"].as_str().unwrap_or_default()).expect("the body is JSON");
    assert_eq!((&body[0], &body[1]), (&json!(["é"]), &json!({})));
    assert!(body[2].is_object(), "{body}");
}

fn rtask_runs_what_kombu_published(stage: &Stage) {
    let _ours = stage.probe(&["-c", "1"]);
    let value = stage.celery(
        r#"
publish([["é"], {}, {}], serializer="json", headers={"task": "probe.echo", "id": own("raw"), "lang": "py"})
answer(app.AsyncResult(own("raw")).get(timeout=WAIT))
"#,
    );
    assert_eq!(value, "é");
}

/// Of which the highest is first on RabbitMQ, and the lowest on Redis; equals stay in the order in which they came.
fn both_take_tasks_in_the_same_order_of_priority(stage: &Stage) {
    stage.configure("task_queue_max_priority = 10\n");
    stage.configure_celery(&json!({ "task_queue_max_priority": 10 }));
    let publish = r#"
for number, priority in enumerate([0, 9, 3, 6, 9, 0, 6, 3, 1, 5, 7, 9]):
    app.send_task("probe.echo", args=[[number, priority]], priority=priority, task_id=own(f"ROUND-{number}"))
answer(None)
"#;
    let order = r#"
done = [app.AsyncResult(own(f"ROUND-{number}")) for number in range(12)]
values = {result.id: result.get(timeout=WAIT) for result in done}
answer([values[result.id] for result in sorted(done, key=done_at)])
"#;
    let order_of = |round: &str, start: &dyn Fn() -> Worker| {
        stage.celery(&publish.replace("ROUND", round));
        let _worker = start();
        stage.celery(&order.replace("ROUND", round))
    };
    let theirs = order_of("theirs", &|| celery(stage, &ONE_AT_A_TIME));
    let ours = order_of("ours", &|| stage.probe(&[&["-c", "1"], ONE_AT_A_TIME.as_slice()].concat()));
    assert_eq!(ours, theirs);
    assert_ne!(ours[0][1], ours[11][1], "priorities made no difference: {ours}");
}
