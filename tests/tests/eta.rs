//! Tasks that are due in an hour cost a worker nothing until then, however many they are.

use rtask_tests::{Stage, Worker, environment, proc, wait_until};
use serde_json::json;

/// So many go before, so that what a worker needs once is not counted.
const WARM_UP: u32 = 500;

/// How many there are, and by how many bytes a worker may have grown for having seen them all. The promise is about the
/// first; a worker that kept the messages, each above a kilobyte, would show with the second, too.
fn promise() -> (u32, u64) {
    if environment::is_full() { (100_000, 20 << 20) } else { (20_000, 8 << 20) }
}

fn memory(worker: &Worker) -> u64 {
    proc::memory(worker.pid()).expect("the worker runs")
}

trait FarTasks {
    /// That many tasks that are due in an hour.
    fn publish(&self, count: u32);

    /// Wait until so many are put aside, and nobody holds any.
    fn wait_until_parked(&self, count: u32);
}

/// By Celery, to a server.
struct OnServer<'a>(&'a Stage);

impl FarTasks for OnServer<'_> {
    fn publish(&self, count: u32) {
        self.0.celery(&format!(
            r#"
publisher = Celery("publisher", broker=BROKER)
# Closed in good order: what a client that just ends has not had confirmed, RabbitMQ may drop.
with kombu.Connection(BROKER) as connection, connection.Producer() as producer:
    for number in range({count}):
        publisher.send_task("probe.echo", args=[number], countdown=3600, producer=producer)
answer(None)
"#
        ));
    }

    fn wait_until_parked(&self, count: u32) {
        self.0.celery(&format!(
            r#"
def parked():
    if BROKER.startswith("redis"):
        return store().zcard("rtask-postponed.celery")
    return sum(waiting(f"celery_delayed_{{bit}}") for bit in range(28))


before = -1
while parked() < {count}:
    # Slow is no fault; a worker that stands still is.
    wait_until(lambda: parked() > before)
    before = parked()
wait_until(lambda: waiting() == 0 and parked() == {count})
answer(None)
"#
        ));
        wait_until("nothing is held", || self.0.unacknowledged("celery") == 0);
    }
}

/// By rtask, which sends one task at a time, into a file, where it is multiplied.
struct InFile<'a>(&'a Stage);

impl InFile<'_> {
    fn call(&self) {
        self.0.rtask(["call", "probe.echo", "--args", "[0]", "--countdown", "3600"]).succeeded();
    }
}

impl FarTasks for InFile<'_> {
    fn publish(&self, count: u32) {
        self.call();
        self.0.celery(&format!(
            r#"
import sqlite3

with sqlite3.connect(BROKER.removeprefix("sqlite:"), timeout=WAIT) as file:
    file.execute(
        """
        WITH RECURSIVE numbers (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < ?)
        INSERT INTO messages (queue, priority, headers, properties, body)
        SELECT queue, priority, json_set(headers, '$.id', 'far-' || max_id || '-' || number), properties, body
        FROM messages JOIN numbers JOIN (SELECT max(id) AS max_id FROM messages) ON id = max_id
        """,
        ({count} - 2,),
    )
answer(None)
"#
        ));
        // Workers are told of this one, and look.
        self.call();
    }

    fn wait_until_parked(&self, count: u32) {
        wait_until("all are put aside", || {
            let queues = self.0.rtask(["--json", "queues"]).succeeded().json();
            let queue = queues.as_array().and_then(|queues| queues.first().cloned()).unwrap_or_default();
            queue["postponed"] == count && queue["messages"] == 0 && queue["unacked"] == 0
        });
    }
}

fn far_tasks_cost_nothing(stage: &Stage, tasks: &impl FarTasks) -> Worker {
    let (count, most) = promise();
    let worker = stage.probe(&["-c", "2"]);
    tasks.publish(WARM_UP);
    tasks.wait_until_parked(WARM_UP);
    let before = memory(&worker);
    tasks.publish(count);
    tasks.wait_until_parked(WARM_UP + count);
    let after = memory(&worker);
    println!("{count} far tasks: {before} bytes before, {after} after");
    assert!(after.saturating_sub(before) < most, "from {before} to {after} bytes for {count} tasks");
    worker
}

/// What the last worker said of the task with this id is that it was dropped for having been revoked.
fn assert_dropped_as_revoked(worker: &Worker, id: &str) {
    let line = worker.wait_for_log("task dropped");
    assert!(line.contains(id) && line.contains("Revoked"), "{line}");
}

/// Nobody is left who could have kept it in mind.
fn assert_revoke_outlives(stage: &Stage, worker: Worker, id: &str) {
    worker.ask_to_end();
    assert_eq!(worker.wait().code(), Some(0));
    let next = stage.worker("w2", &["-c", "2"]);
    assert_dropped_as_revoked(&next, id);
    let record = stage.rtask(["--json", "result", id]).json();
    assert_eq!(record["status"], "REVOKED");
}

fn many_far_tasks_and_a_revoke_among_them(stage: &Stage) {
    let worker = far_tasks_cost_nothing(stage, &OnServer(stage));
    let seen = stage.celery(
        r#"
at_once = app.send_task("probe.echo", args=["at once"])
near = app.send_task("probe.echo", args=["never"], countdown=15, task_id=own("near"))
told("revoke", near.id)
answer(at_once.get(timeout=WAIT))
"#,
    );
    assert_eq!(seen, json!("at once"));
    assert_revoke_outlives(stage, worker, &stage.own("near"));
}

#[test]
fn a_hundred_thousand_far_tasks_cost_a_worker_on_rabbitmq_nothing_and_a_revoke_among_them_outlives_it() {
    many_far_tasks_and_a_revoke_among_them(&Stage::servers());
}

#[test]
fn a_hundred_thousand_far_tasks_cost_a_worker_on_redis_nothing_and_a_revoke_among_them_outlives_it() {
    many_far_tasks_and_a_revoke_among_them(&Stage::redis());
}

#[test]
fn a_hundred_thousand_far_tasks_cost_a_worker_on_one_file_nothing_and_a_revoke_among_them_outlives_it() {
    let stage = Stage::sqlite();
    let worker = far_tasks_cost_nothing(&stage, &InFile(&stage));
    assert_eq!(stage.rtask(["call", "probe.echo", "--args", "[5]", "--wait"]).succeeded().stdout.trim(), "5");
    stage.rtask(["call", "probe.echo", "--args", "[6]", "--countdown", "15", "--task-id", "near"]).succeeded();
    stage.rtask(["control", "revoke", "near"]).succeeded();
    assert_revoke_outlives(&stage, worker, "near");
}
