//! Tasks for everything that can happen to one: retries, limits, acknowledgements, callbacks.

use std::{collections::BTreeMap, hint::black_box, time::Duration};

use rtask::{Context, Error, Value, json, signature, task};

/// Between two looks of a task that waits for what a test will do.
const PATIENCE: Duration = Duration::from_secs(1);

/// Answers the argument.
#[task]
fn echo(value: Value) -> Value {
    value
}

/// Answers all arguments: an array and an object.
#[task]
fn echo_all(
    #[args] args: Vec<Value>,
    #[kwargs] kwargs: BTreeMap<String, Value>,
) -> (Vec<Value>, BTreeMap<String, Value>) {
    (args, kwargs)
}

/// All that the host tells of this run.
#[task]
fn request(context: &Context) -> Value {
    context.request()
}

/// Stores nothing.
#[task(ignore_result)]
fn quiet() -> u32 {
    4
}

/// Stores no result, but how it failed.
#[task(ignore_result, store_errors_even_if_ignored)]
fn quiet_until_it_fails(fails: bool) -> Result<u32, Error> {
    match fails {
        true => Err(Error::value_error("no longer quiet")),
        false => Ok(4),
    }
}

/// Stores the state `PROGRESS` this often, without a pause.
#[task]
fn progress(context: &Context, times: u32) -> Result<u32, Error> {
    for done in 1..=times {
        context.set_state("PROGRESS", json!({ "done": done, "of": times }))?;
    }
    Ok(times)
}

/// Asks for another run until it was retried so often, and answers how often it was.
#[task(max_retries = unlimited)]
fn flaky(context: &Context, fails: u32) -> Result<u32, Error> {
    if context.retries() < fails {
        let cause = Error::value_error(format_args!("{} of {fails}", context.retries() + 1));
        return Err(context.retry().cause(cause).countdown(Duration::ZERO).into());
    }
    Ok(context.retries())
}

/// Raises an exception of the class `kind` until it was retried so often, and answers how often it was.
#[task(
    autoretry_for = ["ValueError", "shop.errors.Busy"],
    dont_autoretry_for = ["UnicodeError"],
    retry_backoff,
    retry_backoff_max = 1,
    retry_jitter = false,
    max_retries = 2
)]
fn auto(
    context: &Context,
    fails: u32,
    #[default = "ValueError"] kind: String,
    module: Option<String>,
) -> Result<u32, Error> {
    if context.retries() < fails {
        let error = Error::new(kind).args(context.retries());
        return Err(match module {
            Some(module) => error.module(module),
            None => error,
        });
    }
    Ok(context.retries())
}

/// Raises any exception, and is retried for each but `KeyError`.
#[task(autoretry_for = ["Exception"], dont_autoretry_for = ["KeyError"], default_retry_delay = 0, max_retries = 1)]
fn auto_all(context: &Context, kind: String) -> Result<(), Error> {
    Err(Error::new(kind).args(context.retries()))
}

/// Asks for another run for ever; with a message, that of a `ValueError` is the cause.
#[task(max_retries = 2, default_retry_delay = 0)]
fn always(context: &Context, cause: Option<String>, max_retries: Option<u32>) -> Result<(), Error> {
    let mut retry = context.retry();
    if let Some(message) = cause {
        retry = retry.cause(Error::value_error(message));
    }
    if let Some(times) = max_retries {
        retry = retry.max_retries(times);
    }
    Err(retry.into())
}

/// Asks once for another run that differs from this one, and answers what the request says then.
#[task]
fn elsewhere(
    context: &Context,
    queue: Option<String>,
    priority: Option<u8>,
    countdown: Option<f64>,
) -> Result<Value, Error> {
    if context.retries() > 0 {
        return Ok(context.request());
    }
    let countdown = countdown.map(Duration::try_from_secs_f64).transpose().map_err(Error::value_error)?;
    let mut retry = context.retry().countdown(countdown.unwrap_or_default());
    if let Some(queue) = queue {
        retry = retry.queue(queue);
    }
    if let Some(priority) = priority {
        retry = retry.priority(priority);
    }
    Err(retry.into())
}

