//! `rtask build`: cargo, with the target and the profile that guests want.

use std::{
    ffi::{OsStr, OsString},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::{
    failure::{Attempt, Failure},
    output::{self, Output},
    settings::Size,
};

const TARGET: &str = "wasm32-wasip2";
/// Guests are loaded far more often than they are debugged: small, and with names for backtraces only.
const PROFILE: [&str; 5] = [
    r#"profile.release.opt-level="s""#,
    "profile.release.lto=true",
    "profile.release.codegen-units=1",
    r#"profile.release.strip="debuginfo""#,
    r#"profile.release.panic="abort""#,
];

/// Build a Rust crate into a component that can be deployed
#[derive(Debug, Args)]
pub struct Build {
    /// The crate's folder, or its Cargo.toml
    #[arg(default_value = ".")]
    path: PathBuf,
}

/// One component that was built.
#[derive(Debug, PartialEq, Serialize)]
struct Component {
    path: PathBuf,
    /// Bytes.
    size: u64,
}

pub fn run(build: &Build, output: Output) -> Result<ExitCode, Failure> {
    let manifest = find_manifest(&build.path)?;
    ensure_target(&manifest)?;
    let artifacts = cargo_build(&manifest, output)?;
    if artifacts.is_empty() {
        let reason = format!("{} has no library of the kind `cdylib`, so it makes no component", manifest.display());
        return Err(Failure::new(reason).hint("add to it: [lib] crate-type = [\"cdylib\"]"));
    }
    let components = artifacts.into_iter().map(weigh).collect::<Result<Vec<_>, _>>()?;
    if output.is_json() {
        output.json(&components)?;
    } else {
        for Component { path, size } in &components {
            output::print(format_args!("{}  {}", path.display(), Size(*size)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The Cargo.toml of `path` or of the nearest folder around it, as cargo itself looks for it.
fn find_manifest(path: &Path) -> Result<PathBuf, Failure> {
    let path = path.canonicalize().attempt(format_args!("failed to find {}", path.display()))?;
    if path.is_file() {
        return Ok(path);
    }
    let manifests = path.ancestors().map(|folder| folder.join("Cargo.toml"));
    manifests.into_iter().find(|manifest| manifest.is_file()).ok_or_else(|| {
        Failure::new(format!("there is no Cargo.toml in {} or around it", path.display()))
            .hint("run it in a Rust crate, or name the crate's folder: rtask build PATH")
    })
}

/// Cargo's own words for a missing target are an error in every crate; these say what to do.
fn ensure_target(manifest: &Path) -> Result<(), Failure> {
    let mut rustc = in_folder_of(manifest, "RUSTC", "rustc");
    rustc.args(["--print", "target-libdir", "--target", TARGET]);
    let printed = rustc.stdin(Stdio::null()).output().map_err(|error| no_toolchain("rustc", &error))?;
    let folder = String::from_utf8_lossy(&printed.stdout);
    if printed.status.success() && Path::new(folder.trim()).is_dir() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&printed.stderr);
    let reason = said.lines().find(|line| line.contains("error")).unwrap_or("its standard library is not installed");
    Err(Failure::new(format!("this Rust toolchain cannot build for {TARGET}: {reason}"))
        .hint(format!("rustup target add {TARGET}")))
}

/// Cargo's progress and complaints go to standard error as they come; the answer is what it has made for us.
fn cargo_build(manifest: &Path, output: Output) -> Result<Vec<PathBuf>, Failure> {
    let mut cargo = in_folder_of(manifest, "CARGO", "cargo");
    cargo.args(["build", "--release", "--target", TARGET, "--message-format", "json-render-diagnostics"]);
    cargo.arg("--manifest-path").arg(manifest);
    for setting in PROFILE {
        cargo.args(["--config", setting]);
    }
    if output.is_json() {
        cargo.arg("--quiet");
    }
    let mut running =
        cargo.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(|error| no_toolchain("cargo", &error))?;
    let mut artifacts = Vec::new();
    if let Some(messages) = running.stdout.take() {
        for line in BufReader::new(messages).lines() {
            artifacts.extend(components_in(&line.attempt("failed to listen to cargo")?));
        }
    }
    let status = running.wait().attempt("failed to wait for cargo")?;
    if !status.success() {
        return Err(Failure::new(format!("cargo could not build {} ({status})", manifest.display()))
            .hint("cargo's own words above say why"));
    }
    Ok(artifacts)
}

/// A tool of the toolchain that the crate's own folder chooses.
fn in_folder_of(manifest: &Path, variable: &str, name: &str) -> Command {
    let tool = std::env::var_os(variable).filter(|tool| !tool.is_empty()).unwrap_or_else(|| OsString::from(name));
    let mut command = Command::new(tool);
    command.current_dir(manifest.parent().unwrap_or(Path::new(".")));
    command
}

fn no_toolchain(tool: &str, error: &std::io::Error) -> Failure {
    Failure::new(format!("failed to start {tool}: {error}"))
        .hint(format!("install Rust from https://rustup.rs, then: rustup target add {TARGET}"))
}

/// The components of one of cargo's messages. Libraries that are linked into a component are artifacts too, but
/// not of the kind `cdylib`.
fn components_in(message: &str) -> Vec<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        reason: String,
        target: Option<Target>,
        #[serde(default)]
        filenames: Vec<PathBuf>,
    }
    #[derive(Deserialize)]
    struct Target {
        crate_types: Vec<String>,
    }
    let Ok(message) = serde_json::from_str::<Message>(message) else {
        return Vec::new();
    };
    let is_component = message.reason == "compiler-artifact"
        && message.target.is_some_and(|target| target.crate_types.iter().any(|kind| kind == "cdylib"));
    let is_wasm = |path: &PathBuf| path.extension() == Some(OsStr::new("wasm"));
    if is_component { message.filenames.into_iter().filter(is_wasm).collect() } else { Vec::new() }
}

fn weigh(path: PathBuf) -> Result<Component, Failure> {
    let metadata = path.metadata().attempt(format_args!("failed to find {}", path.display()))?;
    Ok(Component { size: metadata.len(), path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_components_are_taken_from_cargos_messages() {
        let artifact = |kinds: &str, file: &str| {
            format!(
                r#"{{"reason": "compiler-artifact", "target": {{"crate_types": [{kinds}]}}, "filenames": ["{file}"], "fresh": true}}"#
            )
        };
        let rows = [
            (artifact(r#""cdylib""#, "/t/hello.wasm"), vec![PathBuf::from("/t/hello.wasm")]),
            (artifact(r#""cdylib", "rlib""#, "/t/hello.wasm"), vec![PathBuf::from("/t/hello.wasm")]),
            (artifact(r#""lib""#, "/t/libserde.rlib"), vec![]),
            (artifact(r#""bin""#, "/t/tool.wasm"), vec![]),
            (r#"{"reason": "build-finished", "success": true}"#.to_owned(), vec![]),
            ("no json".to_owned(), vec![]),
        ];
        for (message, expected) in rows {
            assert_eq!(components_in(&message), expected, "{message}");
        }
    }

    #[test]
    fn the_nearest_manifest_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("src");
        std::fs::create_dir(&source).unwrap();
        let manifest = folder.path().join("Cargo.toml");
        std::fs::write(&manifest, "").unwrap();
        let manifest = manifest.canonicalize().unwrap();
        for path in [folder.path(), &source, &manifest] {
            assert_eq!(find_manifest(path).unwrap(), manifest);
        }
    }
}
