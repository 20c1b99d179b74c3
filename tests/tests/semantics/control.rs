//! What remote control answers, as far as it is about limits and being there. For revokes, see `revokes`.

use rtask_tests::Stage;
use serde_json::json;

facts![
    ping_is_answered_by_every_worker_and_by_one_that_is_named,
    time_limits_are_set_by_remote_control,
    commands_that_make_no_sense_are_answered_with_an_error,
];

fn ping_is_answered_by_every_worker_and_by_one_that_is_named(stage: &Stage) {
    let _first = stage.probe(&["-c", "1"]);
    let _second = stage.worker("w2", &["-c", "1"]);
    let seen = stage.celery(
        r#"
everyone = app.control.ping(timeout=WAIT, limit=2)
one = app.control.ping(destination=["w2@localhost"], timeout=WAIT, limit=1)
pattern = app.control.broadcast("ping", reply=True, pattern="w1*", matcher="glob", timeout=WAIT, limit=1)
answer([sorted(name for reply in everyone for name in reply), everyone[0].popitem()[1], one, pattern])
"#,
    );
    assert_eq!(
        seen,
        json!([
            ["w1@localhost", "w2@localhost"],
            { "ok": "pong" },
            [{ "w2@localhost": { "ok": "pong" } }],
            [{ "w1@localhost": { "ok": "pong" } }],
        ])
    );
}

/// golden/04_remote_control/34_time_limit.json.
fn time_limits_are_set_by_remote_control(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
hard = told("time_limit", "probe.nap", hard=1)
ended = raised(app.send_task("probe.nap", args=[3600]))
soft = told("time_limit", "probe.nap", soft=0.5, hard=60)
caught = raised(app.send_task("probe.nap", args=[3600]))
unknown = told("time_limit", "nope.nope", hard=1)
answer([hard, ended["type"], ended["args"], soft, caught["type"], unknown])
"#,
    );
    let set = json!({ "ok": "time limits set successfully" });
    assert_eq!(
        seen,
        json!([
            set, "TimeLimitExceeded", [1], set, "SoftTimeLimitExceeded", { "error": "unknown task" },
        ])
    );
}

/// golden/04_remote_control/70_unknown_command.json.
fn commands_that_make_no_sense_are_answered_with_an_error(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
def reply(method, **arguments):
    [reply] = app.control.broadcast(method, arguments=arguments, reply=True, limit=1, timeout=WAIT)
    return reply["w1@localhost"]["error"]

answer([reply("nope"), reply("rate_limit", bogus=1).split("(")[0], reply("revoke").split("(")[0]])
"#,
    );
    assert_eq!(seen, json!(["KeyError('nope')", "TypeError", "TypeError"]));
}
