//! What a deploy does to a tenant: decided here, from values alone, and done by the stores.
//!
//! A version never changes, but the names of its tasks can be lost: to a module that takes them over. Who owns a
//! name is kept apart from the versions, so that each name has one owner, and what is served follows from both.
//! A name that its taker gives up again is nobody's until some module that has it is deployed.

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;

use crate::{Deployment, Digest, MAX_COMPONENT, Manifest, RegistryError, Version, manifest};

/// From a task's name to the module that owns it, for one tenant.
pub(crate) type Owners = BTreeMap<String, String>;

/// What a store knows of a module before it is deployed.
pub(crate) struct Standing {
    pub current: Option<Version>,
    /// The highest number that was given out, 0 for a new module.
    pub latest: u32,
    pub owners: Owners,
}

/// What a store is to write, all of it or nothing.
#[derive(Debug, PartialEq)]
pub(crate) struct Plan {
    /// Current from now on.
    pub version: Version,
    /// Whether the version is to be added; else it is there and current already.
    pub is_new: bool,
    /// Names that the module owns from now on.
    pub claimed: Vec<String>,
    /// Names that the module owned until now.
    pub released: Vec<String>,
}

impl Plan {
    pub fn changes_nothing(&self) -> bool {
        !self.is_new && self.claimed.is_empty() && self.released.is_empty()
    }
}

/// Refuse a deployment that no registry would take, whatever it holds.
pub(crate) fn check(deployment: &Deployment) -> Result<(), RegistryError> {
    check_name("tenant", &deployment.tenant)?;
    check_name("module", &deployment.module)?;
    match deployment.component.len() {
        size if size > MAX_COMPONENT => Err(RegistryError::TooLarge { size }),
        _ => Ok(()),
    }
}

/// Names become parts of keys, so every name from outside passes here.
pub(crate) fn check_name(what: &'static str, name: &str) -> Result<(), RegistryError> {
    if manifest::is_module_name(name) {
        return Ok(());
    }
    Err(RegistryError::InvalidName {
        what,
        name: name.escape_debug().take(MAX_SHOWN).collect(),
        rule: "use up to 64 letters, digits, `_`, `.` and `-`, beginning with none of the last two",
    })
}

/// Of a refused name, in characters.
const MAX_SHOWN: usize = 100;

/// Decide what becomes of a deployment of the component with this digest.
pub(crate) fn plan(
    deployment: &Deployment,
    digest: Digest,
    standing: &Standing,
    now: Timestamp,
) -> Result<Plan, RegistryError> {
    let (claimed, released) = names(deployment, &standing.owners)?;
    let same = |version: &&Version| version.digest == digest && version.manifest == deployment.manifest;
    let unchanged = standing.current.as_ref().filter(same);
    let version = unchanged.cloned().unwrap_or_else(|| Version {
        tenant: deployment.tenant.clone(),
        module: deployment.module.clone(),
        number: standing.latest + 1,
        digest,
        size: deployment.component.len() as u64,
        manifest: deployment.manifest.clone(),
        deployed_at: now,
        deployed_by: deployment.by.clone(),
    });
    Ok(Plan { version, is_new: unchanged.is_none(), claimed, released })
}

/// The names that the module gets, and those that it gives up.
fn names(deployment: &Deployment, owners: &Owners) -> Result<(Vec<String>, Vec<String>), RegistryError> {
    let mut claimed = Vec::new();
    for task in &deployment.manifest.tasks {
        match owners.get(&task.name) {
            Some(owner) if *owner == deployment.module => {}
            Some(owner) if !deployment.take_over => {
                return Err(RegistryError::NameTaken { task: task.name.clone(), module: owner.clone() });
            }
            Some(_) | None => claimed.push(task.name.clone()),
        }
    }
    let released = owners
        .iter()
        .filter(|(task, owner)| **owner == deployment.module && deployment.manifest.task(task).is_none())
        .map(|(task, _)| task.clone())
        .collect();
    Ok((claimed, released))
}

/// A current version with those of its tasks that its module still owns; none if it owns none.
pub(crate) fn serving(version: Version, owners: &Owners) -> Option<Version> {
    let owned = |name: &str| owners.get(name).is_some_and(|owner| *owner == version.module);
    let tasks = version.manifest.tasks.into_iter().filter(|task| owned(&task.name)).collect();
    let manifest = Manifest { tasks, ..version.manifest };
    (!manifest.tasks.is_empty()).then_some(Version { manifest, ..version })
}

