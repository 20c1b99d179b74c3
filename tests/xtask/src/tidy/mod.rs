//! `cargo xtask tidy`: what a reviewer should not have to look for. Also run as a test.

use anyhow::Result;

use crate::workspace::Workspace;

mod arrows;
mod files;

/// Check everything, and print each broken rule; whether there was none.
///
/// # Errors
/// When the repository cannot be read.
pub fn run(workspace: &Workspace) -> Result<bool> {
    let broken = check(workspace)?;
    for rule in &broken {
        eprintln!("{rule}");
    }
    let tidy = broken.is_empty();
    println!("{}", if tidy { "tidy".to_owned() } else { format!("{} rules are broken", broken.len()) });
    Ok(tidy)
}

/// Every broken rule, with where it is broken.
///
/// # Errors
/// When the repository cannot be read.
pub fn check(workspace: &Workspace) -> Result<Vec<String>> {
    let mut broken = arrows::check(&workspace.packages);
    broken.extend(files::check(&workspace.root)?);
    Ok(broken)
}
