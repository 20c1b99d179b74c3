//! Sending a task that a running task asks for.

use jiff::Timestamp;
use rtask_protocol::{
    Request,
    signature::{self, Signature},
};
use rtask_sandbox::Exception;
use serde_json::Value;

use crate::{follow, worker::Worker};

/// The id of the new task, once the broker keeps it.
///
/// # Errors
/// An exception for the guest: its signature makes no sense, or the broker does not take it.
pub(crate) async fn send(worker: &Worker, parent: &Request, signature: &str) -> Result<String, Exception> {
    let signature = Signature::parse(signature).map_err(|error| exception("builtins", "ValueError", error))?;
    if let Some(canvas) = follow::canvas(signature.kind) {
        return Err(exception("builtins", "ValueError", format!("a task sends single tasks, and this is a {canvas}")));
    }
    let now = Timestamp::now();
    let caller = signature::Parent { request: parent, inherit_priority: false, origin: &worker.options.name };
    let mut call = signature.call(&caller, now).map_err(|error| exception("builtins", "ValueError", error))?;
    // RabbitMQ sends a message to whatever queues these name, too.
    call.headers.retain(|name, _| !matches!(name.as_str(), "CC" | "BCC"));
    let id = call.id.clone();
    let publication = follow::publication(&worker.catalogue, &worker.options, call, now)
        .map_err(|error| exception("builtins", "ValueError", error))?;
    match worker.ports.broker.publish(publication).await {
        Ok(()) => Ok(id),
        Err(error) => {
            // What the broker says may name servers, which are no business of a guest's.
            tracing::warn!(id = parent.id, task = parent.task, %error, "a task could not be sent");
            Err(exception("kombu.exceptions", "OperationalError", "the broker did not take the task"))
        }
    }
}

fn exception(module: &str, kind: &str, message: impl ToString) -> Exception {
    Exception {
        kind: kind.to_owned(),
        module: Some(module.to_owned()),
        arguments: Value::from(vec![message.to_string()]).to_string(),
        traceback: None,
    }
}
