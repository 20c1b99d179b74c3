//! A call that is written down to be made later (`celery/canvas.py`, `Signature`): callbacks, errbacks, and what guests
//! send.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};

use crate::{
    Call, ContentName, Embed, Exception, Headers, Request, Serializer, body,
    call::{Argument, Signing},
    json,
    options::{Fields, OptionError, Options},
    record::Child,
    request::MAX_NAME,
    time,
};

/// A task links to no more callbacks.
pub const MAX_SIGNATURES: usize = 1000;

/// A task's name, arguments and options.
#[derive(Clone, Debug)]
pub struct Signature {
    pub task: String,
    pub args: Vec<Argument>,
    pub kwargs: BTreeMap<String, Argument>,
    pub options: Options,
    pub kind: Kind,
    /// It takes no argument but its own.
    pub immutable: bool,
}

/// What a signature stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Task,
    Chain,
    Group,
    Chord,
}

/// Why a text is no signature.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    #[error("it is no signature: {0}")]
    Malformed(String),
    #[error("its task has a name of no, or of more than {MAX_NAME} bytes")]
    Name,
    #[error("there are {0} signatures, more than the {MAX_SIGNATURES} allowed")]
    TooMany(usize),
    #[error(transparent)]
    Option(#[from] OptionError),
}

impl From<serde_json::Error> for SignatureError {
    fn from(error: serde_json::Error) -> Self {
        Self::Malformed(json::reason(&error))
    }
}

#[derive(Deserialize)]
struct Wire {
    task: String,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    kwargs: Option<BTreeMap<String, Argument>>,
    #[serde(default)]
    options: Option<BTreeMap<String, Box<RawValue>>>,
    #[serde(default)]
    subtask_type: Option<String>,
    #[serde(default)]
    immutable: Option<bool>,
}

/// On whose behalf a call is made.
#[derive(Clone, Copy, Debug)]
pub struct Parent<'a> {
    pub request: &'a Request,
    /// The priority of the parent is that of its children too (`task_inherit_parent_priority`).
    pub inherit_priority: bool,
    /// Who publishes, such as `gen123@host`.
    pub origin: &'a str,
}

/// Calls that follow a task, and what the task's record says of them.
#[derive(Clone, Debug, Default)]
pub struct Follow {
    pub calls: Vec<Call>,
    pub child: Option<Child>,
}

impl Signature {
    /// Read a signature; its link and the like stay as they came.
    ///
    /// # Errors
    /// See [`SignatureError`].
    pub fn parse(json: &str) -> Result<Self, SignatureError> {
        let wire: Wire = serde_json::from_str(json)?;
        if wire.task.is_empty() || wire.task.len() > MAX_NAME || wire.task.contains('\0') {
            return Err(SignatureError::Name);
        }
        let kind = match (wire.subtask_type.as_deref(), wire.task.as_str()) {
            (Some("chain"), _) | (_, "celery.chain") => Kind::Chain,
            (Some("group"), _) | (_, "celery.group") => Kind::Group,
            (Some("chord"), _) | (_, "celery.chord") => Kind::Chord,
            _ => Kind::Task,
        };
        Ok(Self {
            options: Options::of_fields(&Fields(wire.options.unwrap_or_default()))?,
            task: wire.task,
            args: wire.args.unwrap_or_default(),
            kwargs: wire.kwargs.unwrap_or_default(),
            kind,
            immutable: wire.immutable.unwrap_or(false),
        })
    }

