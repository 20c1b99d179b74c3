//! Which package may depend on which (DESIGN section 2): the arrows, and what a room promises to be free of.

use serde_json::Value;

/// A package of ours, and those of ours that it may depend on.
struct Room {
    package: &'static str,
    may_use: &'static [&'static str],
    /// Crates of others that would break what the room promises.
    never: &'static [&'static str],
}

const PROTOCOL: &str = "rtask-protocol";
const BROKER: &str = "rtask-broker";
const REGISTRY: &str = "rtask-registry";
const SANDBOX: &str = "rtask-sandbox";
const WORKER: &str = "rtask-worker";

/// Crates that wait or open sockets.
const INPUT_OUTPUT: [&str; 5] = ["tokio", "lapin", "redis", "rusqlite", "wasmtime"];
/// Crates of brokers and stores.
const STORES: [&str; 3] = ["lapin", "redis", "rusqlite"];

const ROOMS: [Room; 12] = [
    Room { package: PROTOCOL, may_use: &[], never: &INPUT_OUTPUT },
    Room { package: BROKER, may_use: &[PROTOCOL], never: &["wasmtime"] },
    Room { package: REGISTRY, may_use: &[PROTOCOL], never: &["wasmtime"] },
    Room { package: SANDBOX, may_use: &[], never: &STORES },
    Room {
        package: WORKER,
        may_use: &[PROTOCOL, BROKER, REGISTRY, SANDBOX],
        never: &["wasmtime", "lapin", "redis", "rusqlite"],
    },
    Room {
        package: "rtask-cli",
        may_use: &[PROTOCOL, BROKER, REGISTRY, SANDBOX, WORKER],
        never: &["wasmtime", "lapin", "redis", "rusqlite"],
    },
    Room { package: "rtask", may_use: &["rtask-macros"], never: &INPUT_OUTPUT },
    Room { package: "rtask-macros", may_use: &[], never: &INPUT_OUTPUT },
    Room { package: "hello", may_use: &["rtask"], never: &INPUT_OUTPUT },
    Room { package: "probe", may_use: &["rtask"], never: &INPUT_OUTPUT },
    Room { package: "rtask-tests", may_use: &["xtask", PROTOCOL, BROKER, REGISTRY], never: &[] },
    Room { package: "xtask", may_use: &[], never: &INPUT_OUTPUT },
];

/// Broken arrows among `cargo metadata`'s packages.
pub fn check(packages: &[Value]) -> Vec<String> {
    let ours: Vec<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    packages.iter().flat_map(|package| broken_arrows(package, &ours)).collect()
}

fn broken_arrows(package: &Value, ours: &[&str]) -> Vec<String> {
    let name = package["name"].as_str().unwrap_or_default();
    let Some(room) = ROOMS.iter().find(|room| room.package == name) else {
        return vec![format!("package {name} is in no room: add it to ROOMS in tests/xtask/src/tidy/arrows.rs")];
    };
    let dependencies = package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names = dependencies.iter().filter_map(|dependency| dependency["name"].as_str());
    names.filter_map(|dependency| broken_arrow(room, dependency, ours)).collect()
}

fn broken_arrow(room: &Room, dependency: &str, ours: &[&str]) -> Option<String> {
    let Room { package, may_use, never } = room;
    if never.contains(&dependency) {
        return Some(format!("{package} depends on {dependency}, which its room promises to be free of"));
    }
    let forbidden = ours.contains(&dependency) && !may_use.contains(&dependency);
    forbidden.then(|| match may_use {
        [] => format!("{package} depends on {dependency}, but may depend on nothing of ours"),
        _ => format!("{package} depends on {dependency}, but of ours may use only {}", may_use.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::check;

    fn package(name: &str, dependencies: &[&str]) -> serde_json::Value {
        let dependencies: Vec<_> = dependencies.iter().map(|name| json!({ "name": name })).collect();
        json!({ "name": name, "dependencies": dependencies })
    }

    #[test]
    fn an_arrow_against_the_design_is_named() {
        let rows = [
            ("rtask-broker", "rtask-protocol", None),
            ("rtask-broker", "rtask-registry", Some("may use only rtask-protocol")),
            ("rtask-protocol", "rtask-broker", Some("may depend on nothing of ours")),
            ("rtask-sandbox", "rtask-protocol", Some("may depend on nothing of ours")),
            ("rtask-protocol", "tokio", Some("free of")),
            ("rtask-broker", "tokio", None),
            ("surprise", "tokio", Some("in no room")),
        ];
        for (from, to, expected) in rows {
            let ours = ["rtask-broker", "rtask-protocol", "rtask-registry"].map(|name| package(name, &[]));
            let broken = check(&[&[package(from, &[to])], &ours[..]].concat());
            let broken = broken.first().map(String::as_str);
            match expected {
                None => assert_eq!(broken, None),
                Some(reason) => assert!(broken.is_some_and(|rule| rule.contains(reason)), "{from}: {broken:?}"),
            }
        }
    }
}
