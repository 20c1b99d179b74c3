//! What lies in queues, seen and changed from the command line: `rtask queues`, `rtask purge`, `rtask worker --purge` and
//! `rtask dead-letters`.

use rtask_tests::{Stage, environment, wait_until};
use serde_json::{Value, json};

rtask_tests::facts![rabbitmq = servers, redis = redis, sqlite = sqlite; [
    queues_show_what_waits,
    queues_show_what_is_put_aside_where_the_broker_tells,
    a_purge_is_meant_or_does_not_happen,
    a_purge_removes_what_waits_in_the_queues_that_it_names,
    a_worker_that_purges_runs_only_what_comes_later,
    dead_letters_are_listed_and_shown_with_the_reason,
    dead_letters_can_be_sent_again,
    dead_letters_can_be_sent_elsewhere,
    dead_letters_can_be_dropped,
]];

fn send(stage: &Stage, queue: &str, count: u32) {
    for number in 0..count {
        let args = format!("[{number}]");
        stage.rtask(["call", "probe.echo", "--args", &args, "--queue", queue]).succeeded();
    }
}

fn queues(stage: &Stage, names: &str) -> Value {
    stage.rtask(["--json", "queues", "-Q", names]).succeeded().json()
}

fn queues_show_what_waits(stage: &Stage) {
    send(stage, "celery", 3);
    let people = stage.rtask(["queues"]).succeeded().stdout;
    let row = people.lines().find(|line| line.starts_with("celery")).unwrap_or_default();
    assert_eq!(row.split_whitespace().nth(1), Some("3"), "{people}");

    let found = queues(stage, "celery,never-made");
    assert_eq!((&found[0]["queue"], &found[0]["messages"]), (&json!("celery"), &json!(3)));
    assert_eq!((&found[1]["queue"], &found[1]["exists"]), (&json!("never-made"), &json!(false)));

    let _worker = stage.probe(&["-c", "1"]);
    wait_until("the messages are run", || stage.waiting("celery") == 0);
}

/// RabbitMQ does not.
fn queues_show_what_is_put_aside_where_the_broker_tells(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    stage.rtask(["call", "probe.echo", "--args", "[1]", "--countdown", "3600"]).succeeded();
    let expected = if stage.virtual_host.is_some() { Value::Null } else { json!(1) };
    wait_until("the message is put aside", || {
        let found = queues(stage, "celery");
        found[0]["messages"] == 0 && found[0]["postponed"] == expected
    });
}

fn a_purge_is_meant_or_does_not_happen(stage: &Stage) {
    send(stage, "celery", 2);
    let refused = stage.rtask(["purge"]).exited(2);
    assert!(refused.stderr.contains("--force"), "{refused:?}");
    assert_eq!(stage.waiting("celery"), 2);
}

fn a_purge_removes_what_waits_in_the_queues_that_it_names(stage: &Stage) {
    for (queue, count) in [("celery", 1), ("other", 2), ("kept", 1)] {
        send(stage, queue, count);
    }
    let told = stage.rtask(["--json", "purge", "--force", "-Q", "celery,other"]).succeeded().json();
    assert_eq!(told, json!({ "removed": 3, "queues": { "celery": 1, "other": 2 } }));
    assert_eq!((stage.waiting("other"), stage.waiting("kept")), (0, 1));
    let people = stage.rtask(["purge", "--force", "-Q", "kept"]).succeeded().stdout;
    assert_eq!(people, "1 message removed from 1 queue\n");
    let nothing = stage.rtask(["--json", "purge", "--force", "-Q", "never-made"]).succeeded().json();
    assert_eq!(nothing["removed"], 0);
}

fn a_worker_that_purges_runs_only_what_comes_later(stage: &Stage) {
    let id = stage.own("before");
    stage.rtask(["call", "probe.echo", "--args", "[1]", "--task-id", &id]).succeeded();
    let worker = stage.probe(&["-c", "1", "--purge"]);
    worker.wait_for_log("messages were removed from the queues");
    assert_eq!(stage.rtask(["call", "probe.echo", "--args", "[2]", "--wait"]).succeeded().stdout, "2\n");
    assert_eq!((stage.state(&id), stage.waiting("celery")), ("PENDING".to_owned(), 0));
}

