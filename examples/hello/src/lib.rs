//! The smallest useful module: good tasks, one that raises, and every way to misbehave that a worker has to survive.

use std::{hint::black_box, time::Duration};

use rtask::{Context, Error, Value, json, signature, task};
use serde::Serialize;

/// A step of `progress` takes this long.
const STEP: Duration = Duration::from_millis(200);
/// `hoard` takes this much at once (bytes).
const CHUNK: usize = 1 << 20;

/// The sum of two whole numbers.
#[task]
fn add(x: i64, y: i64) -> i64 {
    x + y
}

/// Raises `ValueError` with the arguments given.
#[task]
fn fail(#[args] arguments: Vec<Value>) -> Result<(), Error> {
    Err(Error::new("ValueError").args(arguments))
}

/// Computes for ever.
#[task]
fn spin() -> ! {
    let mut count = 0_u64;
    loop {
        count = black_box(count).wrapping_add(1);
    }
}

/// Takes memory for ever, and writes to all of it.
#[task]
fn hoard() -> ! {
    let mut hoard = Vec::new();
    loop {
        hoard.push(black_box(vec![1_u8; CHUNK]));
    }
}

/// Calls itself for ever.
#[task]
fn recurse() -> u64 {
    descend(0)
}

/// What is done after the call keeps the compiler from making a loop of it.
#[expect(unconditional_recursion, reason = "this is what it is for")]
fn descend(depth: u64) -> u64 {
    black_box(descend(black_box(depth) + 1)) + 1
}

/// Executes an instruction that wasm forbids to reach.
#[task]
fn trap() -> ! {
    #[cfg(target_family = "wasm")]
    core::arch::wasm32::unreachable();
    #[cfg(not(target_family = "wasm"))]
    std::process::abort();
}

/// Panics with the message.
#[task]
fn panic(message: String) -> ! {
    panic!("{message}")
}

/// Waits, and answers how long.
#[task]
fn sleep(context: &Context, seconds: f64) -> Result<f64, Error> {
    context.sleep(time(seconds)?)?;
    Ok(seconds)
}

/// Tells of its progress in steps, under the state `PROGRESS`. If a soft time limit comes first, what is done by then is
/// the result.
#[task]
fn progress(context: &Context, #[default = 5] steps: u32) -> Result<u32, Error> {
    for done in 1..=steps {
        if context.sleep(STEP).is_err() {
            return Ok(done - 1);
        }
        context.set_state("PROGRESS", json!({ "done": done, "of": steps }))?;
        rtask::log::info(format_args!("{done} of {steps}"));
    }
    Ok(steps)
}

/// Succeeds at its third try, a second after the second.
#[task(max_retries = 5)]
fn stubborn(context: &Context) -> Result<String, Error> {
    match context.retries() {
        tried @ 0..2 => {
            let cause = Error::new("ConnectionError").args(format!("no answer to try {}", tried + 1));
            Err(context.retry().cause(cause).countdown(Duration::from_secs(1)).into())
        }
        tried => Ok(format!("answered after {tried} retries")),
    }
}

/// Raises `ConnectionError` two times, and leaves it to its options that it is run again.
#[task(autoretry_for = ["ConnectionError"], retry_backoff, max_retries = 5)]
fn patient(context: &Context) -> Result<String, Error> {
    match context.retries() {
        0..2 => Err(Error::new("ConnectionError").args("no answer")),
        tried => Ok(format!("answered after {tried} retries")),
    }
}

/// Has `hello.add` run some seconds later, and answers its id.
#[task]
fn add_later(context: &Context, x: i64, y: i64, #[default = 1.0] seconds: f64) -> Result<String, Error> {
    context.send(signature("hello.add").args((x, y)).countdown(time(seconds)?))
}

fn time(seconds: f64) -> Result<Duration, Error> {
    Duration::try_from_secs_f64(seconds).map_err(Error::value_error)
}

/// What a run knows of itself.
#[derive(Debug, PartialEq, Serialize)]
struct Run {
    id: String,
    task: String,
    retries: u32,
    hostname: String,
    module: String,
    version: u32,
}

