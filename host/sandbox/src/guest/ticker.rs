//! The clock that makes running guests look at their deadline.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use wasmtime::Engine;

use crate::engine::TICK;

/// Advances the engine's epoch every [`TICK`] while guests run, and sleeps while none does.
pub(super) struct Ticker {
    running: AtomicUsize,
    thread: std::sync::OnceLock<std::thread::Thread>,
}

/// Keeps the ticker going.
pub(super) struct Ticking(Arc<Ticker>);

impl Ticker {
    pub(super) fn start(engine: Engine) -> std::io::Result<Arc<Self>> {
        let ticker = Arc::new(Self { running: AtomicUsize::new(0), thread: std::sync::OnceLock::new() });
        let ours = ticker.clone();
        let thread = std::thread::Builder::new().name("ticker".into()).spawn(move || ours.tick(&engine))?;
        ticker.thread.get_or_init(|| thread.thread().clone());
        Ok(ticker)
    }

    pub(super) fn hold(self: &Arc<Self>) -> Ticking {
        if self.running.fetch_add(1, Ordering::AcqRel) == 0
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
        Ticking(self.clone())
    }

    fn tick(&self, engine: &Engine) {
        loop {
            if self.running.load(Ordering::Acquire) == 0 {
                // An unpark between the load and this returns at once.
                std::thread::park();
            } else {
                std::thread::sleep(TICK);
                engine.increment_epoch();
            }
        }
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}
