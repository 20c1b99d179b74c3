//! Modules that no SDK would make, written in WebAssembly text.

use std::path::{Path, PathBuf};

/// The component around the two functions of `rtask:task/handler`.
const TEMPLATE: &str = include_str!("../guests/handler.wat");

/// What the two functions do.
#[derive(Clone, Debug)]
pub struct Guest {
    /// What `describe` answers.
    manifest: String,
    /// What `run` answers: JSON.
    answer: String,
    /// Instructions before `describe` answers.
    before_describe: String,
    /// Instructions before `run` answers.
    before_run: String,
    /// Functions that nobody calls, but that must be compiled.
    ballast: String,
}

impl Guest {
    /// A module with one task, which answers `answer` (JSON).
    pub fn answering(module: &str, task: &str, answer: &str) -> Self {
        let manifest = format!(r#"{{"module": "{module}", "sdk": "wat", "tasks": [{{"name": "{task}"}}]}}"#);
        let none = String::new;
        Self { manifest, answer: answer.to_owned(), before_describe: none(), before_run: none(), ballast: none() }
    }

    /// Whose `describe` answers this instead of a manifest.
    pub fn describing_itself_as(nonsense: &str) -> Self {
        Self { manifest: nonsense.to_owned(), ..Self::answering("nonsense", "nonsense.task", "null") }
    }

    /// That does this first whenever it is asked what it is.
    pub fn before_describe(mut self, instructions: &str) -> Self {
        instructions.clone_into(&mut self.before_describe);
        self
    }

    /// That does this first whenever it runs.
    pub fn before_run(mut self, instructions: &str) -> Self {
        instructions.clone_into(&mut self.before_run);
        self
    }

    /// That holds these functions too.
    pub fn with_ballast(mut self, functions: &str) -> Self {
        functions.clone_into(&mut self.ballast);
        self
    }

    /// The component's text.
    pub fn text(&self) -> String {
        TEMPLATE
            .replace("{manifest}", &escape(&self.manifest))
            .replace("{manifest-length}", &self.manifest.len().to_string())
            .replace("{answer}", &escape(&self.answer))
            .replace("{answer-length}", &self.answer.len().to_string())
            .replace("{before-describe}", &self.before_describe)
            .replace("{before-run}", &self.before_run)
            .replace("{ballast}", &self.ballast)
    }

    /// The component, as a file in `folder`.
    ///
    /// # Panics
    /// When the text is no component, or the file cannot be written.
    pub fn write(&self, folder: &Path, name: &str) -> PathBuf {
        write(folder, name, &self.text())
    }
}

/// Any WebAssembly text as a file in `folder`.
///
/// # Panics
/// As [`Guest::write`].
pub fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(format!("{name}.wasm"));
    let bytes = wat::parse_str(text).unwrap_or_else(|error| panic!("{name} is no WebAssembly text: {error}"));
    std::fs::write(&path, bytes).unwrap_or_else(|error| panic!("failed to write {}: {error}", path.display()));
    path
}

/// As in a string of WebAssembly text.
fn escape(text: &str) -> String {
    text.bytes().map(|byte| format!("\\{byte:02x}")).collect()
}

/// A function of 100 KB that takes minutes and gigabytes to compile: each of many jumps can lead to each of many
/// places, and each place must know the values of all variables on every way that leads there.
pub fn compile_bomb() -> String {
    const PLACES: usize = 300;
    const VARIABLES: usize = 300;
    let change = |number: usize| {
        let variable = 1 + number % VARIABLES;
        format!("(local.set {variable} (i64.add (local.get {variable}) (i64.const 1)))")
    };
    let targets: String = (0..PLACES).map(|place| format!("{place} ")).collect();
    let jumps = (0..PLACES)
        .map(|number| format!("(block {} (br_if 0 (local.get 0)) (br_table {targets} (local.get 0)))", change(number)));
    let jumps: String = jumps.collect();
    let ends: String = (0..PLACES).map(|number| format!("{})", change(number))).collect();
    let (opens, variables) = ("(block ".repeat(PLACES), "i64 ".repeat(VARIABLES));
    format!("(func (param i32) (local {variables}) {opens} {jumps} {ends})")
}