    /// The call as a task makes it of its own accord: the parent's root and id are in it, nothing else of the parent's.
    ///
    /// # Errors
    /// For a time that no calendar has.
    pub fn call(&self, parent: &Parent<'_>, now: Timestamp) -> Result<Call, OptionError> {
        let (options, request) = (&self.options, parent.request);
        let inherited = parent.inherit_priority.then_some(request.priority);
        let fresh = Call::new(&*self.task);
        let (serializer, signing) = match options.serializer.unwrap_or_default() {
            ContentName::Plain(serializer) => (serializer, Signing::No),
            ContentName::Signed => (Serializer::default(), Signing::Wanted),
        };
        Ok(Call {
            id: options.task_id.clone().unwrap_or(fresh.id),
            task: fresh.task,
            args: self.args.clone(),
            kwargs: self.kwargs.clone(),
            eta: options.eta(now)?,
            expires: options.expires(now)?,
            time_limit: options.time_limit,
            ignore_result: options.ignore_result,
            priority: options.priority.or(inherited),
            queue: options.queue.clone(),
            exchange: options.exchange.clone(),
            routing_key: options.routing_key.clone(),
            headers: options.headers.clone(),
            origin: parent.origin.to_owned(),
            root_id: Some(options.root_id.clone().unwrap_or_else(|| request.root_id.clone())),
            parent_id: Some(options.parent_id.clone().unwrap_or_else(|| request.id.clone())),
            group_id: options.group_id.clone(),
            group_index: options.group_index,
            retries: options.retries,
            reply_to: options.reply_to.clone(),
            serializer,
            signing,
            compression: options.compression,
            shadow: options.shadow.clone(),
            replaced_task_nesting: options.replaced_task_nesting,
            transient: options.transient,
            argsrepr: options.argsrepr.clone(),
            kwargsrepr: options.kwargsrepr.clone(),
            stamped_headers: options.stamped_headers.clone(),
            stamps: options.stamps.clone(),
            correlation_id: None,
            embed: Embed {
                callbacks: options.link.clone().map(body::list),
                errbacks: options.link_error.clone().map(body::list),
                chain: options.chain.clone(),
                chord: options.chord.clone(),
            },
        })
    }

    /// A call that comes after its parent: the parent's root and id go before the signature's own, and so does a
    /// priority that is inherited (`celery/canvas.py`, `Signature._merge`); `before` goes before its arguments, unless
    /// it is immutable.
    fn after(&self, parent: &Parent<'_>, before: &[Argument], now: Timestamp) -> Result<Call, OptionError> {
        let request = parent.request;
        let call = self.call(parent, now)?;
        let args = match self.immutable {
            true => call.args,
            false => before.iter().cloned().chain(call.args).collect(),
        };
        Ok(Call {
            args,
            root_id: Some(request.root_id.clone()),
            parent_id: Some(request.id.clone()),
            priority: if parent.inherit_priority { Some(request.priority) } else { call.priority },
            ..call
        })
    }

    /// The arguments of an errback that takes `(request, exception, traceback)`, before its own. Celery calls it in the
    /// worker, with Python's objects; here they are what JSON can tell of them.
    ///
    /// # Errors
    /// For a time that no calendar has.
    pub fn errback(
        &self,
        parent: &Parent<'_>,
        exception: &Exception,
        traceback: Option<&str>,
        now: Timestamp,
    ) -> Result<Call, OptionError> {
        self.after(parent, &[json::raw(&Told::of(parent.request)), json::raw(exception), json::raw(&traceback)], now)
    }
}

/// What follows a task that succeeded: one callback by itself, several as one group
/// (golden/03_result_backend_redis, files 16 and 17).
///
/// # Errors
/// For a time that no calendar has.
pub fn callbacks(
    signatures: &[Signature],
    parent: &Parent<'_>,
    result: &RawValue,
    now: Timestamp,
) -> Result<Follow, OptionError> {
    let calls = signatures.iter().map(|signature| signature.after(parent, &[result.to_owned()], now));
    let calls: Vec<Call> = calls.collect::<Result<_, _>>()?;
    Ok(match calls.as_slice() {
        [] => Follow::default(),
        [call] => Follow { child: Some(Child::Task(call.id.clone())), calls },
        [..] => grouped(calls),
    })
}

