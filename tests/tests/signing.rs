//! Signed messages in a fleet of both kinds: clients, workers and remote control, each with a key of its own.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use rtask_tests::{Stage, Worker, facts};
use serde_json::{Value, json};

facts![rabbitmq = servers, redis = redis; [
    what_is_signed_runs_and_what_is_not_is_a_dead_letter,
    what_a_worker_sends_is_signed,
    celery_runs_what_rtask_signed,
    only_who_may_sign_may_control_workers,
    what_is_to_be_signed_is_not_sent_without_a_key,
]];

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/vectors/auth");

/// Celery signs as `stranger`, rtask as `signer`; both know both.
fn sign(stage: &Stage) {
    let keys = stage.folder().join("keys");
    let certificates = stage.folder().join("certificates");
    for folder in [&keys, &certificates] {
        fs::create_dir(folder).expect("a folder can be made");
    }
    let copy = |name: &str, to: &Path, mode: u32| {
        let to = to.join(name);
        fs::copy(format!("{VECTORS}/{name}"), &to).unwrap_or_else(|error| panic!("{name}: {error}"));
        fs::set_permissions(&to, fs::Permissions::from_mode(mode)).expect("its owner may say who reads it");
    };
    for name in ["signer.pem", "stranger.pem"] {
        copy(name, &certificates, 0o644);
    }
    // A worker that gives up root must have read them before.
    for name in ["signer.locked.key", "stranger.key"] {
        copy(name, &keys, 0o600);
    }
    stage.configure(
        r#"
accept_content = ["auth"]
task_serializer = "auth"
security_key = "keys/signer.locked.key"
security_key_password = "open sesame"
security_certificate = "certificates/signer.pem"
security_cert_store = "certificates"
"#,
    );
    stage.configure_celery(&json!({
        "accept_content": ["auth"],
        "task_serializer": "auth",
        "security_key": "keys/stranger.key",
        "security_certificate": "certificates/stranger.pem",
        "security_cert_store": "certificates",
        // Results are not signed.
        "result_accept_content": ["json"],
    }));
}

fn what_is_signed_runs_and_what_is_not_is_a_dead_letter(stage: &Stage) {
    sign(stage);
    let worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
import base64
from kombu.serialization import dumps

def dead(content_type, body, task_id):
    publish(body, content_type=content_type, content_encoding="utf-8",
            headers={"task": "probe.echo", "id": task_id, "lang": "py"})
    return {"dead": take("celery.dead")["headers"]["x-rtask-death-code"], "raised": raised(app.AsyncResult(task_id))}

body = [["paid: 1"], {}, {}]
content_type, _, signed = dumps(body, serializer="auth")
forged = base64.b64encode(base64.b64decode(signed).replace(b"paid: 1", b"paid: 9"))
answer({
    "signed": app.send_task("probe.echo", args=["é"]).get(timeout=WAIT),
    "plain": dead("application/json", json.dumps(body), own("plain")),
    "forged": dead(content_type, forged, own("forged")),
})
"#,
    );
    assert_eq!(seen["signed"], "é");
    assert_eq!(seen["plain"]["dead"], "refused-content", "{seen}");
    assert_eq!(seen["plain"]["raised"]["type"], "ContentDisallowed", "{seen}");
    assert_eq!(seen["forged"]["dead"], "bad-signature", "{seen}");
    let reason = seen["forged"]["raised"]["args"][0].as_str().unwrap_or_default();
    assert!(reason.contains("stranger") && reason.contains("was not signed by"), "{seen}");
    assert!(!worker.log().contains("sesame"));
}

/// Otherwise it would refuse it itself.
fn what_a_worker_sends_is_signed(stage: &Stage) {
    sign(stage);
    let _worker = stage.probe(&["-c", "2"]);
    let seen = stage.celery(
        r#"
callback = app.signature("probe.echo_all", args=[1])
linked = app.send_task("probe.echo", args=["a"], link=callback)
linked.get(timeout=WAIT)
sent = app.send_task("probe.send", args=["probe.echo", ["b"], {"serializer": "auth"}]).get(timeout=WAIT)
answer([linked.children[0].get(timeout=WAIT), app.AsyncResult(sent).get(timeout=WAIT),
        app.send_task("probe.flaky", args=[1]).get(timeout=WAIT)])
"#,
    );
    assert_eq!(seen, json!([[["a", 1], {}], "b", 1]));
}

fn celery_runs_what_rtask_signed(stage: &Stage) {
    sign(stage);
    let _theirs = Worker::start_celery(stage, "c1", &["-P", "solo", "-Q", "theirs"]);
    let _ours = stage.probe(&["-c", "1"]);
    let call = |flags: &[&str]| -> Value {
        let arguments = ["--json", "call", "probe.echo", "--args", r#"["é"]"#, "--wait"];
        stage.rtask([&arguments, flags].concat()).succeeded().json()["result"].clone()
    };
    assert_eq!(call(&[]), "é");
    assert_eq!(call(&["--queue", "theirs"]), "é");
    assert_eq!(call(&["--queue", "theirs", "--serializer", "yaml", "--compression", "gzip"]), "é");
    // A callback that our worker sends theirs.
    let seen = stage.celery(
        r#"
there = app.signature("probe.echo", immutable=True, args=["there"], queue="theirs")
linked = app.send_task("probe.echo", args=["here"], link=there)
answer([linked.get(timeout=WAIT), linked.children[0].get(timeout=WAIT)])
"#,
    );
    assert_eq!(seen, json!(["here", "there"]));
}

fn only_who_may_sign_may_control_workers(stage: &Stage) {
    sign(stage);
    let worker = stage.probe(&["-c", "1"]);
    let _theirs = Worker::start_celery(stage, "c1", &["-P", "solo", "-Q", "theirs"]);
    let pong = json!({ "c1@localhost": { "ok": "pong" }, "w1@localhost": { "ok": "pong" } });
    let both = ["--destination", "c1@localhost,w1@localhost", "--timeout", "60"];
    let ping = ["--json", "inspect", "ping"];
    assert_eq!(stage.rtask([ping.as_slice(), &both].concat()).succeeded().json(), pong);
    let replies = stage.celery(
        r#"
replies = {}
for reply in app.control.ping(timeout=WAIT, limit=2):
    replies.update(reply)
answer(replies)
"#,
    );
    assert_eq!(replies, pong);
    let mut unsigned = stage.command();
    unsigned.env("RTASK_TASK_SERIALIZER", "json").env("RTASK_ACCEPT_CONTENT", "json");
    rtask_tests::Outcome::of(unsigned.args(["inspect", "ping"])).exited(1);
    worker.wait_for_log("it is not signed");
}

fn what_is_to_be_signed_is_not_sent_without_a_key(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage
        .celery(r#"answer(raised(app.send_task("probe.send", args=["probe.echo", ["b"], {"serializer": "auth"}])))"#);
    assert_eq!(seen["type"], "ValueError", "{seen}");
    assert!(seen["args"][0].as_str().is_some_and(|reason| reason.contains("task_serializer")), "{seen}");
}

#[test]
fn settings_that_contradict_each_other_end_a_worker_before_it_starts() {
    let stage = Stage::sqlite();
    stage.configure("accept_content = [\"auth\"]");
    let refused = stage.rtask(["worker"]).exited(2);
    assert!(refused.stderr.contains("security_cert_store"), "{}", refused.stderr);
}
