//! How much memory and how many table elements one run may have, over all of its instances together.

use wasmtime::ResourceLimiter;

use crate::{Limit, Limits};

/// Core instances, memories and tables of one run; the pool's own bounds on one component are lower.
const MAX_PARTS: usize = 64;

pub(super) struct Limiter {
    memory: u64,
    table_elements: u64,
    memory_left: u64,
    table_elements_left: u64,
    /// Set by the first request that was over a limit; the run ends with it.
    pub(super) exceeded: Option<Limit>,
}

impl Limiter {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            memory: limits.memory,
            table_elements: limits.table_elements,
            memory_left: limits.memory,
            table_elements_left: limits.table_elements,
            exceeded: None,
        }
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let more = desired.saturating_sub(current) as u64;
        match self.memory_left.checked_sub(more) {
            Some(left) => self.memory_left = left,
            None => return self.exceed(Limit::Memory(self.memory)),
        }
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        // The pool has less than the limit allows, or the machine has none left.
        self.exceed(Limit::Memory(self.memory)).map(|_| ())
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let more = desired.saturating_sub(current) as u64;
        match self.table_elements_left.checked_sub(more) {
            Some(left) => self.table_elements_left = left,
            None => return self.exceed(Limit::Table(self.table_elements)),
        }
        Ok(true)
    }

    fn table_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.exceed(Limit::Table(self.table_elements)).map(|_| ())
    }

    fn instances(&self) -> usize {
        MAX_PARTS
    }

    fn tables(&self) -> usize {
        MAX_PARTS
    }

    fn memories(&self) -> usize {
        MAX_PARTS
    }
}

impl Limiter {
    /// An error from a limiter ends the run, where a refusal would leave the guest to carry on without.
    fn exceed(&mut self, limit: Limit) -> wasmtime::Result<bool> {
        self.exceeded.get_or_insert(limit);
        Err(wasmtime::format_err!("limit exceeded"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memories_share_one_limit() {
        let mut limiter = Limiter::new(&Limits { memory: 100, ..Limits::default() });
        assert!(limiter.memory_growing(0, 60, None).unwrap());
        assert!(limiter.memory_growing(0, 40, None).unwrap());
        assert!(limiter.exceeded.is_none());
        assert!(limiter.memory_growing(40, 41, None).is_err());
        assert_eq!(limiter.exceeded, Some(Limit::Memory(100)));
    }

    #[test]
    fn a_guests_own_maximum_is_a_refusal_and_no_end() {
        let mut limiter = Limiter::new(&Limits::default());
        assert!(!limiter.memory_growing(0, 65_536, Some(1)).unwrap());
        assert!(limiter.exceeded.is_none());
    }
}
