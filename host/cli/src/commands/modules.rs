//! `rtask modules`.

use std::process::ExitCode;

use clap::Args;
use rtask_registry::{
    DEFAULT_TENANT, Module, Version,
    manifest::{Parameter, ParameterKind, TaskSpec},
};

use crate::{
    failure::Failure,
    output::Output,
    settings::{Settings, Size},
    visible,
};

/// List the modules that are deployed, with their versions and tasks
#[derive(Debug, Args)]
pub struct Modules {}

/// Characters of a digest that are enough to tell versions apart.
const SHOWN_DIGEST: usize = "sha256:".len() + 12;

pub async fn run(settings: Settings, output: Output) -> Result<ExitCode, Failure> {
    let registry = super::connect_registry(&settings).await?;
    let modules = registry.modules(DEFAULT_TENANT).await?;
    let text = if modules.is_empty() {
        "no modules yet; deploy one with `rtask deploy FILE.wasm`".to_owned()
    } else {
        modules.iter().map(module).collect::<Vec<_>>().join("\n")
    };
    output.answer(text, &modules)?;
    Ok(ExitCode::SUCCESS)
}

fn module(module: &Module) -> String {
    let mut lines = vec![module.name.clone()];
    for version in module.versions.iter().rev() {
        let is_current = version.number == module.current;
        lines.push(format!("  {}", summary(version, is_current)));
        if is_current {
            let tasks = version.manifest.tasks.iter();
            lines.extend(tasks.map(|task| format!("      {}", signature(task))));
        }
    }
    lines.join("\n")
}

fn summary(version: &Version, is_current: bool) -> String {
    let digest = version.digest.to_string();
    let by = visible::line(&version.deployed_by);
    let current = if is_current { ", current" } else { "" };
    format!(
        "version {}{current}  {}  {}  deployed {} by {by}",
        version.number,
        digest.get(..SHOWN_DIGEST).unwrap_or(&digest),
        Size(version.size),
        version.deployed_at.strftime("%Y-%m-%d %H:%M:%S UTC"),
    )
}

/// `hello.add(x: i64, y: i64 = 1)`, in Python's manner.
fn signature(task: &TaskSpec) -> String {
    let parameters: Vec<String> = task.parameters.iter().map(parameter).collect();
    visible::line(&format!("{}({})", task.name, parameters.join(", ")))
}

fn parameter(parameter: &Parameter) -> String {
    let stars = match parameter.kind {
        ParameterKind::Normal => "",
        ParameterKind::Variadic => "*",
        ParameterKind::Keywords => "**",
    };
    let type_name = parameter.type_name.iter().map(|name| format!(": {name}"));
    let default = match &parameter.default {
        Some(default) => format!(" = {default}"),
        None if stars.is_empty() && !parameter.required => " = ...".to_owned(),
        None => String::new(),
    };
    format!("{stars}{}{}{default}", parameter.name, type_name.collect::<String>())
}

#[cfg(test)]
mod tests {
    use rtask_registry::Manifest;

    use super::*;

    #[test]
    fn a_signature_tells_how_to_call_a_task() {
        let manifest = r#"{"module": "m", "sdk": "t", "tasks": [{"name": "m.f", "parameters": [
            {"name": "x", "type": "i64"}, {"name": "y", "required": false, "default": 1},
            {"name": "z", "required": false}, {"name": "rest", "kind": "variadic", "required": false},
            {"name": "named", "kind": "keywords", "required": false}]}, {"name": "m.g"}]}"#;
        let manifest = Manifest::parse(manifest).unwrap();
        let signatures: Vec<String> = manifest.tasks.iter().map(signature).collect();
        assert_eq!(signatures, ["m.f(x: i64, y = 1, z = ..., *rest, **named)", "m.g()"]);
    }
}
