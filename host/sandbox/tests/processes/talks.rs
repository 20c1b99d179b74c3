//! What is said while a run goes on: soft limits, cancellation, questions, retries.

use std::time::Duration;

use rtask_sandbox::{Ask, ComponentId, Event, Exception, Exit, Limit, Limits, Notice, Question, Run, SandboxOptions};

use crate::{Outcome, guests, job, loaded, sandbox, with};

/// How long anything here may take before its test fails.
const PATIENCE: Duration = Duration::from_secs(60);
const SOFT: Duration = Duration::from_millis(100);
/// Beyond the soft limit by more than the grace for those that were not told.
const HARD: Duration = Duration::from_secs(3);

fn soft(time: Duration) -> Limits {
    Limits { time, soft_time: Some(SOFT), ..Limits::default() }
}

fn patient() -> Limits {
    Limits { time: PATIENCE * 2, ..Limits::default() }
}

async fn exit(run: Run) -> Result<Exit, tokio::time::error::Elapsed> {
    tokio::time::timeout(PATIENCE, run.exit()).await
}

/// Until the guest says that it is where it marks.
async fn marked(run: &mut Run) -> Outcome {
    let event = tokio::time::timeout(PATIENCE, run.next()).await?;
    assert!(matches!(&event, Event::Notice(Notice::State { state, .. }) if state == "MARK"), "{event:?}");
    Ok(())
}

async fn asked(run: &mut Run) -> (String, Question) {
    match tokio::time::timeout(PATIENCE, run.next()).await {
        Ok(Event::Ask(Ask::Send(signature), question)) => (signature, question),
        other => panic!("{other:?}"),
    }
}

async fn assert_works(module: &ComponentId) {
    let exit = module.run(job("echo", Limits::default())).exit().await;
    assert!(matches!(exit, Exit::Returned(_)), "{exit:?}");
}

pub async fn soft_limit_ends_the_deaf() -> Outcome {
    let (_runner, module) = loaded(&sandbox(), &guests::talker()).await?;
    // `ask` is not answered.
    let runs: Vec<_> = ["compute", "doze", "ask"].map(|task| (task, module.run(job(task, soft(PATIENCE * 2))))).into();
    let mut questions = Vec::new();
    for (task, mut run) in runs {
        let exit = loop {
            match tokio::time::timeout(PATIENCE, run.next()).await? {
                Event::Notice(_) => {}
                Event::Ask(_, question) => questions.push(question),
                Event::Exit(exit) => break exit,
            }
        };
        assert_eq!(exit, Exit::Exceeded(Limit::SoftTime(SOFT)), "{task}");
    }
    // Too late for anybody to hear.
    questions.into_iter().for_each(|question| question.answer(Ok("id".to_owned())));
    assert_works(&module).await;
    Ok(())
}

pub async fn soft_limit_wakes_the_listening() -> Outcome {
    let (_runner, module) = loaded(&sandbox(), &guests::talker()).await?;
    let (mut woken, mut asking) = (module.run(job("wait", soft(HARD))), module.run(job("listen", soft(HARD))));
    // Before it sleeps for an hour, and when it was woken.
    marked(&mut woken).await?;
    marked(&mut woken).await?;
    marked(&mut asking).await?;
    assert_eq!(exit(woken).await?, Exit::Exceeded(Limit::Time(HARD)));
    assert_eq!(exit(asking).await?, Exit::Exceeded(Limit::Time(HARD)));
    Ok(())
}

pub async fn hard_limit_wins() -> Outcome {
    let (_runner, module) = loaded(&sandbox(), &guests::talker()).await?;
    let time = SOFT * 2;
    for soft_time in [Some(SOFT), Some(time), Some(Duration::MAX), None] {
        for task in ["compute", "doze", "wait"] {
            let run = module.run(job(task, Limits { time, soft_time, ..Limits::default() }));
            assert_eq!(exit(run).await?, Exit::Exceeded(Limit::Time(time)), "{task}, {soft_time:?}");
        }
    }
    Ok(())
}

pub async fn cancelled() -> Outcome {
    let (_runner, module) = loaded(&sandbox(), &guests::talker()).await?;
    for task in ["compute", "wait"] {
        let mut run = module.run(job(task, patient()));
        marked(&mut run).await?;
        run.cancel();
        assert_eq!(exit(run).await?, Exit::Cancelled, "{task}");
    }
    let mut run = module.run(job("ask", patient()));
    let (_, question) = asked(&mut run).await;
    run.cancel();
    run.cancel();
    assert_eq!(exit(run).await?, Exit::Cancelled);
    question.answer(Ok("too late".to_owned()));
    assert_works(&module).await;
    Ok(())
}

