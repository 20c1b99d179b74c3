//! Rules on files: their size, their words, their place.

use std::{collections::BTreeSet, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::process::output;

/// Lines of a source file of the host or an SDK, unless it is in [`LONG_FILES`].
const MAX_LINES: usize = 500;
/// Files that are better long than split, each with the reason.
const LONG_FILES: [(&str, &str); 0] = [];

/// What may lie at the top (DESIGN section 2); anything else has a room to go to.
const TOP_FOLDERS: [&str; 7] = ["host", "sdk", "examples", "tests", ".cargo", ".ci", ".config"];

/// What must be there.
const REQUIRED: [&str; 3] = ["Cargo.lock", "Cargo.toml", ".ci/run"];

/// Words that no file contains, each with what is wrong with it. Written in parts, since this is a file too.
const WORDS: [(&str, &str); 5] = [
    (concat!("todo", "!("), "is unfinished"),
    (concat!("unimplemented", "!("), "is unfinished"),
    (concat!("dbg", "!("), "was left behind"),
    (concat!("/ro", "ot/"), "is a path of somebody's machine"),
    (concat!("/ho", "me/"), "is a path of somebody's machine"),
];

/// Broken rules among the files that git knows or would add.
///
/// # Errors
/// When git or a file cannot be read.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let mut git = Command::new("git");
    let list = output(git.current_dir(root).args(["ls-files", "--cached", "--others", "--exclude-standard"]))?;
    let files: BTreeSet<&str> = list.lines().filter(|file| root.join(file).is_file()).collect();
    let mut broken = misplaced(&files);
    for file in files {
        let bytes = std::fs::read(root.join(file)).with_context(|| format!("failed to read {file}"))?;
        // Wasm and pictures have no lines or words.
        if let Ok(text) = std::str::from_utf8(&bytes) {
            broken.extend(unfit(file, text));
        }
    }
    Ok(broken)
}

fn misplaced(files: &BTreeSet<&str>) -> Vec<String> {
    let folders: BTreeSet<&str> = files.iter().filter_map(|file| Some(file.split_once('/')?.0)).collect();
    let strange = folders.into_iter().filter(|folder| !TOP_FOLDERS.contains(folder));
    let strange = strange.map(|folder| format!("{folder}/: the design knows no such folder at the top"));
    let missing = REQUIRED.iter().filter(|file| !files.contains(*file));
    strange.chain(missing.map(|file| format!("{file}: is missing"))).collect()
}

fn unfit(file: &str, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    let lines = text.lines().count();
    if lines > MAX_LINES && is_source(file) && !LONG_FILES.iter().any(|(long, _)| *long == file) {
        broken.push(format!("{file}: {lines} lines; split it by meaning, or give a reason in LONG_FILES"));
    }
    for (number, line) in (1..).zip(text.lines()) {
        let found = WORDS.iter().filter(|(word, _)| line.contains(word));
        broken.extend(found.map(|(word, wrong)| format!("{file}:{number}: `{word}` {wrong}")));
    }
    broken
}

fn is_source(file: &str) -> bool {
    (file.starts_with("host/") || file.starts_with("sdk/"))
        && [".rs", ".py", ".go", ".js", ".ts"].iter().any(|ending| file.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_breaks_a_rule_is_named_with_the_line() {
        let long = "line\n".repeat(MAX_LINES + 1);
        let unfinished = format!("fn a() {{\n    {}) }}", WORDS[0].0);
        let path = format!("{}me/lib.rs", WORDS[3].0);
        let rows = [
            ("host/a.rs", long.as_str(), Some("host/a.rs: 501 lines")),
            ("tests/a.rs", long.as_str(), None),
            ("host/a.json", long.as_str(), None),
            ("sdk/b.rs", unfinished.as_str(), Some("sdk/b.rs:2: ")),
            ("README.md", path.as_str(), Some("README.md:1: ")),
            ("host/c.rs", "fn c() {}", None),
        ];
        for (file, text, expected) in rows {
            let broken = unfit(file, text).join("\n");
            match expected {
                None => assert_eq!(broken, ""),
                Some(start) => assert!(broken.starts_with(start), "{file}: {broken}"),
            }
        }
    }

    #[test]
    fn a_folder_that_the_design_does_not_know_is_named() {
        let broken = misplaced(&BTreeSet::from(["scripts/a.sh", "README.md", "host/a.rs"]));
        assert!(broken.iter().any(|rule| rule.starts_with("scripts/")), "{broken:?}");
        assert!(broken.iter().any(|rule| rule == "Cargo.lock: is missing"), "{broken:?}");
        assert_eq!(broken.len(), 1 + REQUIRED.len());
    }
}
