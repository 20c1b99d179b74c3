//! What a client is told of a run that failed: guests' exceptions made fit for clients, and exceptions for limits and traps.

use std::fmt::Write as _;

use rtask_protocol::{Exception, json};
use rtask_sandbox::Limit;
use serde_json::Value;

/// Longer names of classes and modules are nobody's (bytes).
const MAX_CLASS_NAME: usize = 255;
/// No `except Exception` catches these; raised by a client that rebuilds them, they would end it.
const UNCATCHABLE: [&str; 5] = ["BaseException", "SystemExit", "KeyboardInterrupt", "GeneratorExit", "CancelledError"];

/// A guest's exception. Arguments that are no JSON array become one argument, names that are none become Python's
/// most general one, and what would end a client becomes a class of rtask's own with the same name.
pub(crate) fn raised(raised: &rtask_sandbox::Exception) -> Exception {
    let named = json::parse(raised.arguments.clone()).ok();
    let arguments = named.and_then(|arguments| serde_json::from_str(arguments.get()).ok());
    let is_name = |name: &str| {
        let is_part = |character: char| character.is_alphanumeric() || matches!(character, '_' | '.' | ':');
        !name.is_empty() && name.len() <= MAX_CLASS_NAME && name.chars().all(is_part)
    };
    let module = raised.module.clone().filter(|module| is_name(module));
    Exception {
        exc_type: if is_name(&raised.kind) { raised.kind.clone() } else { "Exception".to_owned() },
        exc_message: arguments.unwrap_or_else(|| vec![Value::from(raised.arguments.as_str())]),
        exc_module: match UNCATCHABLE.contains(&raised.kind.as_str()) {
            true => Some("rtask.exceptions".to_owned()),
            false => module,
        },
    }
}

pub(crate) fn exceeded(limit: Limit) -> Exception {
    match limit {
        Limit::Time(limit) => Exception::time_limit_exceeded(limit.as_secs_f64()),
        Limit::SoftTime(_) => Exception::soft_time_limit_exceeded(),
        Limit::Memory(bytes) => {
            Exception::rtask("MemoryLimitExceeded", format!("the task wanted more than {bytes} bytes of memory"))
        }
        Limit::Table(elements) => {
            Exception::rtask("TableLimitExceeded", format!("the task wanted more than {elements} table elements"))
        }
        Limit::Stack => Exception::rtask("StackLimitExceeded", "the task's calls were nested too deeply"),
        Limit::Result(bytes) => {
            Exception::rtask("ResultLimitExceeded", format!("the task's result has more than {bytes} bytes"))
        }
        Limit::States(count) => {
            Exception::rtask("StateLimitExceeded", format!("the task set its state more than {count} times"))
        }
        Limit::Sends(count) => Exception::rtask("SendLimitExceeded", format!("the task sent more than {count} tasks")),
        Limit::SendSize(bytes) => {
            Exception::rtask("SendLimitExceeded", format!("a task to be sent has more than {bytes} bytes"))
        }
        Limit::StatesSize(bytes) => {
            Exception::rtask("StateLimitExceeded", format!("the task's states have more than {bytes} bytes"))
        }
    }
}

pub(crate) fn traceback(panicked: Option<&rtask_sandbox::Exception>, reason: &str, backtrace: Option<&str>) -> String {
    let mut text = String::new();
    if let Some(place) = panicked.and_then(|panicked| panicked.traceback.as_deref()) {
        let _ = writeln!(text, "{place}");
    }
    let _ = writeln!(text, "{reason}");
    if let Some(backtrace) = backtrace {
        let _ = write!(text, "guest backtrace, innermost first:\n{backtrace}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guests(kind: &str) -> rtask_sandbox::Exception {
        let module = Some("builtins".to_owned());
        rtask_sandbox::Exception { kind: kind.into(), module, arguments: "[3]".into(), traceback: None }
    }

    #[test]
    fn an_exception_cannot_end_the_client_that_rebuilds_it() {
        let rows = [
            ("SystemExit", "SystemExit", Some("rtask.exceptions")),
            ("KeyboardInterrupt", "KeyboardInterrupt", Some("rtask.exceptions")),
            ("ValueError", "ValueError", Some("builtins")),
            ("no name\u{1b}", "Exception", Some("builtins")),
            ("", "Exception", Some("builtins")),
        ];
        for (kind, expected, module) in rows {
            let exception = raised(&guests(kind));
            assert_eq!((exception.exc_type.as_str(), exception.exc_module.as_deref()), (expected, module), "{kind}");
        }
    }
}
