//! Broker, result backend and ledger in one file, for the processes of one machine.
//!
//! A `store::Store` is a thread that owns the process's only connection to a file and commits what many callers
//! ask of it in one transaction. `schema` says what the file holds, and `bell` wakes other processes.
//! `broker`, `backend` and `ledger` are the three ports. Of the first, `queues` keeps what is declared, `publish` and
//! `routing` put messages where they belong, `receive` claims them, `holder` keeps the claims alive, and `mailbox`
//! hands out what nobody settles.

mod backend;
mod bell;
mod broker;
mod holder;
mod ledger;
mod mailbox;
mod publish;
mod queues;
mod receive;
mod routing;
mod schema;
mod store;

pub use backend::SqliteBackend;
pub use broker::SqliteBroker;
pub use ledger::SqliteLedger;
