//! Asking for another run, as the host and as callers see it.

use std::{collections::BTreeMap, time::Duration};

use rtask::{Context, Error, Retry, json, task, testing::dispatch};

/// Fails as told, and asks to be run again for it.
#[task]
fn shaky(context: &Context, how: String) -> Result<u32, Error> {
    let error = match &*how {
        "reject" => Error::reject("spam"),
        "ignore" => Error::ignore(),
        _ => Error::value_error(how),
    };
    Err(context.retry().cause(error).countdown(Duration::from_secs(5)).into())
}

/// Returns the retry itself.
#[task]
fn bare(context: &Context) -> Result<(), Retry> {
    Err(context.retry())
}

/// Whose `?` makes the cause.
#[task]
fn parsed(context: &Context, text: String) -> Result<i64, Error> {
    text.parse().map_err(|error: std::num::ParseIntError| context.retry().cause(error).into())
}

fn call(task: &str, argument: &str) -> Result<String, Error> {
    dispatch(&format!("retry.{task}"), &json!({"args": [argument], "kwargs": {}}).to_string())
}

#[test]
fn a_retry_keeps_its_cause() {
    let retry = call("shaky", "no").unwrap_err();
    assert_eq!(retry.to_string(), r#"retry(countdown=5.0): ValueError("no")"#);
    assert!(format!("{retry:?}").contains("retry.rs"), "the cause knows its line: {retry:?}");
}

#[test]
fn an_error_that_ends_the_task_by_itself_takes_the_place_of_a_retry() {
    assert_eq!(call("shaky", "reject"), Err(Error::reject("spam")));
    assert_eq!(call("shaky", "ignore"), Err(Error::ignore()));
}

#[test]
fn a_task_may_return_the_retry_itself() {
    let retry = dispatch("retry.bare", r#"{"args": [], "kwargs": {}}"#).unwrap_err();
    assert_eq!(retry, Error::from(Context::for_test().retry()));
    assert_eq!(retry.to_string(), "retry()");
}

#[test]
fn any_error_is_a_cause() {
    let expected = r#"retry(): ParseIntError("invalid digit found in string")"#;
    assert_eq!(call("parsed", "seven").unwrap_err().to_string(), expected);
}

#[test]
fn every_option_has_celery_s_name() {
    let retry = || Context::for_test().retry();
    let rows = [
        (retry().countdown(Duration::from_millis(1_500)), "retry(countdown=1.5)"),
        (retry().eta("2026-11-24T08:51:26Z"), r#"retry(eta="2026-11-24T08:51:26Z")"#),
        (retry().max_retries(7), "retry(max_retries=7)"),
        (retry().max_retries(7).unlimited(), "retry(max_retries=null)"),
        (retry().expires(Duration::from_secs(60)), "retry(expires=60.0)"),
        (retry().priority(9).queue("slow"), r#"retry(priority=9, queue="slow")"#),
        (retry().args(("a", 1)).kwargs(json!({"k": 2})), r#"retry(args=["a",1], kwargs={"k":2})"#),
        (
            retry().time_limit(Duration::from_secs(2)).soft_time_limit(Duration::from_secs(1)),
            "retry(soft_time_limit=1.0, time_limit=2.0)",
        ),
    ];
    for (retry, expected) in rows {
        assert_eq!(Error::from(retry).to_string(), expected);
    }
}

#[test]
fn retries_are_equal_when_the_host_could_not_tell_them_apart() {
    let retry = || Context::for_test().retry();
    let (one, other) = (Error::value_error("no"), Error::value_error("no"));
    assert_eq!(Error::from(retry().cause(one.clone())), Error::from(retry().cause(other)));
    assert_ne!(Error::from(retry().cause(one)), Error::from(retry()));
    assert_ne!(Error::from(retry().priority(1)), Error::from(retry().priority(2)));
}

#[test]
fn arguments_that_json_cannot_hold_fail_the_task() {
    let no_json = BTreeMap::from([((1, 2), 3)]);
    let retry = || Context::for_test().retry();
    let rows = [
        (retry().args([&no_json]).cause(Error::ignore()), "args cannot be JSON: key must be a string"),
        (retry().kwargs(1), "kwargs are a map, and not 1"),
    ];
    for (retry, message) in rows {
        assert_eq!(Error::from(retry), Error::type_error(message));
    }
}
