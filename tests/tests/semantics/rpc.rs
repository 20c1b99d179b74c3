//! Results that travel as messages (`rpc://`), on RabbitMQ.

use rtask_tests::Stage;
use serde_json::json;

/// golden/03b_result_backend_rpc, all of it.
#[test]
fn results_reach_the_client_that_sent_the_task() {
    let stage = Stage::rpc();
    let worker = stage.probe(&["-c", "2"]);
    let seen = stage.celery(
        r#"
good, bad = app.send_task("probe.echo", args=[4]), app.send_task("probe.auto", args=[9, "KeyError"])
values = [good.get(timeout=WAIT), raised(bad)["type"]]
states = []
tracked = app.send_task("probe.tracked", args=[0])
tracked.get(timeout=WAIT, on_message=lambda message: states.append([message["status"], message["result"]]))
progress = []
app.send_task("probe.progress", args=[2]).get(timeout=WAIT, on_message=lambda message: progress.append(message["result"]))
retried = app.send_task("probe.flaky", args=[2]).get(timeout=WAIT)
unknown = raised(app.send_task("nope.nope"))["type"]
answer({"values": values, "states": states, "progress": progress, "retried": retried, "unknown": unknown})
"#,
    );
    assert_eq!(seen["values"], json!([4, "KeyError"]));
    assert_eq!(
        seen["states"],
        json!([["STARTED", { "pid": worker.pid(), "hostname": "w1@localhost" }], ["SUCCESS", "w1@localhost"]])
    );
    assert_eq!(seen["progress"], json!([{ "done": 1, "of": 2 }, { "done": 2, "of": 2 }, 2]));
    assert_eq!((&seen["retried"], &seen["unknown"]), (&json!(2), &json!("NotRegistered")));
}

#[test]
fn revokes_and_limits_reach_the_client_that_sent_the_task() {
    let stage = Stage::rpc();
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
told("revoke", own("revoked"))
revoked = app.send_task("probe.echo", args=[1], task_id=own("revoked"))
limited = app.send_task("probe.nap", args=[3600], time_limit=0.5)
answer([raised(revoked)["args"], raised(limited)["type"]])
"#,
    );
    assert_eq!(seen, json!([["revoked"], "TimeLimitExceeded"]));
}
