//! A worker that is asked to end: TERM and one INT let it finish what it began, QUIT and a second INT do not; whatever it
//! leaves unfinished is there for others at once. The signals are Celery's (`celery/apps/worker.py`).

use rtask_tests::{Signal, Stage, Worker, environment, proc, wait_until};
use serde_json::json;

rtask_tests::facts![rabbitmq = servers, redis = redis, sqlite = sqlite; [
    term_lets_the_running_task_finish_and_leaves_those_that_wait,
    int_lets_the_running_task_finish,
    int_twice_gives_the_running_task_back,
    quit_gives_back_what_runs_and_what_waits,
    quit_ends_an_idle_worker,
    a_soft_shutdown_gives_running_tasks_time_to_finish,
    a_soft_shutdown_gives_back_what_does_not_finish,
    remap_sigterm_makes_term_a_quit,
    an_early_task_is_lost_in_a_cold_shutdown,
]];

/// A few seconds, so that what happens meanwhile happens in the middle of it.
const A_WHILE: [&str; 3] = ["probe.tracked", "--args", "[3]"];
const FOR_EVER: [&str; 3] = ["probe.nap", "--args", "[3600]"];
const WAITING: [&str; 3] = ["waiting-1", "waiting-2", "waiting-3"];

/// A worker that runs one task while three others wait for it.
fn busy_worker(stage: &Stage, state: &str, call: &[&str]) -> Worker {
    let worker = stage.probe(&["-c", "1"]);
    occupy(stage, state, call);
    worker
}

fn occupy(stage: &Stage, state: &str, call: &[&str]) {
    stage.call_until(state, &stage.own("running"), call);
    for id in WAITING {
        stage.rtask(["call", "--task-id", &stage.own(id), "probe.echo", "--args", "[4]"]).succeeded();
    }
}

fn assert_finished_and_left_the_others(stage: &Stage) {
    assert_eq!((stage.state(&stage.own("running")), stage.waiting("celery")), ("SUCCESS".to_owned(), 3));
    let _next = stage.worker("w2", &["-c", "1"]);
    assert_others_are_run(stage);
}

fn assert_others_are_run(stage: &Stage) {
    for id in WAITING {
        assert_eq!(stage.rtask(["result", &stage.own(id), "--wait"]).succeeded().stdout, "4\n");
    }
}

fn assert_gave_all_back(stage: &Stage) {
    assert_eq!(stage.waiting("celery"), 4);
    let _next = stage.worker("w2", &["-c", "2"]);
    assert_others_are_run(stage);
    let running = stage.own("running");
    wait_until("the task that was cut off runs again", || {
        stage.rtask(["--json", "result", &running]).json()["result"] == json!({ "redelivered": true })
    });
}

fn term_lets_the_running_task_finish_and_leaves_those_that_wait(stage: &Stage) {
    let worker = busy_worker(stage, "STARTED", &A_WHILE);
    worker.ask_to_end();
    assert_eq!(worker.wait().code(), Some(0));
    assert_finished_and_left_the_others(stage);
}

/// A terminal tells the worker's children too; they must leave it to the worker.
fn int_lets_the_running_task_finish(stage: &Stage) {
    stage.deploy(&environment::probe());
    let worker = Worker::start_as_job(stage, "w1", &["-c", "1"]);
    occupy(stage, "STARTED", &A_WHILE);
    worker.press_ctrl_c();
    assert_eq!(worker.wait().code(), Some(0));
    assert_finished_and_left_the_others(stage);
}

fn int_twice_gives_the_running_task_back(stage: &Stage) {
    stage.deploy(&environment::probe());
    let worker = Worker::start_as_job(stage, "w1", &["-c", "1"]);
    occupy(stage, "NAPPING", &FOR_EVER);
    worker.press_ctrl_c();
    worker.wait_for_log("stopping when the running tasks are done");
    worker.press_ctrl_c();
    assert_eq!(worker.wait().code(), Some(1));
    assert_gave_all_back(stage);
}

fn quit_gives_back_what_runs_and_what_waits(stage: &Stage) {
    let worker = busy_worker(stage, "NAPPING", &FOR_EVER);
    let children = worker.children();
    worker.signal(Signal::SIGQUIT);
    assert_eq!(worker.wait().code(), Some(1));
    children.into_iter().for_each(proc::wait_for_end);
    assert_gave_all_back(stage);
}

fn quit_ends_an_idle_worker(stage: &Stage) {
    let worker = stage.probe(&["-c", "1"]);
    let children = worker.children();
    assert!(!children.is_empty());
    worker.signal(Signal::SIGQUIT);
    assert_eq!(worker.wait().code(), Some(1));
    children.into_iter().for_each(proc::wait_for_end);
}

fn a_soft_shutdown_gives_running_tasks_time_to_finish(stage: &Stage) {
    stage.configure("worker_soft_shutdown_timeout = 100");
    let worker = busy_worker(stage, "STARTED", &A_WHILE);
    worker.signal(Signal::SIGQUIT);
    assert_eq!(worker.wait().code(), Some(1));
    assert_finished_and_left_the_others(stage);
}

fn a_soft_shutdown_gives_back_what_does_not_finish(stage: &Stage) {
    stage.configure("worker_soft_shutdown_timeout = 1");
    let worker = busy_worker(stage, "NAPPING", &FOR_EVER);
    worker.signal(Signal::SIGQUIT);
    assert_eq!(worker.wait().code(), Some(1));
    assert_gave_all_back(stage);
}

fn remap_sigterm_makes_term_a_quit(stage: &Stage) {
    stage.deploy(&environment::probe());
    let worker = Worker::start_with(stage, ("REMAP_SIGTERM", "SIGQUIT"), "w1", &["-c", "1"]);
    occupy(stage, "NAPPING", &FOR_EVER);
    worker.ask_to_end();
    assert_eq!(worker.wait().code(), Some(1));
    assert_gave_all_back(stage);
}

fn an_early_task_is_lost_in_a_cold_shutdown(stage: &Stage) {
    let worker = busy_worker(stage, "STARTED", &["probe.early", "--args", "[3600]"]);
    worker.signal(Signal::SIGQUIT);
    assert_eq!(worker.wait().code(), Some(1));
    assert_eq!(stage.waiting("celery"), 3);
}

#[test]
fn an_idle_worker_ends_at_once_and_takes_its_children_with_it() {
    let stage = Stage::sqlite();
    let worker = stage.worker("w1", &["-c", "1"]);
    stage.deploy(&environment::hello());
    let children = worker.children();
    assert!(!children.is_empty());
    worker.ask_to_end();
    assert_eq!(worker.wait().code(), Some(0));
    children.into_iter().for_each(proc::wait_for_end);
}
