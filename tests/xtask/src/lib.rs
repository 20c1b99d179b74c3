//! `cargo xtask`: the demo, the tests with all that they need, the bench, and what a review checks by machine.
//!
//! Nothing of rtask is linked in here, so that it is built in seconds and can build the rest. What it starts, it
//! stops: servers and workers are guards ([`process::Running`]), and an interrupt ends the work as an error
//! does, so that the guards are dropped.
//!
//! Read [`demo`] first, then [`test`]; [`servers`] is also used by the tests that restart a server.

pub mod bench;
pub mod demo;
pub mod interrupt;
pub mod packages;
pub mod process;
pub mod python;
pub mod servers;
pub mod steps;
pub mod table;
pub mod test;
pub mod tidy;
pub mod workspace;
