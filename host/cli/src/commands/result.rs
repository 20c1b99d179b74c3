//! `rtask result`, and what `rtask call --wait` shares with it: waiting for a record and showing it.

use std::process::ExitCode;

use clap::Args;
use rtask_broker::{BrokerError, Patience, ResultBackend, connect_backend};
use rtask_protocol::{Record, State, repr};
use serde_json::{Value, json};

use crate::{
    failure::{Attempt, Code, Failure},
    output::{self, Output},
    progress::Step,
    settings::{Seconds, Settings},
    visible,
};

/// Print what became of a task
///
/// The result as JSON, or, for a task that failed, the exception's type and message. Exits with 0 only for a task that
/// succeeded.
#[derive(Debug, Args)]
pub struct TaskResult {
    /// The id that `rtask call` or Celery's client gave it
    task_id: String,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Clone, Copy, Debug, Args)]
pub struct Wait {
    /// Wait until the task is done
    #[arg(long, help_heading = "Result")]
    wait: bool,
    /// Wait no longer than so many seconds
    #[arg(long, value_name = "SECONDS", requires = "wait", help_heading = "Result")]
    timeout: Option<Seconds>,
}

impl Wait {
    pub fn is_asked(self) -> bool {
        self.wait
    }
}

pub async fn run(result: TaskResult, settings: Settings, output: Output) -> Result<ExitCode, Failure> {
    let (id, url) = (result.task_id, settings.backend()?);
    if settings.results_travel() {
        return Err(BrokerError::Elsewhere { task_id: id }.into());
    }
    let transport = settings.backend_transport(Patience::FailFast)?;
    let backend = connect_backend(url, settings.retention(), transport).await?;
    if result.wait.is_asked() {
        let record = wait(backend.as_ref(), &id, result.wait, output).await?;
        return show(&record, output);
    }
    match backend.get(&id).await.attempt("failed to ask for the result")? {
        Some(record) => show(&record, output),
        None => show_pending(&id, output),
    }
}

/// The record, once it is ready.
pub async fn wait(backend: &dyn ResultBackend, id: &str, wait: Wait, output: Output) -> Result<Record, Failure> {
    let _step = Step::begin(output, format!("Waiting for task {}", visible::line(id)));
    let record = backend.wait(id);
    let record = match wait.timeout {
        None => record.await,
        Some(limit) => tokio::time::timeout(limit.0, record).await.map_err(|_| late(id, limit))?,
    };
    record.attempt("failed to wait for the result")
}

fn late(id: &str, limit: Seconds) -> Failure {
    let id = visible::line(id);
    Failure::new(format!("task {id} was not done within {:?}", limit.0)).hint(format!(
        "wait on with `rtask result {id} --wait`; `rtask doctor` says whether a worker is alive and what waits in the \
             queue, `rtask modules` whether the task is deployed"
    ))
}

/// Print a record, and answer the exit code that it means.
pub fn show(record: &Record, output: Output) -> Result<ExitCode, Failure> {
    let code = match record.status {
        State::Success => ExitCode::SUCCESS,
        State::Failure
        | State::Revoked
        | State::Rejected
        | State::Ignored
        | State::Pending
        | State::Received
        | State::Started
        | State::Retry
        | State::Custom(_) => Code::Failed.into(),
    };
    if output.is_json() {
        output::print(visible::json(&record.encode()))?;
        return Ok(code);
    }
    let status = visible::line(record.status.name());
    match record.status {
        State::Success => output::print(visible::json(record.result.get()))?,
        State::Failure | State::Revoked => show_exception(record, output),
        State::Rejected | State::Ignored => output::print(status)?,
        State::Retry => {
            output::print(status)?;
            show_exception(record, output);
            output.note(NOT_DONE);
        }
        State::Started | State::Custom(_) => {
            output::print(status)?;
            output.note(visible::json(record.result.get()));
            output.note(NOT_DONE);
        }
        State::Pending | State::Received => {
            output::print(status)?;
            output.note(NOT_DONE);
        }
    }
    let children = children(&record.children);
    if !children.is_empty() {
        output.note(format_args!("it sent {}", visible::line(&children.join(", "))));
    }
    Ok(code)
}

const NOT_DONE: &str = "the task is not done; wait for it with --wait";

fn show_exception(record: &Record, output: Output) {
    output.note(visible::line(&exception(record)));
    if let Some(traceback) = record.traceback.as_deref().map(str::trim_end).filter(|text| !text.is_empty()) {
        output.note(visible::lines(traceback));
    }
}

/// The ids of the tasks and groups that the task sent, which are nested pairs (`celery/result.py`, `as_tuple`).
fn children(recorded: &Value) -> Vec<&str> {
    let children = recorded.as_array().into_iter().flatten();
    children.filter_map(|child| child.get(0)?.get(0)?.as_str()).collect()
}

/// Celery's word for what no store knows of: it may be waiting, running, forgotten, or have never been sent.
fn show_pending(id: &str, output: Output) -> Result<ExitCode, Failure> {
    let status = State::Pending;
    let record = json!({
        "status": status.name(), "result": null, "traceback": null, "children": [], "date_done": null, "task_id": id,
    });
    output.answer(status.name(), &record)?;
    output.note("nothing is known of it: it is not done, its result has expired, or it was never sent");
    Ok(Code::Failed.into())
}

/// `ValueError: message`, as the last line of Python's own traceback.
fn exception(record: &Record) -> String {
    let Some(exception) = record.exception() else {
        return format!("{}: {}", record.status.name(), record.result.get());
    };
    let message = match exception.exc_message.as_slice() {
        [] => return exception.exc_type,
        [Value::String(message)] => message.clone(),
        [message] => message.to_string(),
        several => repr::args(several),
    };
    format!("{}: {message}", exception.exc_type)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use rtask_protocol::Exception;

    use super::*;

    #[test]
    fn an_exception_is_told_as_python_tells_it() {
        let rows = [
            (vec![], "ValueError"),
            (vec![json!("no")], "ValueError: no"),
            (vec![json!(1)], "ValueError: 1"),
            (vec![json!("no"), json!(1)], "ValueError: ('no', 1)"),
        ];
        for (arguments, expected) in rows {
            let exception = Exception::new("builtins", "ValueError", arguments);
            let record = Record::failure("t", &exception, None, Timestamp::UNIX_EPOCH);
            assert_eq!(self::exception(&record), expected);
        }
    }

    #[test]
    fn children_are_told_by_their_ids() {
        let rows = [
            (json!([[["a", null], null], [["g", null], [[["m", null], null]]]]), vec!["a", "g"]),
            (json!([]), vec![]),
            (json!(null), vec![]),
            (json!([1, [], [[]], [[2]], {}]), vec![]),
        ];
        for (recorded, expected) in rows {
            assert_eq!(children(&recorded), expected, "{recorded}");
        }
    }

    #[test]
    fn a_failure_that_another_program_stored_without_an_exception_is_shown_as_it_is() {
        let text = r#"{"status": "FAILURE", "result": "odd", "traceback": null, "date_done": null, "task_id": "t"}"#;
        let record: Record = serde_json::from_str(text).unwrap();
        assert_eq!(exception(&record), r#"FAILURE: "odd""#);
    }
}
