//! Progress: a line that lives on a terminal, lines that stay elsewhere.

use std::{
    cell::Cell,
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// How often the line on a terminal moves.
const TICK: Duration = Duration::from_millis(100);
/// Elsewhere, how often a long step says that it is still there.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);

/// The steps of one command.
#[derive(Debug)]
pub struct Steps {
    started: Instant,
    terminal: bool,
}

/// One step under way. Dropped without [`Step::done`], it has failed.
#[derive(Debug)]
pub struct Step {
    what: String,
    bar: Option<ProgressBar>,
    command_started: Instant,
    started: Instant,
    last_sign: Cell<Instant>,
}

impl Default for Steps {
    fn default() -> Self {
        Self { started: Instant::now(), terminal: std::io::stderr().is_terminal() }
    }
}

impl Steps {
    pub fn begin(&self, what: impl Into<String>) -> Step {
        let (what, now) = (what.into(), Instant::now());
        let bar = self.terminal.then(|| {
            let bar = ProgressBar::new_spinner().with_message(what.clone());
            let style = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}");
            bar.set_style(style.expect("the template above is valid"));
            bar.enable_steady_tick(TICK);
            bar
        });
        Step { what, bar, command_started: self.started, started: now, last_sign: Cell::new(now) }
    }
}

impl Step {
    /// What is going on within the step.
    pub fn says(&self, detail: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(format!("{}: {detail}", self.what)),
            None if self.last_sign.get().elapsed() >= SIGN_OF_LIFE => {
                self.last_sign.set(Instant::now());
                self.print(&format!("... {detail}"));
            }
            None => {}
        }
    }

    pub fn done(self, outcome: &str) {
        let took = seconds(self.started.elapsed());
        self.print(&format!("{outcome} ({took})"));
    }

    fn print(&self, outcome: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let at = self.command_started.elapsed().as_secs_f64();
        eprintln!("[{at:6.1} s] {}: {outcome}", self.what);
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A duration as people read it.
pub fn seconds(duration: Duration) -> String {
    match duration.as_secs_f64() {
        short if short < 0.1 => format!("{:.1} ms", short * 1e3),
        long => format!("{long:.2} s"),
    }
}
