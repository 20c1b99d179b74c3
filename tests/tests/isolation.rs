//! Where guest code is compiled and run, there is nothing to take: seen from outside, through /proc, and from
//! inside, by guests that look around.

use std::{ffi::OsStr, net::TcpListener, path::PathBuf, process::Stdio};

use rtask_tests::{
    Guest, PATIENCE, Stage, environment,
    proc::{self, Descriptor, Standing},
};
use serde_json::{Value, json};
use xtask::process::Running;

/// Of a process that may run or compile what somebody else wrote.
fn assert_holds_nothing(pid: u32) {
    for thread in proc::standings(pid).unwrap() {
        assert_is_nobody_special(&thread);
    }
    assert_eq!(proc::environment(pid).unwrap(), "", "process {pid} has an environment");
    let own_pagemap = PathBuf::from(format!("/proc/{pid}/pagemap"));
    for descriptor in proc::descriptors(pid).unwrap() {
        let harmless = match &descriptor {
            Descriptor::Unix | Descriptor::Pipe | Descriptor::Memory | Descriptor::Kernel => true,
            Descriptor::Network => false,
            // How the process finds out which of its own pages a guest has written to.
            Descriptor::File(path) => *path == own_pagemap || path.as_os_str() == "/dev/null",
        };
        assert!(harmless, "process {pid} has {descriptor:?} open");
    }
}

/// Not root, by any of the ids, and never to be again.
fn assert_is_nobody_special(thread: &Standing) {
    assert_eq!((thread.uids.len(), thread.gids.len()), (4, 4), "{thread:?}");
    assert!(thread.uids.iter().chain(&thread.gids).all(|id| *id != 0), "{thread:?}");
    assert!(!thread.groups.contains(&0), "{thread:?}");
    assert!(thread.no_new_privs, "{thread:?}");
    assert_eq!(thread.capabilities, 0, "{thread:?}");
}

#[test]
fn a_workers_children_hold_nothing_and_neither_they_nor_it_are_root() {
    let stage = Stage::servers();
    let worker = stage.worker("w1", &["-c", "2"]);
    stage.deploy(&environment::hello());
    stage.celery(r#"answer(app.send_task("hello.add", args=[2, 2]).get(timeout=WAIT))"#);
    let children = worker.children();
    assert!(!children.is_empty(), "a worker runs guests in children");
    children.into_iter().for_each(assert_holds_nothing);

    for thread in proc::standings(worker.pid()).unwrap() {
        assert_is_nobody_special(&thread);
    }
    // What the children are without, the worker has: root can see the difference, and others of the worker's own
    // account, such as its children, cannot even look.
    match proc::descriptors(worker.pid()) {
        Ok(found) if rustix::process::geteuid().is_root() => assert!(found.contains(&Descriptor::Network)),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied),
        Ok(_) => panic!("a process of the worker's own account can look into it"),
    }
}

/// A deploy compiles and describes; the guest makes each take long enough to look at.
fn assert_child_of_a_deploy_holds_nothing(stage: &Stage, guest: &Guest, name: &str) {
    let component = guest.write(stage.folder(), "slow");
    let mut command = stage.command();
    command.args([OsStr::new("deploy"), component.as_os_str()]).stdin(Stdio::null());
    let mut deploy = Running::start("rtask deploy", &mut command, &stage.folder().join("deploy.log")).unwrap();
    let pid = deploy.pid();
    let child = deploy.wait_until("it had a child", PATIENCE, |_| {
        let family = xtask::process::tree(pid).ok()?;
        // Locked in: the last thing before any foreign byte is read.
        family.into_iter().filter(|member| *member != pid).find(|child| is_named(*child, name) && is_locked_in(*child))
    });
    assert_holds_nothing(child.unwrap());
}

/// The other child may have ended by the time that one looks at it.
fn is_named(pid: u32, name: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|told| told.trim_end() == name)
}

fn is_locked_in(pid: u32) -> bool {
    proc::standings(pid).is_ok_and(|threads| threads.len() > 1 && threads.iter().all(|thread| thread.no_new_privs))
}

#[test]
fn whoever_describes_a_module_holds_nothing() {
    let guest = Guest::answering("slow", "slow.task", "1").before_describe("(loop $for-ever (br $for-ever))");
    assert_child_of_a_deploy_holds_nothing(&Stage::sqlite(), &guest, "rtask-runner");
}

#[test]
fn whoever_compiles_a_module_holds_nothing() {
    let guest = Guest::answering("slow", "slow.task", "1").with_ballast(&rtask_tests::guest::compile_bomb());
    assert_child_of_a_deploy_holds_nothing(&Stage::sqlite(), &guest, "rtask-compiler");
}

#[test]
fn a_guest_sees_no_files_no_environment_and_no_network() {
    let stage = Stage::sqlite();
    let _worker = stage.worker("w1", &["-c", "1"]);
    stage.deploy(&environment::probe());
    let call = |task: &str, args: Value| {
        let args = args.to_string();
        stage.rtask(["--json", "call", task, "--args", &args, "--wait"]).succeeded().json()["result"].clone()
    };
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();

    assert_eq!(call("probe.environment", json!([])), json!([]));
    let files = call("probe.files", json!([]));
    let network = call("probe.network", json!([address]));
    for (attempts, count) in [(files, 7), (network, 4)] {
        let attempts = attempts.as_object().unwrap().clone();
        assert_eq!(attempts.len(), count);
        for (attempt, error) in attempts {
            assert!(error.is_string(), "a guest could {attempt}");
        }
    }
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "a guest has connected");
}

#[test]
fn a_guest_gets_a_fresh_instance_for_each_task() {
    let counter = "(global.set $top (i32.add (global.get $top) (i32.const 65536)))
        (if (i32.gt_u (global.get $top) (i32.const 150000)) (then unreachable))";
    let stage = Stage::sqlite();
    let _worker = stage.worker("w1", &["-c", "1"]);
    let guest = Guest::answering("fresh", "fresh.task", "1").before_run(counter);
    stage.deploy(&guest.write(stage.folder(), "fresh"));
    // Its second run in one instance would trap.
    for _ in 0..3 {
        assert_eq!(stage.rtask(["call", "fresh.task", "--wait"]).succeeded().stdout.trim(), "1");
    }
}
