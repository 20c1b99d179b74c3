//! Real children: a compiler and a runner, started by this test's own executable.
//!
//! The harness is not the standard one, since a child of this process must become a child before anything else.

use std::{process::ExitCode, time::Duration};

use libtest_mimic::{Arguments, Failed, Trial};
use rtask_sandbox::{
    CompileError, CompileLimits, Event, Exit, Job, Limit, Limits, LoadError, Notice, Runner, RunnerError, Sandbox,
    SandboxOptions, child,
    self_test::{self, ECHO_OR_SPIN},
};

type Outcome = Result<(), Failed>;

fn main() -> ExitCode {
    if let Some(code) = child::dispatch() {
        return code;
    }
    let trials = vec![
        trial("the_self_test_passes", the_self_test_passes),
        trial("what_is_no_component_is_refused_with_the_reason", refusals),
        trial("a_component_that_is_too_large_never_reaches_the_compiler", too_large),
        trial("a_compiler_out_of_time_or_memory_is_killed", compiler_limits),
        trial("a_component_without_a_handler_is_refused", no_handler),
        trial("memory_and_time_are_limits_of_one_run_and_its_neighbours_go_on", limits),
        trial("a_trap_tells_where_it_happened", trap),
        trial("a_killed_runner_loses_its_runs_and_says_so", killed),
        trial("a_dropped_runner_ends", dropped),
        trial("a_signal_to_everybody_is_left_to_the_supervisor", signalled),
        trial("forgetting_one_component_leaves_the_others", forgotten),
        trial("kept_machine_code_is_used_again", cached),
        trial("a_child_has_no_environment_and_no_rights", locked_in),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial<F>(name: &str, test: fn() -> F) -> Trial
where
    F: Future<Output = Outcome> + 'static,
{
    Trial::test(name, move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(test())
    })
}

fn sandbox() -> Sandbox {
    with(SandboxOptions::default())
}

fn with(options: SandboxOptions) -> Sandbox {
    Sandbox::new(options).expect("there is no cache that could be refused")
}

fn job(task: &str, limits: Limits) -> Job {
    Job { task: task.into(), payload: r#"{"args":[],"kwargs":{}}"#.into(), request: "{}".into(), limits }
}

/// The self test's module with other instructions in front of those of `run`.
fn component(run: &str) -> Vec<u8> {
    let marked = "(if (i32.eq (i32.load8_u (local.get $task)) (i32.const 115)) (then (loop $for_ever (br $for_ever))))";
    assert!(ECHO_OR_SPIN.contains(marked), "the self test's module has changed");
    self_test::component(&ECHO_OR_SPIN.replace(marked, &format!("{marked}{run}"))).expect("a valid module")
}

async fn loaded(sandbox: &Sandbox, component: &[u8]) -> Result<(Runner, rtask_sandbox::ComponentId), Failed> {
    let code = sandbox.compile(component).await?;
    let runner = sandbox.runner().await?;
    let module = runner.load(&code).await?;
    Ok((runner, module))
}

async fn the_self_test_passes() -> Outcome {
    let seen = self_test::run(&sandbox()).await?;
    assert!(seen.runner_no_new_privs);
    assert!(!seen.runner_uids.contains(&0), "{:?}", seen.runner_uids);
    Ok(())
}

async fn refusals() -> Outcome {
    let sandbox = sandbox();
    let refused = async |bytes: &[u8]| sandbox.compile(bytes).await.expect_err("it is no component").to_string();
    for (bytes, reason) in [
        (&b"hello"[..], "not wasm"),
        (b"", "not wasm"),
        (b"\0asm\x01\0\0\0", "core module"),
        (b"\x7fELF\x02\x01\x01", "machine code"),
        (b"\0asm\x0d\0\x01\0\xff\xff", "not valid"),
    ] {
        let said = refused(bytes).await;
        assert!(said.contains(reason), "{bytes:?}: {said}");
    }
    Ok(())
}

async fn too_large() -> Outcome {
    let compile = CompileLimits { component: 10, ..CompileLimits::default() };
    let refused = with(SandboxOptions { compile, ..SandboxOptions::default() }).compile(&[0; 11]).await;
    assert!(matches!(refused, Err(CompileError::TooLarge { actual: 11, limit: 10 })), "{refused:?}");
    Ok(())
}

async fn compiler_limits() -> Outcome {
    // Two hundred thousand calls of each other's neighbours in one function: seconds of register allocation.
    let heavy = component(&"(drop (memory.grow (i32.const 0)))".repeat(200_000));
    let time = CompileLimits { time: Duration::from_secs(1), ..CompileLimits::default() };
    let late = with(SandboxOptions { compile: time, ..SandboxOptions::default() }).compile(&heavy).await;
    let memory = CompileLimits { memory: 160 << 20, ..CompileLimits::default() };
    let large = with(SandboxOptions { compile: memory, ..SandboxOptions::default() }).compile(&heavy).await;
    assert!(matches!(late, Err(CompileError::Time(_))), "{late:?}");
    assert!(matches!(large, Err(CompileError::Memory(_))), "{large:?}");
    Ok(())
}

async fn no_handler() -> Outcome {
    let sandbox = sandbox();
    let code = sandbox.compile(&wat::parse_str("(component)")?).await?;
    let refused = sandbox.runner().await?.load(&code).await;
    assert!(matches!(refused, Err(LoadError::NoHandler)), "{refused:?}");
    Ok(())
}

async fn limits() -> Outcome {
    let hoard = "(if (i32.eq (i32.load8_u (local.get $task)) (i32.const 109)) \
                 (then (loop $more (drop (memory.grow (i32.const 1))) (br $more))))";
    let (runner, module) = loaded(&sandbox(), &component(hoard)).await?;
    let pid = runner.pid();
    let time = Duration::from_millis(200);
    let spinning: Vec<_> = (0..4).map(|_| module.run(job("spin", Limits { time, ..Limits::default() }))).collect();
    for _ in 0..200 {
        let memory = 1 << 20;
        let hoarding = module.run(job("more", Limits { memory, ..Limits::default() }));
        assert!(matches!(module.run(job("echo", Limits::default())).exit().await, Exit::Returned(_)));
        assert_eq!(hoarding.exit().await, Exit::Exceeded(Limit::Memory(memory)));
    }
    for run in spinning {
        assert_eq!(run.exit().await, Exit::Exceeded(Limit::Time(time)));
    }
    assert_eq!(runner.pid(), pid);
    Ok(())
}

async fn trap() -> Outcome {
    let (_runner, module) = loaded(&sandbox(), &component("(unreachable)")).await?;
    let exit = module.run(job("echo", Limits::default())).exit().await;
    let Exit::Trapped { reason, backtrace, panicked } = exit else { panic!("{exit:?}") };
    assert!(reason.contains("unreachable"), "{reason}");
    assert!(backtrace.is_some_and(|trace| trace.contains("0: ")));
    assert_eq!(panicked, None);
    Ok(())
}

async fn killed() -> Outcome {
    let (runner, module) = loaded(&sandbox(), &component("")).await?;
    let run = module.run(job("spin", Limits::default()));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(runner.pid())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
    assert!(matches!(run.exit().await, Exit::Lost(_)));
    assert!(runner.ended().await.contains("signal"));
    assert!(matches!(module.run(job("echo", Limits::default())).exit().await, Exit::Lost(_)));
    Ok(())
}

async fn dropped() -> Outcome {
    let (runner, module) = loaded(&sandbox(), &component("")).await?;
    let mut run = module.run(job("spin", Limits::default()));
    let pid = runner.pid();
    drop(module);
    drop(runner);
    loop {
        match run.next().await {
            Event::Notice(Notice::Log { .. } | Notice::State { .. }) => {}
            Event::Exit(exit) => {
                assert!(matches!(exit, Exit::Lost(_)), "{exit:?}");
                break;
            }
        }
    }
    let gone = async {
        while std::path::Path::new(&format!("/proc/{pid}")).exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await?;
    Ok(())
}

/// As a service manager and a terminal send them.
async fn signalled() -> Outcome {
    use nix::sys::signal::{Signal, kill};
    let (runner, module) = loaded(&sandbox(), &component("")).await?;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(runner.pid())?);
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        kill(pid, signal)?;
        assert!(matches!(module.run(job("echo", Limits::default())).exit().await, Exit::Returned(_)), "{signal}");
    }
    Ok(())
}

async fn forgotten() -> Outcome {
    let sandbox = sandbox();
    let code = sandbox.compile(&component("")).await?;
    let runner = sandbox.runner().await?;
    let (first, second) = (runner.load(&code).await?, runner.load(&code).await?);
    drop(first);
    assert!(matches!(second.run(job("echo", Limits::default())).exit().await, Exit::Returned(_)));
    let manifest = second.describe(&Limits::default()).await.map_err(|exit| format!("{exit:?}"))?;
    assert!(manifest.contains("self-test"));
    Ok(())
}

async fn cached() -> Outcome {
    let folder = tempfile::tempdir()?;
    let cache = Some(folder.path().join("cache"));
    let component = component("");
    let first = with(SandboxOptions { cache: cache.clone(), ..SandboxOptions::default() }).compile(&component).await?;
    // A compiler that may take no component at all shows that none is asked.
    let compile = CompileLimits { component: 0, ..CompileLimits::default() };
    let sandbox = with(SandboxOptions { cache, compile, ..SandboxOptions::default() });
    let second = sandbox.compile(&component).await?;
    assert_eq!(first.size(), second.size());
    let module = sandbox.runner().await.map_err(|error: RunnerError| error)?.load(&second).await?;
    assert!(module.describe(&Limits::default()).await.is_ok());
    Ok(())
}

async fn locked_in() -> Outcome {
    let (runner, _module) = loaded(&sandbox(), &component("")).await?;
    let proc = format!("/proc/{}", runner.pid());
    assert_eq!(std::fs::read(format!("{proc}/environ"))?, b"");
    for thread in std::fs::read_dir(format!("{proc}/task"))? {
        let status = std::fs::read_to_string(thread?.path().join("status"))?;
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        let uids = status.lines().find(|line| line.starts_with("Uid:")).unwrap_or_default();
        assert!(!uids.split_whitespace().any(|uid| uid == "0"), "{uids}");
    }
    Ok(())
}
