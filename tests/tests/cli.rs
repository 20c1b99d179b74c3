//! The command line: what people read, what programs read, and exit codes: 0 done, 1 failed, 2 usage, 3 unreachable.

use rtask_tests::{Stage, Worker, environment, servers::amqp_server};
use serde_json::json;

fn stage() -> (Stage, Worker) {
    let stage = Stage::sqlite();
    let worker = stage.worker("w1", &["-c", "2"]);
    stage.deploy(&environment::hello());
    (stage, worker)
}

#[test]
fn a_call_that_waits_prints_the_result() {
    let (stage, _worker) = stage();
    let done = stage.rtask(["call", "hello.add", "--args", "[2, 2]", "--wait"]).succeeded();
    assert_eq!(done.stdout, "4\n");
    let named = stage.rtask(["--json", "call", "hello.add", "--kwargs", r#"{"x": 2, "y": 3}"#, "--wait"]).succeeded();
    let record = named.json();
    assert_eq!((&record["status"], &record["result"]), (&json!("SUCCESS"), &json!(5)));
}

#[test]
fn a_call_that_does_not_wait_prints_an_id_to_ask_with() {
    let (stage, _worker) = stage();
    let sent = stage.rtask(["call", "hello.add", "--args", "[2, 2]"]).succeeded();
    let id = sent.stdout.trim();
    assert_eq!(id.len(), 36, "{sent:?}");
    assert_eq!(stage.rtask(["result", id, "--wait"]).succeeded().stdout, "4\n");
    assert_eq!(stage.rtask(["--json", "result", id]).succeeded().json()["task_id"], id);
}

#[test]
fn a_failed_task_shows_type_message_and_backtrace_and_exits_1() {
    let (stage, _worker) = stage();
    let failed = stage.rtask(["call", "hello.fail", "--args", r#"["no", 1]"#, "--wait"]).exited(1);
    assert!(failed.stderr.contains("ValueError") && failed.stderr.contains("no"), "{failed:?}");
    let record = stage.rtask(["--json", "call", "hello.fail", "--args", r#"["no", 1]"#, "--wait"]).exited(1).json();
    let exception = json!({ "exc_type": "ValueError", "exc_message": ["no", 1], "exc_module": "builtins" });
    assert_eq!((&record["status"], &record["result"]), (&json!("FAILURE"), &exception));

    let trapped = stage.rtask(["call", "hello.trap", "--wait"]).exited(1);
    assert!(trapped.stderr.contains("unreachable") && trapped.stderr.contains("hello"), "{trapped:?}");
}

#[test]
fn modules_are_listed_with_versions_and_tasks() {
    let (stage, _worker) = stage();
    let people = stage.rtask(["modules"]).succeeded().stdout;
    assert!(people.contains("hello") && people.contains("hello.add"), "{people}");
    let modules = stage.rtask(["--json", "modules"]).succeeded().json();
    assert!(modules.to_string().contains("hello.add"), "{modules}");
}

#[test]
fn wrong_usage_exits_2_and_says_what_is_wrong() {
    let stage = Stage::sqlite();
    let rows: [(&[&str], &str); 7] = [
        (&["call"], "NAME"),
        (&["no-such-command"], "no-such-command"),
        (&["call", "hello.add", "--args", "2, 2"], "--args"),
        (&["call", "hello.add", "--kwargs", "[]"], "--kwargs"),
        (&["call", "hello.add", "--time-limit", "soon"], "--time-limit"),
        (&["call", "hello.add", "--broker", "http://localhost"], "http"),
        (&["worker", "-c", "0"], "-c"),
    ];
    for (arguments, reason) in rows {
        let refused = stage.rtask(arguments).exited(2);
        assert!(refused.stderr.contains(reason), "{arguments:?}: {}", refused.stderr);
    }
}

#[test]
fn a_server_that_is_not_there_exits_3_and_is_named() {
    let stage = Stage::sqlite();
    let [port] = xtask::servers::free_ports().unwrap();
    let address = format!("127.0.0.1:{port}");
    let (amqp, redis) = (format!("amqp://guest:guest@{address}/"), format!("redis://{address}/0"));
    let rows = [
        ["--broker", &amqp, "call", "a"],
        ["--backend", &redis, "result", "b"],
        ["--registry", &redis, "modules", "--json"],
    ];
    for arguments in rows {
        let unreachable = stage.rtask(arguments).exited(3);
        assert!(unreachable.stderr.contains(&address), "{arguments:?}: {}", unreachable.stderr);
    }
}

/// A worker that could never work does not wait for better times.
#[test]
fn wrong_credentials_and_virtual_hosts_end_the_command_with_the_reason() {
    let stage = Stage::servers();
    let server = amqp_server();
    let (scheme, address) = (server.split_once("://").unwrap().0, server.split_once('@').unwrap().1);
    let account = format!("{scheme}://guest:wrong@{address}/");
    let virtual_host = format!("{server}/no-such-vhost");
    for (url, reason) in [(&account, "credentials"), (&virtual_host, "no-such-vhost")] {
        for command in [["worker", "-c", "1"].as_slice(), &["call", "hello.add"]] {
            let refused = stage.rtask([["--broker", url.as_str()].as_slice(), command].concat()).exited(3);
            assert!(refused.stderr.contains(reason), "{command:?}: {}", refused.stderr);
            assert!(!refused.stderr.contains("wrong@"), "a password was shown: {}", refused.stderr);
        }
    }
}

#[test]
fn what_was_never_sent_is_pending() {
    let stage = Stage::sqlite();
    let pending = stage.rtask(["--json", "result", "no-such-id"]);
    assert_eq!(pending.json()["status"], "PENDING");
}

#[test]
fn a_doctor_tells_how_guests_are_locked_in() {
    let stage = Stage::sqlite();
    let told = stage.rtask(["doctor"]).succeeded().stdout;
    assert!(told.contains("no_new_privs"), "{told}");
}

#[test]
fn a_version_and_completions_are_printed() {
    let stage = Stage::sqlite();
    assert!(stage.rtask(["version"]).succeeded().stdout.contains(env!("CARGO_PKG_VERSION")));
    for shell in ["bash", "zsh", "fish"] {
        assert!(stage.rtask(["completions", shell]).succeeded().stdout.contains("rtask"));
    }
}
