//! Messages as nobody should send them: cut, swapped, deep, huge, in disguise. Each ends as a dead letter with a reason or
//! in a stored state, none comes back for ever, and the worker goes on as it was.
//!
//! They are made of captured ones, by a seeded chance, in tests/python/mutants.py.

use rtask_tests::{Stage, environment, wait_until};
use serde_json::{Value, json};

/// Mutants in a batch, after which everything must be accounted for.
const BATCH: u32 = 60;

fn batches() -> u32 {
    if environment::is_full() { 100 } else { 6 }
}

fn script(stage: &Stage, text: &str) -> Value {
    stage.celery(&format!("from mutants import *\n{text}"))
}

fn mutants_hurt_nobody(stage: &Stage) {
    stage.configure("[limits]\narguments = \"1 MiB\"\n");
    let worker = stage.probe(&["-c", "2"]);
    let before = worker.processes();
    let (mut dead, mut all) = (0, 0);
    for batch in 1..=batches() {
        script(stage, &format!("publish_mutants({batch}, {BATCH}); answer(None)"));
        // It was sent behind them, and honest ones still run.
        let honest = stage.celery(
            r#"
value = app.send_task("probe.echo", args=["honest"]).get(timeout=WAIT)
wait_until(lambda: waiting() == 0)
answer(value)
"#,
        );
        assert_eq!(honest, json!("honest"));
        wait_until("nothing is held", || stage.unacknowledged("celery") == 0);
        let seen = script(stage, &format!("answer(unaccounted({batch}, {BATCH}))"));
        assert_eq!(seen["lost"], json!([]), "batch {batch}");
        assert_eq!(seen["reasonless"], json!([]), "batch {batch}");
        dead += seen["dead"].as_u64().unwrap_or(0);
        all += u64::from(BATCH) - seen["refused"].as_u64().unwrap_or(0);
    }
    assert_eq!(worker.processes(), before);
    // A test whose messages are all good, or all bad, tries little.
    assert!(dead > all / 4 && dead < all, "{dead} of {all} became dead letters");
}

#[test]
fn every_mutant_on_rabbitmq_ends_and_none_hurts_the_worker() {
    mutants_hurt_nobody(&Stage::servers());
}

#[test]
fn every_mutant_on_redis_ends_and_none_hurts_the_worker() {
    mutants_hurt_nobody(&Stage::redis());
}
