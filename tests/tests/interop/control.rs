//! Remote control of a fleet of both kinds, by Celery's own means.

use rtask_tests::{Outcome, Stage, Worker, facts, wait_until};
use serde_json::json;

facts![rabbitmq = servers, redis = redis; [
    workers_of_both_kinds_answer_a_ping,
    a_revoke_by_celerys_command_holds_on_workers_of_both_kinds,
]];

const BOTH: &str = "w1@localhost,c1@localhost";

fn fleet(stage: &Stage) -> [Worker; 2] {
    [stage.probe(&["-c", "1"]), Worker::start_celery(stage, "c1", &["-P", "solo"])]
}

/// `celery`, as somebody types it.
fn celery_command(stage: &Stage, arguments: &[&str]) -> Outcome {
    Outcome::of(stage.python().args(["-m", "celery", "-A", "stage"]).args(arguments)).succeeded()
}

fn workers_of_both_kinds_answer_a_ping(stage: &Stage) {
    let _fleet = fleet(stage);
    let replies = stage.celery(
        r#"
replies = {}
for reply in app.control.ping(timeout=WAIT, limit=2):
    replies.update(reply)
answer(replies)
"#,
    );
    let pong = json!({ "w1@localhost": { "ok": "pong" }, "c1@localhost": { "ok": "pong" } });
    assert_eq!(replies, pong);
    let typed = celery_command(stage, &["inspect", "--json", "-t", "60", "-d", BOTH, "ping"]);
    assert_eq!(typed.json(), pong);
}

fn a_revoke_by_celerys_command_holds_on_workers_of_both_kinds(stage: &Stage) {
    let _fleet = fleet(stage);
    let ids: Vec<String> = (0..10).map(|number| stage.own(&format!("revoked-{number}"))).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    celery_command(stage, &[&["control", "-t", "60", "-d", BOTH, "revoke"], ids.as_slice()].concat());
    let others = stage.celery(
        r#"
others = []
for number in range(10):
    app.send_task("probe.tracked", args=[0.1], task_id=own(f"revoked-{number}"))
    others.append(app.send_task("probe.tracked", args=[0.1]))
for other in others:
    other.get(timeout=WAIT)
wait_until(lambda: waiting() == 0)
answer([other.state for other in others])
"#,
    );
    assert_eq!(others, json!(vec!["SUCCESS"; 10]));
    wait_until("nothing is held", || stage.unacknowledged("celery") == 0);
    let revoked = stage.celery(r#"answer([app.AsyncResult(own(f"revoked-{number}")).state for number in range(10)])"#);
    assert_eq!(revoked, json!(vec!["REVOKED"; 10]));
}
