//! Long work shows that it goes on: a line that lives on a terminal, lines that stay elsewhere, none for programs.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::{self, Output};

/// How often the line on a terminal moves.
const TICK: Duration = Duration::from_millis(100);

/// One step of a command. Dropped without [`Step::done`], it did not come to its end, and its line goes.
#[derive(Debug)]
pub struct Step {
    what: String,
    began: Instant,
    output: Output,
    bar: Option<ProgressBar>,
}

impl Step {
    pub fn begin(output: Output, what: impl Into<String>) -> Self {
        let what = what.into();
        let bar = output.is_lively().then(|| {
            let style = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}");
            let bar = ProgressBar::new_spinner().with_message(what.clone());
            bar.set_style(style.expect("the template above is valid"));
            bar.enable_steady_tick(TICK);
            bar
        });
        Self { what, began: Instant::now(), output, bar }
    }

    /// How far it is, on a terminal.
    pub fn says(&self, detail: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {detail}", self.what));
        }
    }

    pub fn done(self, outcome: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if !self.output.is_json() {
            output::complain(format_args!("{}: {outcome} ({})", self.what, seconds(self.began.elapsed())));
        }
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
