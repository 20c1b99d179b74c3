//! Celery's nouns and bytes: what a message, a request and a result are, and how they look on the wire.
//!
//! Here lives what Celery 5.7's clients and workers agree on (message protocol 2). Nothing here opens a socket,
//! waits, or knows of WebAssembly; every function is one of values.
//!
//! Read [`message`] first (what a broker carries), then [`request`] (what a worker makes of it), [`call`] (what a
//! client publishes) and [`record`] (what a result backend keeps).

pub mod body;
pub mod call;
pub mod json;
pub mod message;
pub mod names;
pub mod record;
pub mod repr;
pub mod request;
pub mod time;

pub use body::{Body, Embed};
pub use call::Call;
pub use message::{Headers, Message, Properties};
pub use record::{Exception, Record, State};
pub use request::{Poison, Request, TimeLimit};
