//! Real children: a compiler and a runner, started by this test's own executable.
//!
//! The harness is not the standard one, since a child of this process must become a child before anything else.

mod guests;
mod talks;

use std::{process::ExitCode, time::Duration};

use libtest_mimic::{Arguments, Failed, Trial};
use rtask_sandbox::{
    CompileError, CompileLimits, Event, Exit, Job, Limit, Limits, LoadError, Notice, Runner, RunnerError, Sandbox,
    SandboxOptions, child, self_test,
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
        trial("a_component_of_another_version_is_refused_with_both_versions", other_version),
        trial("memory_and_time_are_limits_of_one_run_and_its_neighbours_go_on", limits),
        trial("a_trap_tells_where_it_happened", trap),
        trial("a_killed_runner_loses_its_runs_and_says_so", killed),
        trial("a_dropped_runner_ends", dropped),
        trial("a_signal_to_everybody_is_left_to_the_supervisor", signalled),
        trial("forgetting_one_component_leaves_the_others", forgotten),
        trial("kept_machine_code_is_used_again", cached),
        trial("a_child_has_no_environment_and_no_rights", locked_in),
        trial("a_run_that_does_not_listen_ends_soon_after_its_soft_limit", talks::soft_limit_ends_the_deaf),
        trial("a_run_that_was_told_goes_on_until_its_hard_limit", talks::soft_limit_wakes_the_listening),
        trial("the_hard_limit_wins_over_the_soft_one", talks::hard_limit_wins),
        trial("a_run_is_cancelled_in_a_loop_in_a_sleep_and_in_a_question", talks::cancelled),
        trial("a_run_is_cancelled_before_its_turn", talks::cancelled_in_the_queue),
        trial("cancelling_a_run_at_its_end_or_after_it_does_no_harm", talks::cancelled_at_its_end),
        trial("what_a_run_sends_is_asked_of_the_host_and_answered", talks::sent),
        trial("a_question_that_nobody_answers_is_an_exception_or_ends_with_the_time", talks::unanswered),
        trial("a_run_that_sends_too_many_or_too_large_tasks_is_ended", talks::sent_too_much),
        trial("a_retry_says_why_and_how_within_the_limits", talks::retried),
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
    let heavy = guests::echo_or_spin(&"(drop (memory.grow (i32.const 0)))".repeat(200_000));
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

async fn other_version() -> Outcome {
    let sandbox = sandbox();
    let code = sandbox.compile(&guests::of_version("0.1.0")).await?;
    let runner = sandbox.runner().await?;
    let refused = runner.load(&code).await.expect_err("it is of another version");
    assert!(matches!(&refused, LoadError::OtherVersion(version) if version == "0.1.0"), "{refused:?}");
    let said = refused.to_string();
    assert!(said.contains("version 0.1.0 ") && said.contains("speaks 0.2.0"), "{said}");
    // The same module of a version that is compatible is none of another.
    let code = sandbox.compile(&guests::of_version("0.2.1")).await?;
    assert!(runner.load(&code).await.is_ok());
    Ok(())
}

async fn limits() -> Outcome {
    let hoard = "(if (i32.eq (i32.load8_u (local.get $task)) (i32.const 109)) \
                 (then (loop $more (drop (memory.grow (i32.const 1))) (br $more))))";
    let (runner, module) = loaded(&sandbox(), &guests::echo_or_spin(hoard)).await?;
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
    let (_runner, module) = loaded(&sandbox(), &guests::echo_or_spin("(unreachable)")).await?;
    let exit = module.run(job("echo", Limits::default())).exit().await;
    let Exit::Trapped { reason, backtrace, panicked } = exit else { panic!("{exit:?}") };
    assert!(reason.contains("unreachable"), "{reason}");
    assert!(backtrace.is_some_and(|trace| trace.contains("0: ")));
    assert_eq!(panicked, None);
    Ok(())
}

async fn killed() -> Outcome {
    let (runner, module) = loaded(&sandbox(), &guests::echo_or_spin("")).await?;
    let run = module.run(job("spin", Limits::default()));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(runner.pid())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
    assert!(matches!(run.exit().await, Exit::Lost(_)));
    assert!(runner.ended().await.contains("signal"));
    assert!(matches!(module.run(job("echo", Limits::default())).exit().await, Exit::Lost(_)));
    Ok(())
}

async fn dropped() -> Outcome {
    let (runner, module) = loaded(&sandbox(), &guests::echo_or_spin("")).await?;
    let mut run = module.run(job("spin", Limits::default()));
    let pid = runner.pid();
    drop(module);
    drop(runner);
    loop {
        match run.next().await {
            Event::Notice(Notice::Log { .. } | Notice::State { .. }) | Event::Ask(..) => {}
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
    let (runner, module) = loaded(&sandbox(), &guests::echo_or_spin("")).await?;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(runner.pid())?);
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        kill(pid, signal)?;
        assert!(matches!(module.run(job("echo", Limits::default())).exit().await, Exit::Returned(_)), "{signal}");
    }
    Ok(())
}

async fn forgotten() -> Outcome {
    let sandbox = sandbox();
    let code = sandbox.compile(&guests::echo_or_spin("")).await?;
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
    let component = guests::echo_or_spin("");
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
    let (runner, _module) = loaded(&sandbox(), &guests::echo_or_spin("")).await?;
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
