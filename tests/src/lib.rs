//! The harness of the end-to-end tests: rtask's binary, real servers, real Celery.
//!
//! `cargo xtask test` sets up what these tests need and tells them by environment variables ([`environment`]);
//! without it they fail, and say so. Nothing of rtask is linked in: what is tested is what users get.
//!
//! Read [`stage`] first (where a test plays: brokers and stores of its own), then [`worker`], then [`proc`] (what
//! the kernel says of processes) and [`guest`] (modules that no SDK would make).

pub mod environment;
pub mod guest;
pub mod proc;
pub mod rtask;
pub mod servers;
pub mod stage;
pub mod worker;

pub use guest::Guest;
pub use nix::sys::signal::Signal;
pub use rtask::Outcome;
pub use stage::Stage;
pub use worker::Worker;

/// Functions of `&Stage` as tests, each once on every lane: a module of that name, on stages from that constructor.
///
/// `facts![rabbitmq = servers, redis = redis; [this_holds, so_does_this]];`
#[macro_export]
macro_rules! facts {
    ($($lane:ident = $stage:ident),*; $facts:tt) => {
        $(mod $lane {
            $crate::facts!(@on $stage $facts);
        })*
    };
    (@on $stage:ident [$($fact:ident),* $(,)?]) => {
        $(#[test]
        fn $fact() {
            super::$fact(&$crate::Stage::$stage());
        })*
    };
}

/// Look at it again and again until it is so.
///
/// # Panics
/// When it is not after [`PATIENCE`].
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "waited in vain until {what}");
    }
}

/// How long anything that is sure to happen may take, on a machine that is busy with other tests.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);
