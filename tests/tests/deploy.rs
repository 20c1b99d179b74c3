//! Deploys are hot, whole or not at all.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rtask_tests::{Guest, Outcome, Stage, environment, guest};
use serde_json::{Value, json};

/// The modules that are deployed, as `rtask modules` tells them.
fn modules(stage: &Stage) -> Value {
    stage.rtask(["--json", "modules"]).succeeded().json()
}

/// Deploying this must fail with such a reason, and change nothing.
fn assert_refused(stage: &Stage, component: &Path, reason: &str) {
    let before = modules(stage);
    let refused = stage.rtask(["deploy".as_ref(), component.as_os_str()]).exited(1);
    assert!(refused.stderr.contains(reason), "expected `{reason}` in: {}", refused.stderr);
    assert_eq!(modules(stage), before);
}

fn file(stage: &Stage, name: &str, bytes: &[u8]) -> PathBuf {
    let path = stage.folder().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_new_version_is_switched_to_between_two_tasks() {
    let stage = Stage::servers();
    let worker = stage.worker("w1", &["-c", "1"]);
    // About ten milliseconds a task, so that the second version comes while most are queued.
    let work = "(local $left i32) (local.set $left (i32.const 10000000))
        (loop $again (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))";
    let version = |answer: &str| Guest::answering("which", "which.version", answer).before_run(work);
    stage.deploy(&version("1").write(stage.folder(), "one"));
    let before = worker.processes();
    stage.celery(r#"answer([app.send_task("which.version", task_id=f"queued-{n}").id for n in range(200)])"#);
    stage.deploy(&version("2").write(stage.folder(), "two"));
    let seen = stage.celery(
        r#"
later = app.send_task("which.version").get(timeout=WAIT)
queued = [app.AsyncResult(f"queued-{n}").get(timeout=WAIT) for n in range(200)]
answer({"later": later, "queued": queued})
"#,
    );
    assert_eq!(seen["later"], json!(2));
    let queued: Vec<u64> = seen["queued"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    assert_eq!(queued.len(), 200);
    assert!(queued.is_sorted(), "{queued:?}");
    assert!(queued.iter().all(|version| [1, 2].contains(version)), "{queued:?}");
    assert_eq!(worker.processes(), before);
}

#[test]
fn what_is_no_component_with_tasks_is_refused() {
    let stage = Stage::sqlite();
    stage.deploy(&environment::hello());
    let text = file(&stage, "text.wasm", b"(component)");
    let core = guest::write(stage.folder(), "core", r#"(module (func (export "run")))"#);
    let empty = guest::write(stage.folder(), "empty", "(component)");
    let machine = file(&stage, "machine.cwasm", b"\x7fELF\x02\x01\x01\x00 and so on");
    let cut = fs::read(environment::hello()).unwrap();
    let cut = file(&stage, "cut.wasm", &cut[..cut.len() / 2]);
    let missing = stage.folder().join("missing.wasm");
    let rows = [
        (text, "not wasm"),
        (core, "core module"),
        (empty, "no tasks"),
        (machine, "machine code"),
        (cut, "not valid"),
        (missing, "missing.wasm"),
    ];
    for (component, reason) in rows {
        assert_refused(&stage, &component, reason);
    }
}

#[test]
fn a_module_that_is_too_large_is_refused() {
    let stage = Stage::sqlite();
    let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
    bytes.resize(65 << 20, 0);
    assert_refused(&stage, &file(&stage, "large.wasm", &bytes), "allowed");
}

#[test]
fn a_module_that_cannot_say_what_it_is_is_refused() {
    let stage = Stage::sqlite();
    let honest = || Guest::answering("odd", "odd.task", "1");
    let rows = [
        ("traps", honest().before_describe("unreachable"), "unreachable"),
        ("spins", honest().before_describe("(loop $for-ever (br $for-ever))"), "time"),
        (
            "hoards",
            honest().before_describe(
                "(loop $more (br_if $more (i32.ge_s (memory.grow (i32.const 16)) (i32.const 0)))) unreachable",
            ),
            "memory",
        ),
        ("no-json", Guest::describing_itself_as("hello"), "manifest"),
        ("no-manifest", Guest::describing_itself_as(r#"{"tasks": 3}"#), "manifest"),
        ("no-task", Guest::describing_itself_as(r#"{"module": "odd", "sdk": "wat", "tasks": []}"#), "task"),
        (
            "no-name",
            Guest::describing_itself_as(r#"{"module": "../odd", "sdk": "wat", "tasks": [{"name": "a"}]}"#),
            "name",
        ),
    ];
    for (name, guest, reason) in rows {
        assert_refused(&stage, &guest.write(stage.folder(), name), reason);
    }
}

#[test]
fn a_module_that_takes_the_compiler_for_ever_is_refused() {
    let stage = Stage::sqlite();
    let bomb = Guest::answering("bomb", "bomb.task", "1").with_ballast(&guest::compile_bomb());
    let bomb = bomb.write(stage.folder(), "bomb");
    let before = modules(&stage);
    let mut command = stage.command();
    // The default is long enough for the slowest of machines.
    command.env("RTASK_LIMITS_COMPILE_TIME", "3").arg("deploy").arg(bomb);
    let refused = Outcome::of(&mut command).exited(1);
    assert!(refused.stderr.contains("the compiler was killed"), "{refused:?}");
    assert_eq!(modules(&stage), before);
}

#[test]
fn another_modules_task_name_is_taken_only_when_told_to() {
    let stage = Stage::sqlite();
    let first = Guest::answering("first", "shared.task", "1").write(stage.folder(), "first");
    let second = Guest::answering("second", "shared.task", "2").write(stage.folder(), "second");
    stage.deploy(&first);
    assert_refused(&stage, &second, "shared.task");
    stage.rtask(["deploy".as_ref(), second.as_os_str(), "--take-over".as_ref()]).succeeded();
    let _worker = stage.worker("w1", &["-c", "1"]);
    assert_eq!(stage.rtask(["call", "shared.task", "--wait"]).succeeded().stdout.trim(), "2");
}

#[test]
fn the_same_bytes_again_are_the_same_version() {
    let stage = Stage::sqlite();
    let guest = Guest::answering("same", "same.task", "1");
    let component = guest.write(stage.folder(), "same");
    stage.deploy(&component);
    let before = modules(&stage);
    stage.deploy(&component);
    assert_eq!(modules(&stage), before);
    stage.deploy(&Guest::answering("same", "same.task", "2").write(stage.folder(), "same-2"));
    assert_ne!(modules(&stage), before);
}