/// Whether a component need not be stored again. One that is damaged is to be replaced.
pub(crate) fn is_kept(read: Result<Bytes, RegistryError>) -> Result<bool, RegistryError> {
    match read {
        Ok(_) => Ok(true),
        Err(RegistryError::UnknownDigest(_) | RegistryError::Damaged(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Hash aside: a large component takes longer than other tasks of the runtime should wait.
pub(crate) async fn digest_of(component: Bytes) -> Digest {
    tokio::task::spawn_blocking(move || Digest::of(&component)).await.expect("hashing does not panic")
}

/// The component as it was read, if it is what was asked for.
pub(crate) async fn verify(digest: &Digest, component: Option<Bytes>) -> Result<Bytes, RegistryError> {
    let component = component.ok_or(RegistryError::UnknownDigest(*digest))?;
    if digest_of(component.clone()).await == *digest { Ok(component) } else { Err(RegistryError::Damaged(*digest)) }
}

pub(crate) fn encode(version: &Version) -> String {
    serde_json::to_string(version).expect("a version is plain values with text for keys")
}

pub(crate) fn decode(tenant: &str, module: &str, text: &str) -> Result<Version, RegistryError> {
    serde_json::from_str(text).map_err(|error| RegistryError::Unreadable {
        what: format!("a version of module `{module}` of tenant `{tenant}`"),
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn manifest(tasks: &[&str]) -> Manifest {
        let tasks: Vec<_> = tasks.iter().map(|name| serde_json::json!({ "name": name })).collect();
        Manifest::parse(&serde_json::json!({ "module": "m", "sdk": "s", "tasks": tasks }).to_string()).unwrap()
    }

    fn deployment(tasks: &[&str], component: &'static str) -> Deployment {
        Deployment {
            tenant: "t".to_owned(),
            module: "m".to_owned(),
            component: Bytes::from_static(component.as_bytes()),
            manifest: manifest(tasks),
            by: "ada".to_owned(),
            take_over: false,
        }
    }

    fn planned(deployment: &Deployment, standing: &Standing) -> Plan {
        plan(deployment, Digest::of(&deployment.component), standing, NOW).unwrap()
    }

    fn owners(rows: &[(&str, &str)]) -> Owners {
        rows.iter().map(|(task, owner)| ((*task).to_owned(), (*owner).to_owned())).collect()
    }

    /// After `deployment` as version 3, with these owners.
    fn after(deployment: &Deployment, owners: Owners) -> Standing {
        let first = Standing { current: None, latest: 2, owners: Owners::new() };
        Standing { current: Some(planned(deployment, &first).version), latest: 3, owners }
    }

    #[test]
    fn a_first_deploy_is_version_1_and_owns_its_tasks() {
        let standing = Standing { current: None, latest: 0, owners: owners(&[("other", "n")]) };
        let plan = planned(&deployment(&["a", "b"], "1"), &standing);
        assert_eq!((plan.version.number, plan.version.size, plan.is_new), (1, 1, true));
        assert_eq!((plan.claimed, plan.released), (vec!["a".to_owned(), "b".to_owned()], vec![]));
    }

    #[test]
    fn what_makes_a_new_version() {
        let standing = after(&deployment(&["a"], "1"), owners(&[("a", "m")]));
        let rows = [
            (deployment(&["a"], "1"), 3, "the same again is the same version"),
            (deployment(&["a"], "2"), 4, "other bytes"),
            (deployment(&["a", "b"], "1"), 4, "another manifest"),
        ];
        for (deployment, number, why) in rows {
            let plan = planned(&deployment, &standing);
            assert_eq!((plan.version.number, plan.is_new), (number, number == 4), "{why}");
            assert_eq!(plan.changes_nothing(), number == 3, "{why}");
        }
    }

    #[test]
    fn a_task_that_is_gone_is_released() {
        let standing = after(&deployment(&["a", "b"], "1"), owners(&[("a", "m"), ("b", "m"), ("c", "n")]));
        let plan = planned(&deployment(&["b"], "2"), &standing);
        assert_eq!((plan.claimed, plan.released), (vec![], vec!["a".to_owned()]));
    }

    #[test]
    fn a_taken_name_is_refused_unless_it_is_taken_over() {
        let standing = Standing { current: None, latest: 0, owners: owners(&[("b", "n")]) };
        let mut deployment = deployment(&["a", "b"], "1");
        let error = plan(&deployment, Digest::of(b"1"), &standing, NOW).unwrap_err();
        assert_eq!(error.to_string(), "task `b` belongs to module `n`; rename the task, or deploy with --take-over");
        deployment.take_over = true;
        assert_eq!(planned(&deployment, &standing).claimed, ["a", "b"]);
    }

    #[test]
    fn lost_names_are_claimed_again_by_the_same_version() {
        let deployment = deployment(&["a", "b"], "1");
        let standing = after(&deployment, owners(&[("a", "m")]));
        let plan = planned(&deployment, &standing);
        assert_eq!((plan.version.number, plan.is_new), (3, false));
        assert_eq!(plan.claimed, ["b"]);
        assert!(!plan.changes_nothing());
    }

    #[test]
    fn a_version_serves_what_its_module_owns() {
        let version = after(&deployment(&["a", "b"], "1"), Owners::new()).current.unwrap();
        let rows = [
            (vec![("a", "m"), ("b", "m")], Some(vec!["a", "b"])),
            (vec![("a", "n"), ("b", "m")], Some(vec!["b"])),
            (vec![("b", "m")], Some(vec!["b"])),
            (vec![("a", "n")], None),
        ];
        for (owned, served) in rows {
            let serving = serving(version.clone(), &owners(&owned));
            let expected = served.as_deref().map(manifest);
            assert_eq!(serving.map(|version| version.manifest), expected, "{owned:?}");
        }
    }

    #[test]
    fn names_that_could_leave_their_place_are_refused() {
        for name in ["", "a:b", "../a", ".", "-a", "a b", "a\n", "ä"] {
            let mut bad = deployment(&["a"], "1");
            bad.module = name.to_owned();
            assert!(matches!(check(&bad), Err(RegistryError::InvalidName { what: "module", .. })), "{name:?}");
            let mut bad = deployment(&["a"], "1");
            bad.tenant = name.to_owned();
            assert!(matches!(check(&bad), Err(RegistryError::InvalidName { what: "tenant", .. })), "{name:?}");
        }
        assert!(check(&deployment(&["a"], "1")).is_ok());
    }

    #[test]
    fn a_component_above_the_limit_is_refused() {
        let mut large = deployment(&["a"], "1");
        large.component = Bytes::from(vec![0; MAX_COMPONENT + 1]);
        assert!(matches!(check(&large), Err(RegistryError::TooLarge { size }) if size == MAX_COMPONENT + 1));
        large.component.truncate(MAX_COMPONENT);
        assert!(check(&large).is_ok());
    }
}
