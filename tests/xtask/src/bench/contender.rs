//! The workers that are measured.

use std::process::Command;

use anyhow::Result;

use super::Bench;
use crate::process::Running;

/// All have two places for tasks, and say nothing of what goes well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contender {
    /// With a prefetch multiplier.
    Rtask(u16),
    /// Celery's prefork pool, with a prefetch multiplier.
    Celery(u16),
}

/// Both with their default multiplier and with a large one. The others are compared with the first.
pub(super) const CONTENDERS: [Contender; 4] =
    [Contender::Rtask(4), Contender::Rtask(64), Contender::Celery(4), Contender::Celery(64)];

impl Contender {
    pub(super) fn name(self) -> String {
        match self {
            Self::Rtask(multiplier) => format!("rtask, -c 2, prefetch x{multiplier}"),
            Self::Celery(multiplier) => format!("Celery prefork, -c 2, prefetch x{multiplier}"),
        }
    }

    pub(super) fn start(self, bench: &Bench) -> Result<Running> {
        let mut command = match self {
            Self::Rtask(multiplier) => {
                let mut command = bench.rtask();
                let multiplier = multiplier.to_string();
                command.args(["worker", "-n", "bench@localhost", "--prefetch-multiplier", &multiplier]);
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
