//! 5,000 tasks under way, and the servers fall away: all of them end, each in exactly one final state.

use rtask_tests::{Stage, wait_until};
use serde_json::{Value, json};

/// A fifth of the tasks ask once for another run, so that the worker has something to publish, too. The others take a
/// moment, so that no worker is done with all of them before the trouble has begun.
const LOAD: &str = r#"
COUNT = 5_000


def finished():
    """How many have succeeded so far."""
    records = store().mget([f"celery-task-meta-load-{number}" for number in range(COUNT)])
    return sum(1 for record in records if record and '"SUCCESS"' in record)


def wait_for(count):
    wait_until(lambda: finished() >= count)
"#;

/// A stage with servers of its own, where all tasks wait, and nobody has begun yet.
fn loaded(stage: Stage) -> Stage {
    script(
        &stage,
        r#"
# Without a backend, so that nobody here listens to 5,000 results.
publisher = Celery("publisher", broker=BROKER)
# Closed in good order: what a client that just ends has not had confirmed, RabbitMQ may drop.
with kombu.Connection(BROKER) as connection, connection.Producer() as producer:
    for number in range(COUNT):
        name, args = ("probe.flaky", [1]) if number % 5 == 0 else ("probe.tracked", [0.005])
        publisher.send_task(name, args=args, task_id=f"load-{number}", producer=producer)
answer(None)
"#,
    );
    stage
}

fn script(stage: &Stage, text: &str) -> Value {
    stage.celery(&format!("{LOAD}{text}"))
}

fn wait_for(stage: &Stage, count: u32) {
    script(stage, &format!("wait_for({count}); answer(None)"));
}

/// The log of Redis tells of every state that was ever stored, whatever befell the listeners.
fn assert_each_ends_once(stage: &Stage) {
    wait_for(stage, 5_000);
    let folder = stage.redis.as_ref().expect("this stage has a Redis of its own").folder();
    let seen = script(
        stage,
        &format!(
            r#"
import glob
from collections import Counter


def commands(path):
    with open(path, "rb") as log:
        while count := log.readline():
            parts = []
            for _ in range(int(count[1:])):
                parts.append(log.read(int(log.readline()[1:])))
                log.readline()
            yield parts


FINAL = {{"SUCCESS", "FAILURE", "REVOKED"}}
ends = Counter()
for path in glob.glob("{folder}/appendonlydir/*.incr.aof"):
    for name, *parts in commands(path):
        if name.upper() in (b"SET", b"SETEX", b"PSETEX") and parts[0].startswith(b"celery-task-meta-load-"):
            value = next(json.loads(part) for part in parts[1:] if part.startswith(b"{{"))
            if value["status"] in FINAL:
                ends[(value["task_id"], value["status"])] += 1
# Whatever was last acknowledged may still be on its way.
wait_until(lambda: waiting() == 0)
answer({{
    "tasks": len({{task for task, _ in ends}}),
    "ends": sum(ends.values()),
    "states": sorted({{state for _, state in ends}}),
    "dead": waiting("celery.dead"),
}})
"#,
            folder = folder.display()
        ),
    );
    assert_eq!(seen, json!({ "tasks": 5_000, "ends": 5_000, "states": ["SUCCESS"], "dead": 0 }));
    wait_until("nothing is held", || stage.unacknowledged("celery") == 0);
}

/// The whole life of the load: `trouble` begins when some hundreds of tasks are done.
fn live_through(stage: Stage, trouble: impl FnOnce(&mut Stage)) {
    let mut stage = loaded(stage);
    let worker = stage.probe(&["-c", "4"]);
    let before = worker.processes();
    wait_for(&stage, 300);
    trouble(&mut stage);
    assert_each_ends_once(&stage);
    assert_eq!(worker.processes(), before);
}

fn assert_some_are_left(stage: &Stage) {
    assert_eq!(script(stage, "answer(finished() < COUNT)"), json!(true), "the trouble came too late");
}

fn cut_connections_to_redis(stage: &mut Stage) {
    script(
        stage,
        r#"
for done in range(600, 3_600, 600):
    # Until there was one, since they may all be trying again.
    wait_until(lambda: store().client_kill_filter(_type="normal", skipme=True) > 0)
    assert finished() < COUNT
    wait_for(done)
answer(None)
"#,
    );
}

fn restart_redis(stage: &mut Stage) {
    for done in [1_000, 2_000, 3_000] {
        stage.redis.as_mut().expect("this stage has a Redis of its own").restart().unwrap();
        assert_some_are_left(stage);
        wait_for(stage, done);
    }
}

#[test]
fn five_thousand_tasks_end_once_while_connections_to_the_result_store_are_cut() {
    live_through(Stage::own_redis(), cut_connections_to_redis);
}

#[test]
fn five_thousand_tasks_end_once_while_connections_to_a_redis_broker_are_cut() {
    live_through(Stage::own_redis_alone(), cut_connections_to_redis);
}

#[test]
fn five_thousand_tasks_end_once_over_restarts_of_the_result_store() {
    live_through(Stage::own_redis(), restart_redis);
}

#[test]
fn five_thousand_tasks_end_once_over_restarts_of_a_redis_broker() {
    live_through(Stage::own_redis_alone(), restart_redis);
}

#[test]
fn five_thousand_tasks_end_once_over_restarts_of_rabbitmq() {
    live_through(Stage::own_servers(), |stage| {
        for done in [1_500, 3_000] {
            stage.rabbitmqctl(&["stop_app"]);
            assert_some_are_left(stage);
            stage.rabbitmqctl(&["start_app"]);
            wait_for(stage, done);
        }
    });
}

/// A memory alarm stops everybody who publishes: here, a worker whose tasks ask for another run.
#[test]
fn five_thousand_tasks_end_once_through_a_rabbitmq_that_takes_no_messages_for_a_while() {
    live_through(Stage::own_servers(), |stage| {
        stage.rabbitmqctl(&["set_vm_memory_high_watermark", "0.00001"]);
        wait_until("the worker's publisher is blocked", || {
            stage.rabbitmqctl(&["list_connections", "state"]).lines().any(|state| state.trim() == "blocked")
        });
        assert_some_are_left(stage);
        stage.rabbitmqctl(&["set_vm_memory_high_watermark", "0.6"]);
    });
}
