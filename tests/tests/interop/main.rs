//! rtask beside Celery: one fleet, one broker, one result backend, workers of both kinds.
//!
//! The Celery worker is the real one, with tasks of the same names (tests/python/peer.py). Where a fact holds on more
//! than one broker, it is a test on each.

mod control;
mod delays;
mod queues;
mod restore;
mod results;
