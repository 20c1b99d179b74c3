//! No confirmed task is lost, whoever dies.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rtask_tests::{Stage, Worker, environment, servers::rabbitmqctl};
use serde_json::json;

/// The RabbitMQ that all tests share: one of them restarts it.
static RABBITMQ: RwLock<()> = RwLock::new(());

fn share_rabbitmq() -> RwLockReadGuard<'static, ()> {
    RABBITMQ.read().unwrap_or_else(PoisonError::into_inner)
}

fn own_rabbitmq() -> RwLockWriteGuard<'static, ()> {
    RABBITMQ.write().unwrap_or_else(PoisonError::into_inner)
}

/// Arguments of `probe.tracked`. Some seconds, so that what happens meanwhile happens in the middle of it.
const A_WHILE: &str = "[5]";
/// On the first worker it never ends; any other is done at once.
const FOR_EVER_ON_THE_FIRST: &str = r#"[0, "w1@localhost"]"#;
const FOR_EVER: &str = "[3600]";

const GET: &str = r#"answer(app.AsyncResult(own("held")).get(timeout=WAIT))"#;

/// A worker with a task in its hands: its id is `own("held")`, and its result the name of who ran it.
fn worker_with_a_task(stage: &Stage, args: &str) -> Worker {
    let worker = stage.worker("w1", &["-c", "1"]);
    stage.deploy(&environment::probe());
    stage.celery(&format!(r#"app.send_task("probe.tracked", args={args}, task_id=own("held")); answer(None)"#));
    wait_until_held_by(stage, &worker);
    worker
}

fn wait_until_held_by(stage: &Stage, worker: &Worker) {
    let pid = worker.pid();
    stage.celery(&format!(
        r#"
held = app.AsyncResult(own("held"))
wait_until(lambda: held.state == "STARTED" and held.info["pid"] == {pid})
answer(None)
"#
    ));
}

#[test]
fn a_killed_workers_task_is_run_by_another() {
    let _rabbitmq = share_rabbitmq();
    let stage = Stage::servers();
    let worker = worker_with_a_task(&stage, FOR_EVER_ON_THE_FIRST);
    worker.kill();
    let _other = stage.worker("w2", &["-c", "1"]);
    assert_eq!(stage.celery(GET), json!("w2@localhost"));
}

#[test]
fn a_killed_workers_task_is_run_by_another_on_one_file_too() {
    let stage = Stage::sqlite();
    let worker = stage.worker("w1", &["-c", "1"]);
    stage.deploy(&environment::probe());
    stage.rtask(["call", "probe.tracked", "--args", FOR_EVER_ON_THE_FIRST, "--task-id", "held"]).succeeded();
    while stage.rtask(["--json", "result", "held"]).json()["status"] != "STARTED" {}
    worker.kill();
    let _other = stage.worker("w2", &["-c", "1"]);
    let record = stage.rtask(["--json", "result", "held", "--wait"]).succeeded().json();
    assert_eq!((&record["status"], &record["result"]), (&json!("SUCCESS"), &json!("w2@localhost")));
}

#[test]
fn a_task_outlives_a_restart_of_its_broker() {
    let _rabbitmq = own_rabbitmq();
    let stage = Stage::servers();
    let worker = worker_with_a_task(&stage, A_WHILE);
    let before = worker.processes();
    rabbitmqctl(&["stop_app"]);
    rabbitmqctl(&["start_app"]);
    assert_eq!(stage.celery(GET), json!("w1@localhost"));
    // The worker is back at work, not merely done with what it had.
    let next = stage.celery(r#"answer(app.send_task("probe.tracked", args=[0.0]).get(timeout=WAIT))"#);
    assert_eq!(next, json!("w1@localhost"));
    assert_eq!(worker.processes(), before);
}

#[test]
fn a_result_outlives_a_restart_of_its_store() {
    let _rabbitmq = share_rabbitmq();
    let mut stage = Stage::own_redis();
    let worker = worker_with_a_task(&stage, A_WHILE);
    let before = worker.processes();
    stage.redis.as_mut().expect("this stage has one").restart().unwrap();
    assert_eq!(stage.celery(GET), json!("w1@localhost"));
    assert_eq!(worker.processes(), before);
}

#[test]
fn a_task_that_keeps_killing_its_worker_becomes_a_dead_letter() {
    let _rabbitmq = share_rabbitmq();
    let stage = Stage::servers();
    let mut worker = worker_with_a_task(&stage, FOR_EVER);
    // The delivery limit is 5, and this was the first.
    for attempt in 2..=5 {
        worker.kill();
        worker = stage.worker(&format!("w{attempt}"), &["-c", "1"]);
        wait_until_held_by(&stage, &worker);
    }
    worker.kill();
    let _last = stage.worker("last", &["-c", "1"]);
    let dead = stage.celery(r#"answer(take("celery.dead"))"#);
    assert_eq!(dead["headers"]["id"], json!(stage.own("held")));
    let attempts = &dead["headers"]["x-rtask-death-attempts"];
    assert!(attempts.as_u64().is_some_and(|attempts| attempts >= 5), "{dead}");
}

/// What ran in the runner is run again; what only waited must not notice, however fast it is handed out meanwhile.
#[test]
fn a_killed_runner_costs_the_messages_that_wait_nothing() {
    let _rabbitmq = share_rabbitmq();
    let stage = Stage::servers();
    let worker = worker_with_a_task(&stage, A_WHILE);
    stage.deploy(&environment::hello());
    stage.celery(
        r#"
for number in range(50):
    app.send_task("hello.add", args=[number, 1], task_id=own(f"waiting-{number}"))
answer(None)
"#,
    );
    worker.kill_runner();
    let seen = stage.celery(
        r#"
sums = [app.AsyncResult(own(f"waiting-{number}")).get(timeout=WAIT) for number in range(50)]
answer({"sums": sums, "held": app.AsyncResult(own("held")).get(timeout=WAIT)})
"#,
    );
    let sums: Vec<u32> = (1..=50).collect();
    assert_eq!(seen, json!({ "sums": sums, "held": "w1@localhost" }));
}
