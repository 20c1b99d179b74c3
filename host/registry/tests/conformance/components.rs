//! Bytes.

use bytes::Bytes;
use rtask_registry::{Deployment, Digest, MAX_COMPONENT, RegistryError};

use crate::lab::{Lab, soon};

pub async fn ten_mebibytes_come_back_as_they_were(lab: &Lab) {
    let mut component = lab.tenant.clone().into_bytes();
    component.extend((0..10_u32 << 20).map(|place| place.wrapping_mul(2_654_435_761).to_be_bytes()[0]));
    let component = Bytes::from(component);
    let deployment = Deployment { component: component.clone(), ..lab.deployment("hello", &["a"], "") };
    let version = soon(lab.registry.deploy(deployment.clone())).await.unwrap();
    assert_eq!(version.size, component.len() as u64);
    assert!(soon(lab.other.component(&version.digest)).await.unwrap() == component);

    let too_large = Deployment { component: Bytes::from(vec![0; MAX_COMPONENT + 1]), ..deployment };
    let refused = lab.registry.deploy(too_large).await.unwrap_err();
    assert!(matches!(refused, RegistryError::TooLarge { .. }), "{refused}");
    assert_eq!(lab.numbers("hello").await, [1]);
}

pub async fn modules_may_share_a_component(lab: &Lab) {
    let one = lab.deploy("one", &["a"], "same").await.unwrap();
    let other = lab.deploy("other", &["b"], "same").await.unwrap();
    assert_eq!(one.digest, other.digest);
    assert_eq!(lab.other.component(&one.digest).await.unwrap(), lab.component("same"));
}

pub async fn one_that_was_never_deployed_is_unknown(lab: &Lab) {
    let digest = Digest::of(lab.tenant.as_bytes());
    let answer = lab.registry.component(&digest).await;
    assert!(matches!(answer, Err(RegistryError::UnknownDigest(unknown)) if unknown == digest), "{answer:?}");
}

pub async fn damage_is_noticed_and_mended_by_deploying_again(lab: &Lab) {
    let version = lab.deploy("hello", &["a"], "one").await.unwrap();
    lab.replace_component(&version.digest, Some(b"one of somebody else")).await;
    let answer = lab.other.component(&version.digest).await;
    assert!(matches!(answer, Err(RegistryError::Damaged(damaged)) if damaged == version.digest), "{answer:?}");
    mend(lab, &version.digest).await;
}

pub async fn loss_is_noticed_and_mended_by_deploying_again(lab: &Lab) {
    let version = lab.deploy("hello", &["a"], "one").await.unwrap();
    lab.replace_component(&version.digest, None).await;
    let answer = lab.other.component(&version.digest).await;
    assert!(matches!(answer, Err(RegistryError::UnknownDigest(_))), "{answer:?}");
    mend(lab, &version.digest).await;
}

/// A worker that could not load it hears that it may try again.
async fn mend(lab: &Lab, digest: &Digest) {
    let mut changes = lab.other.changes();
    changes.mark_unchanged();
    assert_eq!(lab.deploy("hello", &["a"], "one").await.unwrap().number, 1);
    soon(changes.changed()).await.unwrap();
    assert_eq!(lab.other.component(digest).await.unwrap(), lab.component("one"));
}
