//! The workers that are measured.

use std::process::Command;

use anyhow::Result;

use super::Bench;
use crate::process::Running;

/// All have two places for tasks, and say nothing of what goes well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contender {
    Rtask,
    /// Celery's prefork pool, with a prefetch multiplier.
    Celery(u16),
}

/// Celery with its default multiplier and with the one that it is fastest with.
pub(super) const CONTENDERS: [Contender; 3] = [Contender::Rtask, Contender::Celery(4), Contender::Celery(64)];

impl Contender {
    pub(super) fn name(self) -> String {
        match self {
            Self::Rtask => "rtask, -c 2".to_owned(),
            Self::Celery(multiplier) => format!("Celery prefork, -c 2, prefetch x{multiplier}"),
        }
    }

    pub(super) fn start(self, bench: &Bench) -> Result<Running> {
        let mut command = match self {
            Self::Rtask => {
                let mut command = bench.rtask();
                command.args(["worker", "-n", "bench@localhost"]);
                command
            }
            Self::Celery(multiplier) => {
                let mut command = Command::new(&bench.python);
                command.args(["-m", "celery", "-A", "tasks", "worker", "--pool", "prefork"]);
                command.current_dir(bench.workspace.root.join("tests/xtask/bench"));
                command.env("BENCH_PREFETCH_MULTIPLIER", multiplier.to_string()).env("PYTHONDONTWRITEBYTECODE", "1");
                bench.addresses(&mut command);
                command
            }
        };
        command.args(["-c", "2", "-l", "WARNING"]);
        let name = self.name();
        Running::start(&name, &mut command, &bench.folder.path().join("worker.log"))
    }
}
