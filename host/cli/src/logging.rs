//! The log, on standard error.

use std::io;

use clap::ValueEnum;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Layer, filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::output::Output;

/// Celery's names. There is nothing above an error here, so `critical` and `fatal` are the same as `error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    Debug,
    Info,
    Warning,
    Error,
    #[value(alias = "fatal")]
    Critical,
}

impl Level {
    fn filter(self) -> LevelFilter {
        match self {
            Self::Debug => LevelFilter::DEBUG,
            Self::Info => LevelFilter::INFO,
            Self::Warning => LevelFilter::WARN,
            Self::Error | Self::Critical => LevelFilter::ERROR,
        }
    }
}

/// Log what is at least as severe as `level`; of libraries, only their warnings and errors.
pub fn start(level: Level, output: Output) {
    let ours = level.filter();
    let filter = Targets::new().with_default(ours.min(LevelFilter::WARN)).with_targets(
        ["rtask_broker", "rtask_cli", "rtask_registry", "rtask_sandbox", "rtask_worker", "rtask"]
            .map(|room| (room, ours)),
    );
    let log = fmt::layer().with_writer(io::stderr);
    let log = if output.is_json() {
        log.json().flatten_event(true).boxed()
    } else {
        log.compact().with_ansi(output.is_colourful()).with_target(false).boxed()
    };
    // It calls each answer of a server that we expect an error, and we pass on those that are.
    let filter = filter.with_target("lapin", LevelFilter::OFF);
    tracing_subscriber::registry().with(log.with_filter(filter)).init();
}
