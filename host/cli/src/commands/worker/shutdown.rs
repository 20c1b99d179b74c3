//! From signals to shutdowns, as Celery has them (`celery/apps/worker.py`).

use std::{io, time::Duration};

use rtask_worker::Shutdown;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep_until},
};

/// How far a worker is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Running,
    /// It takes no more tasks, and finishes those that run.
    Warm,
    /// As warm, but only for so long.
    Soft,
    /// The tasks that run are stopped, and their messages go back.
    Cold,
    /// It is left as it is.
    Forced,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Terminate,
    Interrupt,
    Quit,
}

/// A worker that stops at once gets so long to give back its messages and say goodbye.
const GOODBYE: Duration = Duration::from_secs(10);
/// Set to `SIGQUIT`, it makes TERM do what QUIT does: for platforms that can send no other signal.
const REMAP: &str = "REMAP_SIGTERM";

/// Listens for signals, and tells the worker.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    /// Whether TERM stands for QUIT.
    remapped: bool,
    /// How long the tasks that run may go on when the worker is to stop at once.
    soft: Option<Duration>,
    stage: Stage,
    /// When the next stage comes by itself.
    deadline: Option<Instant>,
    worker: Shutdown,
}

impl Signals {
    /// # Errors
    /// When the system refuses to pass signals on.
    pub fn listen(worker: Shutdown, soft: Option<Duration>) -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            remapped: std::env::var_os(REMAP).is_some_and(|to| to == "SIGQUIT"),
            soft,
            stage: Stage::Running,
            deadline: None,
            worker,
        })
    }

    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Pass signals on until the worker is not to be waited for any longer.
    pub async fn until_forced(&mut self) {
        while self.stage != Stage::Forced {
            self.step().await;
        }
    }

    /// Wait for the rest of a soft shutdown (`worker_enable_soft_shutdown_on_idle`).
    pub async fn until_not_soft(&mut self) {
        while self.stage == Stage::Soft {
            self.step().await;
        }
    }

    async fn step(&mut self) {
        let deadline = self.deadline;
        let stage = tokio::select! {
            told = self.next() => self.stage.told(told, self.soft.is_some()),
            () = until(deadline) => self.stage.overdue(),
        };
        if stage != self.stage {
            self.stage = stage;
            self.enter(stage);
        }
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => if self.remapped { Told::Quit } else { Told::Terminate },
            _ = self.interrupt.recv() => Told::Interrupt,
            _ = self.quit.recv() => Told::Quit,
        }
    }

    fn enter(&mut self, stage: Stage) {
        match stage {
            Stage::Running | Stage::Forced => {}
            Stage::Warm => {
                tracing::info!("stopping when the running tasks are done; Ctrl-C (again) or QUIT stops at once");
                self.worker.warm.cancel();
            }
            Stage::Soft => {
                let soft = self.soft.unwrap_or_default();
                tracing::warn!(?soft, "stopping when the running tasks are done, or at once after the soft shutdown");
                self.deadline = Some(Instant::now() + soft);
                self.worker.warm.cancel();
            }
            Stage::Cold => {
                tracing::warn!("stopping at once; the same signal again leaves everything as it is");
                self.deadline = Some(Instant::now() + GOODBYE);
                self.worker.warm.cancel();
                self.worker.cold.cancel();
            }
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl Stage {
    /// What follows a signal; `soft` if the running tasks are given time before they are stopped.
    fn told(self, told: Told, soft: bool) -> Self {
        let at_once = if soft { Self::Soft } else { Self::Cold };
        match (self, told) {
            (Self::Running, Told::Terminate | Told::Interrupt) | (Self::Warm, Told::Terminate) => Self::Warm,
            (Self::Running, Told::Quit) | (Self::Warm, Told::Interrupt | Told::Quit) => at_once,
            (Self::Soft | Self::Cold | Self::Forced, Told::Terminate) => self,
            (Self::Soft, Told::Interrupt | Told::Quit) => Self::Cold,
            (Self::Cold | Self::Forced, Told::Interrupt | Told::Quit) => Self::Forced,
        }
    }

    /// What follows when its time is over.
    fn overdue(self) -> Self {
        match self {
            Self::Running | Self::Warm => self,
            Self::Soft => Self::Cold,
            Self::Cold | Self::Forced => Self::Forced,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The stages that a worker goes through under these signals.
    fn stages(told: &[Told], soft: bool) -> Vec<Stage> {
        let next = |stage: &mut Stage, told: &Told| {
            *stage = stage.told(*told, soft);
            Some(*stage)
        };
        told.iter().scan(Stage::Running, next).collect()
    }

    #[test]
    fn signals_lead_through_the_stages_as_celerys_do() {
        use Stage::{Cold, Forced, Soft, Warm};
        use Told::{Interrupt, Quit, Terminate};
        let rows: [(&[Told], bool, &[Stage]); 8] = [
            (&[Terminate, Terminate], false, &[Warm, Warm]),
            (&[Terminate, Quit], false, &[Warm, Cold]),
            (&[Interrupt, Interrupt, Interrupt], false, &[Warm, Cold, Forced]),
            (&[Quit, Terminate, Quit], false, &[Cold, Cold, Forced]),
            (&[Quit, Quit, Quit], true, &[Soft, Cold, Forced]),
            (&[Quit, Terminate, Interrupt], true, &[Soft, Soft, Cold]),
            (&[Interrupt, Interrupt, Interrupt], true, &[Warm, Soft, Cold]),
            (&[Terminate, Interrupt], true, &[Warm, Soft]),
        ];
        for (told, soft, expected) in rows {
            assert_eq!(stages(told, soft), expected, "{told:?} {soft}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_soft_shutdown_becomes_cold_by_itself_and_a_cold_one_is_not_waited_for_for_ever() {
        let worker = Shutdown::default();
        let mut signals = Signals::listen(worker.clone(), Some(Duration::from_secs(60))).unwrap();
        signals.stage = Stage::Soft;
        signals.enter(Stage::Soft);
        assert!(worker.warm.is_cancelled() && !worker.cold.is_cancelled());
        let begun = Instant::now();
        signals.until_not_soft().await;
        assert!(worker.cold.is_cancelled());
        assert_eq!((signals.stage(), begun.elapsed().as_secs()), (Stage::Cold, 60));
        signals.until_forced().await;
        assert_eq!(begun.elapsed().as_secs(), 60 + GOODBYE.as_secs());
    }
}
