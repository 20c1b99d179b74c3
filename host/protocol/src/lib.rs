//! Celery's nouns and bytes: what a message, a request and a result are, and how they look on the wire.
//!
//! Here lives what Celery 5.7's clients and workers agree on (message protocol 2, and 1 where it is read). Nothing here
//! opens a socket, waits, or knows of WebAssembly; every function is one of values.
//!
//! Read [`message`] first (what a broker carries), then [`content`] and [`request`] (what a worker makes of it), [`call`]
//! (what a client publishes), [`options`], [`signature`] and [`retry`] (what follows a task) and [`record`] (what a result
//! backend keeps). Tests hold all of it against Celery's own bytes in tests/vectors.

pub mod backoff;
pub mod body;
pub mod call;
pub mod content;
pub mod control;
pub mod dead_letter;
pub mod exception;
mod headers;
pub mod json;
mod legacy;
pub mod message;
pub mod names;
pub mod options;
pub mod rate;
pub mod record;
pub mod repr;
pub mod request;
pub mod retry;
pub mod security;
pub mod signature;
pub mod time;

pub use body::{Body, Embed};
pub use call::Call;
pub use content::{Accept, Compression, ContentName, ContentTypes, Serializer};
pub use exception::Exception;
pub use message::{Headers, Message, Properties};
pub use options::Options;
pub use record::{Child, Extended, Record, State};
pub use request::{Poison, Protocol, Request, TimeLimit};
pub use signature::Signature;