/// What follows a task that failed, for errbacks that take its id alone: always a group
/// (golden/03_result_backend_redis/19_link_error_old.json).
///
/// # Errors
/// For a time that no calendar has.
pub fn errbacks(signatures: &[&Signature], parent: &Parent<'_>, now: Timestamp) -> Result<Follow, OptionError> {
    let id = json::raw(&parent.request.id);
    let calls = signatures.iter().map(|signature| signature.after(parent, std::slice::from_ref(&id), now));
    let calls: Vec<Call> = calls.collect::<Result<_, _>>()?;
    Ok(if calls.is_empty() { Follow::default() } else { grouped(calls) })
}

fn grouped(calls: Vec<Call>) -> Follow {
    let id = uuid::Uuid::new_v4().to_string();
    let members = calls.iter().map(|call| call.id.clone()).collect();
    let calls = (0..).zip(calls);
    let calls = calls.map(|(index, call)| Call { group_id: Some(id.clone()), group_index: Some(index), ..call });
    Follow { calls: calls.collect(), child: Some(Child::Group { id, members }) }
}

/// A request as an errback is told of it, in the names of Celery's `Task.request`.
#[derive(Serialize)]
struct Told<'a> {
    id: &'a str,
    task: &'a str,
    args: &'a RawValue,
    kwargs: &'a RawValue,
    retries: u32,
    root_id: &'a str,
    parent_id: Option<&'a str>,
    group: Option<&'a str>,
    group_index: Option<i64>,
    eta: Option<String>,
    expires: Option<String>,
    correlation_id: Option<&'a str>,
    reply_to: Option<&'a str>,
    origin: Option<&'a str>,
    shadow: Option<&'a str>,
    headers: &'a Headers,
    stamped_headers: &'a [String],
    stamps: &'a Map<String, Value>,
    replaced_task_nesting: u32,
}

impl<'a> Told<'a> {
    fn of(request: &'a Request) -> Self {
        Self {
            id: &request.id,
            task: &request.task,
            args: &request.body.args,
            kwargs: &request.body.kwargs,
            retries: request.retries,
            root_id: &request.root_id,
            parent_id: request.parent_id.as_deref(),
            group: request.group.as_deref(),
            group_index: request.group_index,
            eta: request.eta.map(time::format),
            expires: request.expires.map(time::format),
            correlation_id: request.correlation_id.as_deref(),
            reply_to: request.reply_to.as_deref(),
            origin: request.origin.as_deref(),
            shadow: request.shadow.as_deref(),
            headers: &request.custom_headers,
            stamped_headers: &request.stamped_headers,
            stamps: &request.stamps,
            replaced_task_nesting: request.replaced_task_nesting,
        }
    }
}

impl Embed {
    /// What is to follow success.
    ///
    /// # Errors
    /// When one of them is no signature, or there are more than [`MAX_SIGNATURES`].
    pub fn callbacks(&self) -> Result<Vec<Signature>, SignatureError> {
        signatures(self.callbacks.as_deref())
    }

    /// What is to follow failure.
    ///
    /// # Errors
    /// When one of them is no signature, or there are more than [`MAX_SIGNATURES`].
    pub fn errbacks(&self) -> Result<Vec<Signature>, SignatureError> {
        signatures(self.errbacks.as_deref())
    }
}

/// One, or an array.
fn signatures(part: Option<&RawValue>) -> Result<Vec<Signature>, SignatureError> {
    let Some(part) = part else {
        return Ok(Vec::new());
    };
    if !part.get().starts_with('[') {
        return Ok(vec![Signature::parse(part.get())?]);
    }
    let parts: Vec<&RawValue> = serde_json::from_str(part.get())?;
    match parts.len() {
        few if few <= MAX_SIGNATURES => parts.into_iter().map(|part| Signature::parse(part.get())).collect(),
        many => Err(SignatureError::TooMany(many)),
    }
}
