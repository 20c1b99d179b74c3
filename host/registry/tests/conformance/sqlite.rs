//! What is particular to SQLite.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use rtask_registry::{Digest, RegistryError, connect};
use rusqlite::Connection;

use crate::lab::{Lab, soon};

pub fn replace_component(path: &str, digest: &Digest, component: Option<&[u8]>) {
    let (connection, digest) = (Connection::open(path).unwrap(), digest.to_string());
    let replaced = match component {
        Some(bytes) => {
            connection.execute("UPDATE registry_components SET bytes = ?1 WHERE digest = ?2", (bytes, digest))
        }
        None => connection.execute("DELETE FROM registry_components WHERE digest = ?1", [digest]),
    };
    assert_eq!(replaced, Ok(1));
}

fn url(path: &Path) -> String {
    format!("sqlite:{}", path.display())
}

#[tokio::test]
async fn file_and_folder_are_made_for_their_owner_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state").join("rtask.db");
    let _registry = connect(&url(&path)).await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    for entry in fs::read_dir(path.parent().unwrap()).unwrap() {
        let entry = entry.unwrap().path();
        assert_eq!(mode(&entry), 0o600, "{}", entry.display());
    }
}

#[tokio::test]
async fn a_file_that_others_may_write_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rtask.db");
    drop(connect(&url(&path)).await.unwrap());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let refused = connect(&url(&path)).await.err().expect("others could put modules into it");
    assert!(matches!(refused, RegistryError::Refused { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_may_make_the_file_at_the_same_time() {
    let folder = tempfile::tempdir().unwrap();
    let url = url(&folder.path().join("rtask.db"));
    let opening = (0..16).map(|_| {
        let url = url.clone();
        tokio::spawn(async move { connect(&url).await.map(drop) })
    });
    for opened in soon(futures::future::join_all(opening)).await {
        opened.unwrap().unwrap();
    }
}

#[tokio::test]
async fn what_was_deployed_is_there_after_all_have_gone() {
    let Lab { registry, other, tenant, url, folder: _folder } = {
        let lab = Lab::sqlite().await;
        lab.deploy("hello", &["a"], "one").await.unwrap();
        lab
    };
    let before = registry.modules(&tenant).await.unwrap();
    drop((registry, other));
    assert_eq!(connect(&url).await.unwrap().modules(&tenant).await.unwrap(), before);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("letter");
    let letter = "Dear reader, ".repeat(1_000);
    fs::write(&path, &letter).unwrap();
    let error = connect(&url(&path)).await.err().unwrap();
    assert!(matches!(error, RegistryError::Refused { .. }) && error.is_permanent(), "{error:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), letter);
}

#[tokio::test]
async fn a_place_where_no_file_can_be_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    for path in [folder.path().to_owned(), folder.path().join("file").join("rtask.db")] {
        let error = connect(&url(&path)).await.err().unwrap();
        assert!(matches!(error, RegistryError::Refused { .. }), "{}: {error:?}", path.display());
    }
}

#[tokio::test]
async fn the_tables_of_a_newer_rtask_are_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rtask.db");
    drop(connect(&url(&path)).await.unwrap());
    Connection::open(&path).unwrap().execute("UPDATE rooms SET version = 2 WHERE room = 'registry'", []).unwrap();
    let error = connect(&url(&path)).await.err().unwrap();
    assert!(matches!(error, RegistryError::Unreadable { .. }), "{error:?}");
    assert!(error.to_string().contains("update this one"), "{error}");
}

#[tokio::test]
async fn a_broker_may_have_been_in_the_file_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rtask.db");
    let broker = Connection::open(&path).unwrap();
    broker
        .execute_batch(
            "CREATE TABLE rooms (room TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT;
             INSERT INTO rooms VALUES ('broker', 7);",
        )
        .unwrap();
    connect(&url(&path)).await.unwrap();
    let version = broker.query_row("SELECT version FROM rooms WHERE room = 'broker'", [], |row| row.get::<_, i64>(0));
    assert_eq!(version, Ok(7));
}
