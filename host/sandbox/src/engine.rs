//! The one engine configuration, shared by the compiler that makes machine code and the runner that loads it.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    num::NonZeroUsize,
};

use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, WasmFeatures};

/// The longest time between two looks at a running guest's clock.
pub(crate) const TICK: std::time::Duration = std::time::Duration::from_millis(5);

/// Frames of a guest's backtrace that are kept.
const MAX_FRAMES: NonZeroUsize = NonZeroUsize::new(30).expect("30 is not 0");
/// Bytes of a function's name. Wasmtime copies the names of all frames for each trap, so a component with longer
/// ones is refused; mangled names of deeply generic code reach a few thousand.
pub(crate) const MAX_FUNCTION_NAME: usize = 16 << 10;

/// Memory of a slot that stays resident between runs, in bytes; with the kernel's pagemap scan only the pages
/// that a run touched are cleared (spikes/host: half the time of a fresh mapping).
const KEEP_RESIDENT: usize = 4 << 20;
const TABLES_KEEP_RESIDENT: usize = 64 << 10;

/// Bounds on one component's parts. A component beyond them is refused when it is loaded.
const MAX_CORE_INSTANCES: u32 = 32;
const MAX_MEMORIES: u32 = 4;
const MAX_TABLES: u32 = 16;
const MAX_TABLE_ELEMENTS: usize = 100_000;
const MAX_INSTANCE_SIZE: usize = 1 << 20;

/// For the compiler child: no pool is needed to compile.
pub(crate) fn for_compiling() -> wasmtime::Result<Engine> {
    Engine::new(&config())
}

/// For a runner with `slots` runs at once, of at most `max_memory` bytes in one linear memory.
pub(crate) fn for_running(slots: u32, max_memory: u64) -> wasmtime::Result<Engine> {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(slots)
        .total_core_instances(slots * MAX_CORE_INSTANCES)
        .total_memories(slots * MAX_MEMORIES)
        .total_tables(slots * MAX_TABLES)
        .total_stacks(slots)
        .max_core_instances_per_component(MAX_CORE_INSTANCES)
        .max_memories_per_component(MAX_MEMORIES)
        .max_tables_per_component(MAX_TABLES)
        .table_elements(MAX_TABLE_ELEMENTS)
        .max_core_instance_size(MAX_INSTANCE_SIZE)
        .max_component_instance_size(MAX_INSTANCE_SIZE)
        .max_memory_size(usize::try_from(max_memory).unwrap_or(usize::MAX).min(4 << 30))
        .max_unused_warm_slots(slots * MAX_TABLES)
        .memory_protection_keys(Enabled::No);
    if PoolingAllocationConfig::is_pagemap_scan_available() {
        pool.pagemap_scan(Enabled::Yes)
            .linear_memory_keep_resident(KEEP_RESIDENT)
            .table_keep_resident(TABLES_KEEP_RESIDENT);
    }
    let mut config = config();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Engine::new(&config)
}

/// Whether the kernel lets a slot be cleared page by page.
pub(crate) fn clears_touched_pages_only() -> bool {
    PoolingAllocationConfig::is_pagemap_scan_available()
}

/// Names the settings and the engine version that machine code was made for.
pub(crate) fn fingerprint(engine: &Engine) -> u64 {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.finish()
}

fn config() -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .concurrency_support(false)
        .memory_init_cow(true)
        .wasm_backtrace_max_frames(Some(MAX_FRAMES))
        .wasm_features(
            WasmFeatures::THREADS
                | WasmFeatures::SHARED_EVERYTHING_THREADS
                | WasmFeatures::MEMORY64
                | WasmFeatures::MULTI_MEMORY
                | WasmFeatures::GC
                | WasmFeatures::FUNCTION_REFERENCES
                | WasmFeatures::EXCEPTIONS
                | WasmFeatures::STACK_SWITCHING,
            false,
        );
    config
}
