//! `rtask call`: publish one message, as Celery's client would.

use std::{process::ExitCode, str::FromStr, time::Duration};

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use rtask_broker::{Patience, Publication, connect_backend, connect_broker};
use rtask_protocol::{Call as TaskCall, Headers, TimeLimit, request::MAX_ID, request::MAX_NAME, time};
use serde_json::{Map, Value, json};

use super::result::{self, Wait};
use crate::{
    failure::{Attempt, Failure},
    output::Output,
    settings::{Seconds, Settings},
};

/// Send a task to a queue, and print its id or, with --wait, its result
#[derive(Debug, Args)]
#[command(after_help = "Example: rtask call hello.add --args '[2, 2]' --wait")]
pub struct Call {
    /// The task, such as hello.add
    #[arg(value_parser = name)]
    name: String,
    /// Arguments by position: a JSON array
    #[arg(short, long, value_name = "JSON", value_parser = array, default_value = "[]", allow_hyphen_values = true)]
    args: Array,
    /// Arguments by name: a JSON object
    #[arg(short, long, value_name = "JSON", value_parser = object, default_value = "{}")]
    kwargs: Map<String, Value>,
    /// Run no earlier than so many seconds from now
    #[arg(long, allow_negative_numbers = true, value_name = "SECONDS", conflicts_with = "eta", help_heading = "When")]
    countdown: Option<Seconds>,
    /// Run no earlier than this: ISO 8601, in UTC if it has no offset
    #[arg(long, value_name = "TIME", value_parser = time::parse, help_heading = "When")]
    eta: Option<Timestamp>,
    /// Do not run later than this: ISO 8601, or seconds from now
    #[arg(long, allow_negative_numbers = true, value_name = "TIME|SECONDS", help_heading = "When")]
    expires: Option<Expiry>,
    /// End the run as failed after so many seconds
    #[arg(long, allow_negative_numbers = true, value_name = "SECONDS", value_parser = limit, help_heading = "When")]
    time_limit: Option<Seconds>,
    /// The queue; without it, task_default_queue
    #[arg(long, value_parser = name, help_heading = "Message")]
    queue: Option<String>,
    /// Of the message, 0 to 255; queues that know priorities hand out higher ones first
    #[arg(long, default_value_t = 0, help_heading = "Message")]
    priority: u8,
    /// The task's id; without it, a fresh one
    #[arg(long, value_name = "ID", value_parser = id, help_heading = "Message")]
    task_id: Option<String>,
    /// A header of your own; give it again for more
    #[arg(long = "header", value_name = "KEY=VALUE", value_parser = header, help_heading = "Message")]
    headers: Vec<(String, String)>,
    /// Do not keep the result
    #[arg(long, conflicts_with = "wait", help_heading = "Message")]
    ignore_result: bool,
    #[command(flatten)]
    wait: Wait,
}

/// Of its own type, since clap takes a plain `Vec` for an option that is given several times.
#[derive(Clone, Debug)]
struct Array(Vec<Value>);

/// As it is typed: relative to a now that comes later.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Expiry {
    At(Timestamp),
    After(Duration),
}

pub async fn run(call: Call, settings: Settings, output: Output) -> Result<ExitCode, Failure> {
    // First of all, so that nothing is sent whose result cannot be waited for.
    let backend = match &call.wait {
        wait if wait.is_asked() => {
            Some(connect_backend(settings.backend()?, settings.retention(), Patience::FailFast).await?)
        }
        _ => None,
    };
    let broker = connect_broker(settings.broker(), Patience::FailFast).await?;
    let (wait, queue) = (call.wait, call.queue.clone().unwrap_or_else(|| settings.task_default_queue.clone()));
    let now = Timestamp::now();
    let call = call.into_call(now)?;
    let published = broker.publish(Publication { queue: queue.clone(), message: call.message(now) }).await;
    broker.close().await;
    published.attempt(format_args!("failed to send task {} to queue {queue}", call.task.escape_debug()))?;
    let Some(backend) = backend else {
        output.answer(&call.id, &json!({ "task_id": call.id, "task": call.task, "queue": queue }))?;
        return Ok(ExitCode::SUCCESS);
    };
    let record = result::wait(backend.as_ref(), &call.id, wait, output).await?;
    result::show(&record, output)
}

impl Call {
    fn into_call(self, now: Timestamp) -> Result<TaskCall, Failure> {
        let call = TaskCall::new(self.name);
        let later = |after: Duration| {
            let after = SignedDuration::try_from(after)?;
            now.checked_add(after)
        };
        let countdown = self.countdown.map(|countdown| later(countdown.0)).transpose()?;
        let expires = match self.expires {
            Some(Expiry::At(instant)) => Some(instant),
            Some(Expiry::After(after)) => Some(later(after)?),
            None => None,
        };
        let headers: Headers = self.headers.into_iter().map(|(key, value)| (key, Value::from(value))).collect();
        Ok(TaskCall {
            id: self.task_id.unwrap_or(call.id),
            args: self.args.0,
            kwargs: self.kwargs,
            eta: self.eta.or(countdown),
            expires,
            time_limit: TimeLimit { hard: self.time_limit.map(|limit| limit.0.as_secs_f64()), soft: None },
            ignore_result: self.ignore_result.then_some(true),
            priority: self.priority,
            headers,
            origin: format!("rtask{}@{}", std::process::id(), super::host_name()),
            ..TaskCall::new(call.task)
        })
    }
}

