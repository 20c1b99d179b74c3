//! The repository as it is now.

use xtask::{tidy, workspace::Workspace};

#[test]
fn the_repository_is_tidy() {
    let workspace = Workspace::find().unwrap();
    let broken = tidy::check(&workspace).unwrap();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
