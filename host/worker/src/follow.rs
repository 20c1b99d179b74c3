//! What follows a task: the callbacks of a success, the errbacks of a failure, the next attempt of a retry. Built here as
//! values; `apply` publishes them.

use jiff::Timestamp;
use rtask_broker::{Publication, Route};
use rtask_protocol::{
    Call, Embed, Exception, Message, Record, Request,
    call::Signing,
    options::OptionError,
    record::{Child, Extended},
    retry,
    signature::{self, Follow, Kind, Signature, SignatureError},
};
use rtask_registry::manifest::TaskOptions;
use serde_json::value::RawValue;

use crate::{
    Options,
    admit::Refusal,
    catalogue::Catalogue,
    rules::{self, Rules},
};

/// The messages that follow one task have no more bytes together: a thousand links to one large result are a small
/// message, and would not fit into the worker's memory.
const MAX_FOLLOWING: usize = 64 << 20;

/// Why what is to follow a task cannot be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FollowError {
    #[error(transparent)]
    Option(#[from] OptionError),
    #[error("the messages would have more than the {MAX_FOLLOWING} bytes allowed together")]
    TooLarge,
}

/// What a message asks to follow its task.
#[derive(Debug, Default)]
pub(crate) struct FollowUps {
    callbacks: Vec<Signature>,
    errbacks: Vec<Signature>,
}

impl FollowUps {
    /// # Errors
    /// For what this version does not send, and for what makes no sense.
    pub(crate) fn parse(embed: &Embed) -> Result<Self, Refusal> {
        if let Some(part) = embed.canvas() {
            return Err(Refusal::FollowUp(part));
        }
        let bad = |error: SignatureError| Refusal::BadFollowUp(error.to_string());
        let follow_ups = Self { callbacks: embed.callbacks().map_err(bad)?, errbacks: embed.errbacks().map_err(bad)? };
        let mut all = follow_ups.callbacks.iter().chain(&follow_ups.errbacks);
        match all.find_map(|signature| canvas(signature.kind)) {
            Some(canvas) => Err(Refusal::FollowUp(canvas)),
            None => Ok(follow_ups),
        }
    }
}

/// The name of what is more than one task.
pub(crate) fn canvas(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Task => None,
        Kind::Chain => Some("chain"),
        Kind::Group => Some("group"),
        Kind::Chord => Some("chord"),
    }
}

/// A request, and what is needed to build what follows it.
#[derive(Clone, Copy)]
pub(crate) struct Parent<'a> {
    pub request: &'a Request,
    pub follow_ups: &'a FollowUps,
    pub catalogue: &'a Catalogue,
    pub options: &'a Options,
}

impl<'a> Parent<'a> {
    /// The callbacks, with the result as their first argument, and the child that they are.
    pub(crate) fn after_success(
        &self,
        result: &RawValue,
        now: Timestamp,
    ) -> Result<(Vec<Publication>, Option<Child>), FollowError> {
        let callbacks = &self.follow_ups.callbacks;
        // Each of them carries the result.
        fits(callbacks.len().saturating_mul(result.get().len()))?;
        let Follow { calls, child } = signature::callbacks(callbacks, &self.caller(), result, now)?;
        let publications = calls.into_iter().map(|call| self.publication(call, now));
        Ok((publications.collect::<Result<_, _>>()?, child))
    }

    /// The errbacks. One that takes several arguments gets the request, the exception and the traceback, any other the id
    /// of the task that failed (`celery/backends/base.py`, `_call_task_errbacks`).
    pub(crate) fn after_failure(
        &self,
        exception: &Exception,
        traceback: Option<&str>,
        now: Timestamp,
    ) -> Result<Vec<Publication>, FollowError> {
        let (telling, old): (Vec<_>, Vec<_>) =
            self.follow_ups.errbacks.iter().partition(|errback| self.takes_several(errback));
        let mut publications = Vec::new();
        for errback in telling {
            let call = errback.errback(&self.caller(), exception, traceback, now)?;
            publications.push(self.publication(call, now)?);
            // Each of them carries the arguments.
            fits(publications.iter().map(|publication| publication.message.body.len()).sum())?;
        }
        let Follow { calls, child: _ } = signature::errbacks(&old, &self.caller(), now)?;
        for call in calls {
            publications.push(self.publication(call, now)?);
        }
        Ok(publications)
    }