fn array(text: &str) -> Result<Array, String> {
    serde_json::from_str(text).map(Array).map_err(|error| format!("it is no JSON array, such as '[2, 2]': {error}"))
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("it is no JSON object, such as '{{\"x\": 2}}': {error}"))
}

fn limit(text: &str) -> Result<Seconds, String> {
    match text.parse::<Seconds>() {
        Ok(limit) if limit.limit().is_none() => Err("nothing runs in no time".to_owned()),
        parsed => parsed.map_err(|error| error.to_string()),
    }
}

/// Of a task or a queue.
fn name(text: &str) -> Result<String, String> {
    bounded(text, MAX_NAME)
}

fn id(text: &str) -> Result<String, String> {
    bounded(text, MAX_ID)
}

fn bounded(text: &str, limit: usize) -> Result<String, String> {
    match text.len() {
        0 => Err("it is empty".to_owned()),
        length if length > limit => Err(format!("it has {length} bytes, more than the {limit} allowed")),
        _ => Ok(text.to_owned()),
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("write KEY=VALUE".to_owned()),
    }
}

impl FromStr for Expiry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(seconds) = text.parse::<Seconds>() {
            return Ok(Self::After(seconds.0));
        }
        time::parse(text).map(Self::At).map_err(|error| format!("it is neither ISO 8601 nor seconds: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        call: Call,
    }

    fn now() -> Timestamp {
        "2026-11-24T08:00:00Z".parse().unwrap()
    }

    fn call(arguments: &[&str]) -> TaskCall {
        let line = Line::try_parse_from([["call", "hello.add"].as_slice(), arguments].concat());
        line.unwrap_or_else(|error| panic!("{error}")).call.into_call(now()).unwrap()
    }

    fn refusal(arguments: &[&str]) -> String {
        match Line::try_parse_from([["call", "hello.add"].as_slice(), arguments].concat()) {
            Ok(_) => panic!("{arguments:?} was accepted"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn arguments_are_json() {
        let call = call(&["--args", "[-2, \"x\"]", "-k", r#"{"y": null}"#]);
        assert_eq!(call.args, [json!(-2), json!("x")]);
        assert_eq!(Value::from(call.kwargs), json!({ "y": null }));
    }

    #[test]
    fn times_count_from_now() {
        let rows = [
            (["--countdown", "1.5"], Some("2026-11-24T08:00:01.5Z"), None),
            (["--eta", "2026-11-24T10:00:00+01:00"], Some("2026-11-24T09:00:00Z"), None),
            (["--expires", "60"], None, Some("2026-11-24T08:01:00Z")),
            (["--expires", "2030-01-02T03:04:05"], None, Some("2030-01-02T03:04:05Z")),
        ];
        let instant = |text: Option<&str>| text.map(|text| text.parse::<Timestamp>().unwrap());
        for (arguments, eta, expires) in rows {
            let call = call(&arguments);
            assert_eq!((call.eta, call.expires), (instant(eta), instant(expires)), "{arguments:?}");
        }
    }

    #[test]
    fn the_rest_reaches_the_message() {
        let call = call(&[
            "--time-limit",
            "2.5",
            "--priority",
            "9",
            "--task-id",
            "mine",
            "--ignore-result",
            "--header",
            "a=b=c",
        ]);
        assert_eq!((call.time_limit.hard, call.priority, call.id.as_str()), (Some(2.5), 9, "mine"));
        assert_eq!((call.ignore_result, &call.headers["a"]), (Some(true), &json!("b=c")));
        let plain = self::call(&[]);
        assert_eq!((plain.ignore_result, plain.time_limit.hard, plain.id.len()), (None, None, 36));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_the_name_of_its_option() {
        let long = "x".repeat(256);
        let rows: [(&[&str], &str); 11] = [
            (&["--args", "2, 2"], "--args"),
            (&["--args", "{}"], "--args"),
            (&["--kwargs", "[]"], "--kwargs"),
            (&["--time-limit", "soon"], "--time-limit"),
            (&["--time-limit", "0"], "--time-limit"),
            (&["--eta", "tomorrow"], "--eta"),
            (&["--expires", "-1"], "--expires"),
            (&["--countdown", "1", "--eta", "2030-01-01T00:00:00"], "--eta"),
            (&["--header", "novalue"], "--header"),
            (&["--wait", "--ignore-result"], "--wait"),
            (&["--task-id", &long], "--task-id"),
        ];
        for (arguments, option) in rows {
            let refusal = refusal(arguments);
            assert!(refusal.contains(option), "{arguments:?}: {refusal}");
        }
    }
}