pub async fn cancelled_in_the_queue() -> Outcome {
    let one_at_a_time = with(SandboxOptions { slots: 1, ..SandboxOptions::default() });
    let (_runner, module) = loaded(&one_at_a_time, &guests::talker()).await?;
    let mut first = module.run(job("wait", patient()));
    marked(&mut first).await?;
    let second = module.run(job("wait", patient()));
    second.cancel();
    assert_eq!(exit(second).await?, Exit::Cancelled);
    first.cancel();
    assert_eq!(exit(first).await?, Exit::Cancelled);
    assert_works(&module).await;
    Ok(())
}

pub async fn cancelled_at_its_end() -> Outcome {
    let (_runner, module) = loaded(&sandbox(), &guests::talker()).await?;
    for _ in 0..100 {
        let mut run = module.run(job("echo", patient()));
        run.cancel();
        let event = tokio::time::timeout(PATIENCE, run.next()).await?;
        assert!(matches!(event, Event::Exit(Exit::Cancelled | Exit::Returned(_))), "{event:?}");
        run.cancel();
    }
    assert_works(&module).await;
    Ok(())
}

pub async fn sent() -> Outcome {
    let (_runner, module) = loaded(&sandbox(), &guests::talker()).await?;
    let mut run = module.run(job("ask", patient()));
    let (signature, question) = asked(&mut run).await;
    assert_eq!(signature, r#"{"args":[],"kwargs":{}}"#);
    // The guest waits, and keeps nobody else from running.
    assert_works(&module).await;
    question.answer(Ok(r#""the id""#.to_owned()));
    assert_eq!(exit(run).await?, Exit::Returned(r#""the id""#.to_owned()));

    let mut run = module.run(job("ask", patient()));
    let (_, question) = asked(&mut run).await;
    let refusal = Exception {
        kind: "OperationalError".to_owned(),
        module: Some("kombu.exceptions".to_owned()),
        arguments: r#"["no route"]"#.to_owned(),
        traceback: None,
    };
    question.answer(Err(refusal.clone()));
    assert_eq!(exit(run).await?, Exit::Raised(refusal));
    Ok(())
}

pub async fn unanswered() -> Outcome {
    let (_runner, module) = loaded(&sandbox(), &guests::talker()).await?;
    // This drops the question.
    let raised = exit(module.run(job("ask", patient()))).await?;
    assert!(matches!(&raised, Exit::Raised(exception) if exception.kind == "RuntimeError"), "{raised:?}");

    let time = SOFT;
    let mut run = module.run(job("ask", Limits { time, ..Limits::default() }));
    let (_, question) = asked(&mut run).await;
    assert_eq!(exit(run).await?, Exit::Exceeded(Limit::Time(time)));
    drop(question);
    assert_works(&module).await;
    Ok(())
}

pub async fn sent_too_much() -> Outcome {
    let (_runner, module) = loaded(&sandbox(), &guests::talker()).await?;
    let mut run = module.run(job("flood", Limits { sends: 3, ..patient() }));
    for _ in 0..3 {
        asked(&mut run).await.1.answer(Ok("id".to_owned()));
    }
    assert_eq!(exit(run).await?, Exit::Exceeded(Limit::Sends(3)));

    let large = module.run(job("flood", Limits { send_size: 10, ..patient() }));
    assert_eq!(exit(large).await?, Exit::Exceeded(Limit::SendSize(10)));
    Ok(())
}

pub async fn retried() -> Outcome {
    let (_runner, module) = loaded(&sandbox(), &guests::talker()).await?;
    let busy =
        Exception { kind: "Busy".to_owned(), module: None, arguments: r#"["not now"]"#.to_owned(), traceback: None };
    let options = r#"{"args":[],"kwargs":{}}"#.to_owned();
    let retry = exit(module.run(job("retry", Limits::default()))).await?;
    assert_eq!(retry, Exit::Retry { cause: Some(busy.clone()), options: options.clone() });

    let cut = exit(module.run(job("retry", Limits { exception: 13, ..Limits::default() }))).await?;
    assert_eq!(cut, Exit::Retry { cause: Some(Exception { kind: "Bu".to_owned(), ..busy }), options });
    let long = exit(module.run(job("retry", Limits { result: 10, ..Limits::default() }))).await?;
    assert_eq!(long, Exit::Exceeded(Limit::Result(10)));
    Ok(())
}
