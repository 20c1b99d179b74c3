//! Tasks for tests: those that try what a [`sandbox`] must not allow, and those with whom the whole [`life`] of a task
//! can be seen from outside.

mod life;
mod sandbox;
