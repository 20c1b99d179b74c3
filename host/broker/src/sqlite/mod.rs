//! Broker and result backend in one file, for the processes of one machine.
//!
//! A `store::Store` is a thread that owns the process's only connection to a file and commits what many callers
//! ask of it in one transaction. `schema` says what the file holds, `bell` wakes other processes, `receive` claims
//! messages and `holder` keeps the claims alive. `broker` and `backend` are the two ports.

mod backend;
mod bell;
mod broker;
mod holder;
mod receive;
mod schema;
mod store;

pub use backend::SqliteBackend;
pub use broker::SqliteBroker;