/// Answers what this run knows of itself.
#[task]
fn whoami(context: &Context) -> Run {
    Run {
        id: context.id().to_owned(),
        task: context.task().to_owned(),
        retries: context.retries(),
        hostname: context.hostname().to_owned(),
        module: context.module().to_owned(),
        version: context.version(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn add_adds() {
        assert_eq!(add(2, 2), 4);
    }

    #[test]
    fn fail_raises_what_it_is_given() {
        let expected = Error::new("ValueError").module("builtins").args(("no", 1));
        assert_eq!(fail(vec![json!("no"), json!(1)]), Err(expected));
    }

    #[test]
    #[should_panic(expected = "oh no")]
    fn panic_panics() {
        panic("oh no".to_owned());
    }

    #[test]
    fn sleep_waits() {
        let context = Context::for_test();
        let before = context.remaining();
        assert_eq!(sleep(&context, 1.5), Ok(1.5));
        assert_eq!(before - context.remaining(), Duration::from_millis(1_500));
    }

    #[test]
    fn sleep_refuses_what_is_no_time() {
        for seconds in [-1.0, f64::NAN] {
            let error = sleep(&Context::for_test(), seconds).unwrap_err().to_string();
            assert!(error.starts_with("ValueError("), "{error}");
        }
    }

    #[test]
    fn progress_is_told_at_every_step() {
        let context = Context::for_test();
        assert_eq!(progress(&context, 2), Ok(2));
        let expected = [json!({"done": 1, "of": 2}), json!({"done": 2, "of": 2})];
        let expected = expected.map(|meta| ("PROGRESS".to_owned(), meta));
        assert_eq!(context.states(), expected);
    }

    #[test]
    fn progress_ends_with_what_it_has_when_the_soft_limit_comes() {
        let context = Context::for_test().with_soft_time_limit(STEP * 3);
        assert_eq!(progress(&context, 5), Ok(2));
        assert_eq!(context.states().len(), 2);
    }

    #[test]
    fn sleep_ends_at_the_soft_limit() {
        let context = Context::for_test().with_soft_time_limit(STEP);
        let expected = Error::new("SoftTimeLimitExceeded").module("billiard.exceptions");
        assert_eq!(sleep(&context, 1.5), Err(expected));
    }

    #[test]
    fn stubborn_asks_for_another_run_until_it_is_answered() {
        let context = Context::for_test_with(json!({"retries": 1}));
        let cause = Error::new("ConnectionError").args("no answer to try 2");
        let retry = context.retry().cause(cause).countdown(Duration::from_secs(1));
        assert_eq!(stubborn(&context), Err(retry.into()));
        assert_eq!(stubborn(&Context::for_test_with(json!({"retries": 2}))).unwrap(), "answered after 2 retries");
    }

    #[test]
    fn patient_raises_until_it_is_answered() {
        let raised = Error::new("ConnectionError").args("no answer");
        assert_eq!(patient(&Context::for_test_with(json!({"retries": 1}))), Err(raised));
        assert_eq!(patient(&Context::for_test_with(json!({"retries": 2}))).unwrap(), "answered after 2 retries");
    }

    #[test]
    fn add_later_sends_add() {
        let context = Context::for_test();
        let id = add_later(&context, 2, 3, 0.5).unwrap();
        let [sent] = &context.sent()[..] else { panic!("one was sent") };
        assert_eq!((&sent["task"], &sent["args"]), (&json!("hello.add"), &json!([2, 3])));
        assert_eq!(sent["options"], json!({"countdown": 0.5}));
        assert!(!id.is_empty());
    }

    #[test]
    fn whoami_tells_the_run() {
        let context = Context::for_test_with(json!({
            "id": "a", "task": "hello.whoami", "retries": 1, "hostname": "celery@host", "module": "hello", "version": 2,
        }));
        let expected = Run {
            id: "a".to_owned(),
            task: "hello.whoami".to_owned(),
            retries: 1,
            hostname: "celery@host".to_owned(),
            module: "hello".to_owned(),
            version: 2,
        };
        assert_eq!(whoami(&context), expected);
    }
}