/// Calls of a task that nobody knows yet, under these ids.
fn bury(stage: &Stage, ids: &[&str]) {
    for id in ids {
        stage.call_until("FAILURE", &stage.own(id), &["hello.add", "--args", "[2, 3]"]);
    }
}

fn dead_letters(stage: &Stage) -> Value {
    stage.rtask(["--json", "dead-letters", "list"]).succeeded().json()
}

fn dead_letters_are_listed_and_shown_with_the_reason(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    assert_eq!(dead_letters(stage), json!([]));
    bury(stage, &["a", "b"]);
    let letters = dead_letters(stage);
    let ids: Vec<&Value> = letters.as_array().into_iter().flatten().map(|letter| &letter["id"]).collect();
    assert_eq!(ids, [&json!(stage.own("a")), &json!(stage.own("b"))]);
    let first = &letters[0];
    assert_eq!((&first["task"], &first["code"]), (&json!("hello.add"), &json!("not-registered")));
    assert_eq!((&first["queue"], &first["in"]), (&json!("celery"), &json!("celery.dead")));
    assert!(first["reason"].as_str().is_some_and(|reason| reason.contains("no deployed module")), "{first}");

    let people = stage.rtask(["dead-letters", "list"]).succeeded().stdout;
    assert!(people.contains(&stage.own("a")) && people.contains("not-registered"), "{people}");
    let shown = stage.rtask(["--json", "dead-letters", "show", &stage.own("b")]).succeeded().json();
    let body: Value = serde_json::from_str(shown["body"].as_str().unwrap_or_default()).unwrap();
    assert_eq!((&shown["headers"]["id"], &body[0]), (&json!(stage.own("b")), &json!([2, 3])));
    // Looking changes nothing.
    assert_eq!(dead_letters(stage), letters);
    let unknown = stage.rtask(["dead-letters", "show", "nobody"]).exited(1);
    assert!(unknown.stderr.contains("nobody"), "{unknown:?}");
}

fn dead_letters_can_be_sent_again(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    bury(stage, &["a", "b", "c"]);
    stage.deploy(&environment::hello());
    let one = stage.rtask(["--json", "dead-letters", "requeue", &stage.own("b")]).succeeded().json();
    assert_eq!(one, json!({ "requeued": 1 }));
    wait_until("the letter is run", || stage.state(&stage.own("b")) == "SUCCESS");
    assert_eq!(dead_letters(stage).as_array().map(Vec::len), Some(2));

    let all = stage.rtask(["dead-letters", "requeue", "--all"]).succeeded().stdout;
    assert_eq!(all, "2 dead letters sent again\n");
    for id in ["a", "c"] {
        wait_until("the letter is run", || stage.state(&stage.own(id)) == "SUCCESS");
    }
    assert_eq!(dead_letters(stage), json!([]));
}

fn dead_letters_can_be_sent_elsewhere(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    bury(stage, &["a"]);
    stage.rtask(["dead-letters", "requeue", &stage.own("a"), "--to", "elsewhere"]).succeeded();
    assert_eq!((stage.waiting("elsewhere"), dead_letters(stage)), (1, json!([])));
}

fn dead_letters_can_be_dropped(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    bury(stage, &["a", "b", "c"]);
    stage.rtask(["dead-letters", "drop", &stage.own("a")]).exited(2);
    let one = stage.rtask(["--json", "dead-letters", "drop", "--force", &stage.own("a")]).succeeded().json();
    assert_eq!(one, json!({ "dropped": 1 }));
    let all = stage.rtask(["--json", "dead-letters", "drop", "--force", "--all"]).succeeded().json();
    assert_eq!((all, dead_letters(stage)), (json!({ "dropped": 2 }), json!([])));
}
