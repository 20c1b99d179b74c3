//! What this crate reads and writes, held against what Celery 5.7.0 put on the wire (tests/vectors).

mod hostile;
mod read;
mod signed;
mod written;

use std::{fs, path::PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rtask_protocol::{Headers, Message, Properties};
use serde::Deserialize;

#[derive(Deserialize)]
struct Scenario {
    messages: Vec<Published>,
}

#[derive(Deserialize)]
struct Published {
    properties: Properties,
    headers: Headers,
    body: Option<String>,
    body_base64: Option<String>,
}

/// The messages of a file such as `task/02_kwargs`.
fn messages(scenario: &str) -> Vec<Message> {
    let path = folder().join(format!("{scenario}.json"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let scenario: Scenario = serde_json::from_str(&text).unwrap();
    let messages = scenario.messages.into_iter().map(|published| Message {
        headers: published.headers,
        properties: published.properties,
        body: match (published.body, published.body_base64) {
            (Some(text), _) => text.into(),
            (None, packed) => STANDARD.decode(packed.unwrap()).unwrap().into(),
        },
    });
    messages.collect()
}

fn first(scenario: &str) -> Message {
    messages(scenario).remove(0)
}

/// Every file of a folder, as `task/02_kwargs`.
fn scenarios(kind: &str) -> Vec<String> {
    let entries = fs::read_dir(folder().join(kind)).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<_> = entries.map(|path| format!("{kind}/{}", path.file_stem().unwrap().display())).collect();
    names.sort();
    names
}

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors"))
}
