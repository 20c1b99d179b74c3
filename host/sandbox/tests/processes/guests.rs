//! The guests of these tests.

use rtask_sandbox::self_test::{self, ECHO_OR_SPIN};
use wit_component::{ComponentEncoder, StringEncoding};
use wit_parser::Resolve;

const CONTRACT: &str = include_str!("../../../../sdk/wit/task.wit");

/// Of WASI, what a guest needs that sleeps without its host's `context`.
const WASI_IO: &str = "
package wasi:io@0.2.0;
interface poll { resource pollable { block: func(); } }";
const WASI_CLOCKS: &str = "
package wasi:clocks@0.2.0;
interface monotonic-clock {
  use wasi:io/poll@0.2.0.{pollable};
  subscribe-duration: func(when: u64) -> pollable;
}";
const TALKER_WORLD: &str = "
package test:guests;
world talker {
  include rtask:task/task@0.2.0;
  import wasi:io/poll@0.2.0;
  import wasi:clocks/monotonic-clock@0.2.0;
}";

/// The self test's module with other instructions in front of those of `run`.
pub fn echo_or_spin(run: &str) -> Vec<u8> {
    let marked = "(if (i32.eq (i32.load8_u (local.get $task)) (i32.const 115)) (then (loop $for_ever (br $for_ever))))";
    assert!(ECHO_OR_SPIN.contains(marked), "the self test's module has changed");
    self_test::component(&ECHO_OR_SPIN.replace(marked, &format!("{marked}{run}"))).expect("a valid module")
}

/// The self test's module, as one that was built against the contract of that version.
pub fn of_version(version: &str) -> Vec<u8> {
    let then = |text: &str| text.replace("@0.2.0", &format!("@{version}"));
    encode(&then(ECHO_OR_SPIN), &[&then(CONTRACT)], "task")
}

/// See talker.wat.
pub fn talker() -> Vec<u8> {
    encode(include_str!("talker.wat"), &[CONTRACT, WASI_IO, WASI_CLOCKS, TALKER_WORLD], "talker")
}

/// A core module as a component of `world`, which is in the last of `packages`.
fn encode(core: &str, packages: &[&str], world: &str) -> Vec<u8> {
    let mut module = wat::parse_str(core).expect("a valid module");
    let mut resolve = Resolve::default();
    let pushed: Vec<_> =
        packages.iter().map(|package| resolve.push_str("guest.wit", package).expect("a valid package")).collect();
    let last = &pushed[pushed.len() - 1..];
    let world = resolve.select_world(last, Some(world)).expect("the world is in the last package");
    wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).expect("a valid world");
    let encoder = ComponentEncoder::default().validate(true).module(&module).expect("the metadata was just made");
    { encoder }.encode().expect("the module fits its world")
}