/// Runs into its soft time limit, and then: `return`s, `raise`s, or `go on` until the hard one; or `ignore`s it, and never
/// asks.
#[task(soft_time_limit = 1)]
fn soft(context: &Context, how: String) -> Result<&'static str, Error> {
    match &*how {
        "return" => {
            while context.check().is_ok() {
                black_box(());
            }
            Ok("came to an end")
        }
        "raise" => loop {
            context.sleep(PATIENCE * 60)?;
        },
        "go on" => loop {
            black_box(context.check().is_ok());
        },
        "ignore" => spin(),
        other => Err(Error::value_error(other)),
    }
}

/// Stores the state `NAPPING`, with what its delivery was, and sleeps.
#[task]
fn nap(context: &Context, seconds: f64) -> Result<f64, Error> {
    context.set_state("NAPPING", json!({ "redelivered": context.delivery_info().redelivered }))?;
    context.sleep(time(seconds)?)?;
    Ok(seconds)
}

/// Stores that it has started, sleeps, and answers which worker it was on; on the worker `stuck_on` it never ends.
#[task(track_started)]
fn tracked(context: &Context, seconds: f64, stuck_on: Option<String>) -> Result<String, Error> {
    context.sleep(time(seconds)?)?;
    while stuck_on.as_deref() == Some(context.hostname()) {
        context.sleep(PATIENCE)?;
    }
    Ok(context.hostname().to_owned())
}

/// Is acknowledged before it begins.
#[task(acks_late = false, track_started)]
fn early(context: &Context, #[default = 0.0] seconds: f64) -> Result<f64, Error> {
    context.sleep(time(seconds)?)?;
    Ok(seconds)
}

/// Fails, and has its message rejected for it.
#[task(acks_on_failure = false)]
fn strict() -> Result<(), Error> {
    Err(Error::value_error("strict"))
}

/// Runs into its time limit, and has its message put back for it.
#[task(acks_on_timeout = false, time_limit = 0.5)]
fn strict_timeout() -> ! {
    spin()
}

/// Is not run again when the process that runs it dies.
#[task(reject_on_worker_lost = false, track_started)]
fn no_second_chance(context: &Context, seconds: f64) -> Result<f64, Error> {
    context.sleep(time(seconds)?)?;
    Ok(seconds)
}

/// Runs five times in a second, and no more often.
#[task(rate_limit = "5/s")]
fn slow_rate() {}

/// Gives its message up, or puts it back; then `once`, or at each delivery.
#[task]
fn reject(
    context: &Context,
    #[default = false] requeue: bool,
    #[default = false] once: bool,
) -> Result<&'static str, Error> {
    match (requeue, once && context.delivery_info().redelivered) {
        (_, true) => Ok("delivered again"),
        (true, false) => Err(Error::requeue("not now")),
        (false, false) => Err(Error::reject("spam")),
    }
}

/// Settles its message, and stores nothing.
#[task]
fn ignore() -> Result<(), Error> {
    Err(Error::ignore())
}

/// Sends a task with these options, in Celery's words, and answers its id.
#[task]
fn send(
    context: &Context,
    name: String,
    #[default] args: Vec<Value>,
    #[default] options: BTreeMap<String, Value>,
    #[default] kwargs: BTreeMap<String, Value>,
) -> Result<String, Error> {
    let plain = signature(name).args(args).kwargs(kwargs);
    context.send(options.iter().fold(plain, |signature, (name, value)| signature.option(name, value)))
}

/// What Celery calls an old-style errback: it takes the id of the task that failed.
#[task]
fn errback_old(id: String) -> String {
    id
}

/// What Celery calls a new-style errback.
#[task]
fn errback_new(request: Value, exc: Value, traceback: Value) -> Value {
    json!({ "request": request, "exc": exc, "traceback": traceback })
}

fn spin() -> ! {
    let mut count = 0_u64;
    loop {
        count = black_box(count).wrapping_add(1);
    }
}

fn time(seconds: f64) -> Result<Duration, Error> {
    Duration::try_from_secs_f64(seconds).map_err(Error::value_error)
}
