//! Takes messages, runs tasks, settles what became of them. The only room in which broker, store, registry and
//! sandbox meet.
//!
//! A task walks one way: a delivery is decoded (`rtask_protocol`), [`admit`]ted, scheduled (a permit), [`run`],
//! and [`settle`]d. `admit` and `settle::plan` are pure functions of values and now; `settle::apply` alone does
//! I/O, in the order that loses nothing. Beside that path, [`keeper`] keeps the deployed modules loaded
//! and [`catalogue`] says which task is where.
//!
//! Read [`worker`] (the loop) and [`task`] (the path) first.

mod admit;
mod catalogue;
mod dead_letter;
mod keeper;
mod options;
mod run;
mod settle;
mod task;
mod worker;

pub use options::{LONGEST_RUN, Options, Ports};
pub use worker::{WorkerError, run};
