//! Takes messages, runs tasks, settles what became of them. The only room in which broker, store, registry and
//! sandbox meet.
//!
//! A task walks one way: a delivery is decoded (`rtask_protocol`), [`admit`]ted, scheduled (a permit and the task's
//! [`rates`]), [`run`], and [`settle`]d, with [`follow`] building what comes after it. `admit` and `settle` are pure
//! functions of values and now; `apply` alone does I/O, in the order that loses nothing. Beside that path,
//! [`keeper`] keeps the deployed modules loaded, [`catalogue`] says which task is where, and [`control`] does
//! what remote control asks: [`revoked`] tasks and those that are [`active`] are what it works on.
//!
//! Read [`worker`] (the loop) and [`task`] (the path) first.

mod active;
mod admit;
mod apply;
mod catalogue;
mod control;
mod dead_letter;
mod exceptions;
mod follow;
mod keeper;
mod options;
mod rates;
mod retry;
mod revoked;
mod rules;
mod run;
mod send;
mod settle;
mod task;
mod worker;

pub use options::{LONGEST_RUN, Options, Ports, Shutdown, TaskDefaults};
pub use worker::{WorkerError, run};