    /// The message that runs the task again, in the queue from which it came unless another is named.
    pub(crate) fn retry(
        &self,
        message: &Message,
        queue: &str,
        changes: &retry::Changes,
        now: Timestamp,
    ) -> Publication {
        let queue = changes.queue.as_deref().unwrap_or(queue);
        let signer = self.options.signer.as_deref();
        Publication::to_queue(queue, retry::message(message, self.request, changes, signer, now))
    }

    /// Whether it is stored that the task did not come to a good end, as far as its own options are known here.
    pub(crate) fn stores_errors(&self) -> bool {
        let own = own_options(self.catalogue, &self.request.task);
        Rules::of(self.options, &own, self.request, None).store_errors
    }

    /// A record with what Celery tells beside the state.
    pub(crate) fn completed(&self, record: Record, queue: &str, children: &[Child]) -> Record {
        let record = record.of(self.request).with_children(children);
        match self.options.result_extended {
            true => record.with_extended(Extended::of(self.request, &self.options.name, queue)),
            false => record,
        }
    }

    fn caller(&self) -> signature::Parent<'a> {
        signature::Parent { request: self.request, inherit_priority: false, origin: &self.options.name }
    }

    fn publication(&self, call: Call, now: Timestamp) -> Result<Publication, OptionError> {
        publication(self.catalogue, self.options, call, now)
    }

    fn takes_several(&self, errback: &Signature) -> bool {
        self.catalogue.ready(&errback.task).is_some_and(|route| route.spec.parameters.len() > 1)
    }
}

/// Those of a module that is deployed here.
fn own_options(catalogue: &Catalogue, task: &str) -> TaskOptions {
    catalogue.ready(task).map(|route| route.spec.options.clone()).unwrap_or_default()
}

fn fits(bytes: usize) -> Result<(), FollowError> {
    if bytes > MAX_FOLLOWING { Err(FollowError::TooLarge) } else { Ok(()) }
}

/// A message for wherever the call, the task itself or the routes want it. What the call leaves open is filled in from
/// the task's options, as far as its module is deployed here. A worker that signs signs everything.
///
/// # Errors
/// When the call is to be signed and this worker cannot.
pub(crate) fn publication(
    catalogue: &Catalogue,
    options: &Options,
    mut call: Call,
    now: Timestamp,
) -> Result<Publication, OptionError> {
    let own = own_options(catalogue, &call.task);
    let asked = Route {
        queue: call.queue.take(),
        exchange: call.exchange.take(),
        exchange_kind: None,
        routing_key: call.routing_key.take(),
        priority: call.priority,
    };
    let own_way = Route { queue: own.queue, priority: own.priority, ..Route::default() };
    let (target, priority) = options.routes.resolve(&call.task, asked.or(&own_way));
    call.priority = priority;
    if call.expires.is_none() {
        call.expires = own.expires.and_then(|seconds| now.checked_add(rules::seconds(seconds)).ok());
    }
    call.signing = match (&options.signer, call.signing) {
        (Some(signer), _) => Signing::By(signer.clone()),
        (None, Signing::Wanted) => {
            let expected = "possible: auth needs a worker with task_serializer = \"auth\"";
            return Err(OptionError::Wrong { name: "serializer".to_owned(), expected: expected.to_owned() });
        }
        (None, signing @ (Signing::No | Signing::By(_))) => signing,
    };
    Ok(Publication { target, message: call.message(now) })
}
