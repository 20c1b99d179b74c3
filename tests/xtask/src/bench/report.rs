//! What was measured, for people and for machines.

use std::{collections::BTreeMap, fmt};

use serde_json::{Value, json};

use super::{
    Size,
    contender::{CONTENDERS, Contender},
};
use crate::table;

/// Of one worker in one round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measurement {
    pub(super) tasks_per_second: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tasks_per_second, p50_ms, p99_ms } = self;
        write!(f, "{tasks_per_second:.0} tasks/s, round trip p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms")
    }
}

#[derive(Debug)]
pub(super) struct Report {
    size: Size,
    /// By the contender's name, a measurement a round.
    measurements: BTreeMap<String, Vec<Measurement>>,
}

impl Report {
    pub(super) fn new(size: Size) -> Self {
        Self { size, measurements: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, contender: Contender, measurement: Measurement) {
        self.measurements.entry(contender.name()).or_default().push(measurement);
    }

    /// Medians, with the least and the most in brackets; the ratios are of the medians.
    pub(super) fn markdown(&self) -> String {
        let header =
            ["worker", "tasks/s", "send to result, p50 ms", "p99 ms", "tasks/s to the first's", "p50 to the first's"];
        let rows: Vec<_> = CONTENDERS.iter().map(|contender| self.row(*contender)).collect();
        let Size { rounds, tasks, round_trips } = self.size;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        format!(
            "{}\nMedian (least-most) of {rounds} rounds in turns, {cores} cores, RabbitMQ and Redis on the same \
             machine; {tasks} queued tasks `hello.add(2, 2)` from first to last stored result; {round_trips} \
             round trips one at a time; one Celery client for all.",
            table::markdown(header, &rows)
        )
    }

    fn row(&self, contender: Contender) -> [String; 6] {
        let rate = self.spread(contender, |m| m.tasks_per_second);
        let p50 = self.spread(contender, |m| m.p50_ms);
        let ratio = |value: Spread, to: Spread| format!("{:.2}", value.median / to.median);
        [
            contender.name(),
            rate.text(0),
            p50.text(2),
            self.spread(contender, |m| m.p99_ms).text(2),
            ratio(rate, self.spread(CONTENDERS[0], |m| m.tasks_per_second)),
            ratio(p50, self.spread(CONTENDERS[0], |m| m.p50_ms)),
        ]
    }

    pub(super) fn json(&self) -> Value {
        let all = |contender: &Contender, field: fn(&Measurement) -> f64| -> Vec<f64> {
            self.of(*contender).iter().map(field).collect()
        };
        let contenders: Vec<Value> = CONTENDERS
            .iter()
            .map(|contender| {
                json!({
                    "worker": contender.name(),
                    "tasks_per_second": all(contender, |m| m.tasks_per_second),
                    "p50_ms": all(contender, |m| m.p50_ms),
                    "p99_ms": all(contender, |m| m.p99_ms),
                })
            })
            .collect();
        let Size { rounds, tasks, round_trips } = self.size;
        json!({ "rounds": rounds, "tasks": tasks, "round_trips": round_trips, "workers": contenders })
    }

    fn of(&self, contender: Contender) -> &[Measurement] {
        self.measurements.get(&contender.name()).map(Vec::as_slice).unwrap_or_default()
    }

    fn spread(&self, contender: Contender, field: fn(&Measurement) -> f64) -> Spread {
        Spread::of(self.of(contender).iter().map(field).collect())
    }
}

#[derive(Clone, Copy, Debug)]
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self { least: at(0), median: at(values.len() / 2), most: at(values.len().saturating_sub(1)) }
    }

    fn text(self, digits: usize) -> String {
        let Self { least, median, most } = self;
        format!("{median:.digits$} ({least:.digits$}-{most:.digits$})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_medians_spreads_and_ratios() {
        let mut report = Report::new(Size { rounds: 3, tasks: 10, round_trips: 5 });
        for contender in CONTENDERS {
            let speed = if contender == CONTENDERS[0] { 4.0 } else { 1.0 };
            for rate in [300.0, 100.0, 200.0] {
                let tasks_per_second = rate * speed;
                report.add(contender, Measurement { tasks_per_second, p50_ms: 8.0 / speed, p99_ms: 9.0 });
            }
        }
        let table = report.markdown();
        assert!(table.contains("800 (400-1200)"), "{table}");
        assert!(table.contains("200 (100-300)"), "{table}");
        assert!(table.contains(" 0.25 "), "{table}");
        assert!(table.contains(" 4.00 "), "{table}");
        assert_eq!(report.json()["workers"][0]["tasks_per_second"][1], 400.0);
    }
}
