//! WASI for guests that may have nothing: no file, no environment, no argument, no network; clocks that are too
//! coarse to measure a neighbour with.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use wasmtime::component::ResourceTable;
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtx};

use super::output::{Notices, Stream};
use crate::Level;

/// The guest's clocks advance in steps of this.
const RESOLUTION: Duration = Duration::from_millis(1);
/// Handles that a guest may hold at once: streams, pollables.
const MAX_HANDLES: usize = 1_000;
/// Random bytes that a guest may ask for in one call.
const MAX_RANDOM: u64 = 1 << 20;

/// What the WASI host functions work on. Made when a guest first calls one, since many never do.
pub(super) struct Wasi {
    pub(super) ctx: WasiCtx,
    pub(super) table: ResourceTable,
}

impl Wasi {
    pub(super) fn new(notices: &Arc<Notices>) -> Self {
        let stream = |level| Stream { level, notices: notices.clone() };
        let ctx = WasiCtx::builder()
            .stdout(stream(Level::Info))
            .stderr(stream(Level::Warning))
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .max_random_size(MAX_RANDOM)
            .wall_clock(CoarseWallClock)
            .monotonic_clock(CoarseMonotonicClock(Instant::now()))
            .build();
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_HANDLES);
        Self { ctx, table }
    }
}

struct CoarseWallClock;

impl HostWallClock for CoarseWallClock {
    fn resolution(&self) -> Duration {
        RESOLUTION
    }

    fn now(&self) -> Duration {
        coarse(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }
}

/// Counts from the start of the run, so that it says nothing of the machine.
struct CoarseMonotonicClock(Instant);

impl HostMonotonicClock for CoarseMonotonicClock {
    fn resolution(&self) -> u64 {
        nanoseconds(RESOLUTION)
    }

    fn now(&self) -> u64 {
        nanoseconds(coarse(self.0.elapsed()))
    }
}

fn coarse(exact: Duration) -> Duration {
    Duration::from_millis(u64::try_from(exact.as_millis()).unwrap_or(u64::MAX))
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
