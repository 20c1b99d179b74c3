//! What is particular to Redis.

use ::redis::{AsyncCommands, Client, IntoConnectionInfo};
use rtask_registry::{Digest, RegistryError, connect};
use tokio::{io::AsyncWriteExt, net::TcpListener};

use crate::{
    lab::{Lab, redis_url, soon},
    proxy::Proxy,
};

pub async fn replace_component(url: &str, digest: &Digest, component: Option<&[u8]>) {
    let mut redis = Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
    let key = format!("rtask:registry:component:{digest}");
    let replaced: bool = redis.exists(&key).await.unwrap();
    assert!(replaced, "{key} is where it is kept");
    match component {
        Some(component) => redis.set(&key, component).await.unwrap(),
        None => redis.del(&key).await.unwrap(),
    }
}

/// The test's Redis with another user, password and database.
fn with(user: &str, database: &str) -> String {
    let address = redis_url().into_connection_info().unwrap().addr().to_string();
    format!("redis://{user}{address}/{database}")
}

#[tokio::test]
async fn a_wrong_password_is_refused_without_repeating_it() {
    let error = connect(&with("nobody:secret@", "0")).await.err().unwrap();
    assert!(matches!(error, RegistryError::Refused { .. }) && error.is_permanent(), "{error:?}");
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[tokio::test]
async fn a_database_that_does_not_exist_is_refused() {
    let error = connect(&with("", "123456")).await.err().unwrap();
    assert!(matches!(error, RegistryError::Refused { .. }) && error.is_permanent(), "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_not_there_cannot_be_reached() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = soon(connect(&url)).await.err().unwrap();
    assert!(matches!(error, RegistryError::Unreachable { .. }) && !error.is_permanent(), "{error:?}");
    assert!(error.to_string().contains(&url), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let error = connect(&url).await.err().unwrap();
    assert!(matches!(error, RegistryError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_that_does_not_speak_tls_is_not_spoken_to() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("rediss://{}", listener.local_addr().unwrap());
    let plain = tokio::spawn(async move {
        let (mut caller, _) = listener.accept().await.unwrap();
        caller.write_all(b"-ERR what do you mean\r\n").await.unwrap();
    });
    let error = soon(connect(&url)).await.err().unwrap();
    assert!(matches!(error, RegistryError::Unreachable { .. }), "{error:?}");
    plain.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_was_cut_is_taken_up_again() {
    let lab = Lab::redis().await;
    let proxy = Proxy::to(redis_url().into_connection_info().unwrap().addr().to_string()).await;
    let url = redis_url().into_connection_info().unwrap();
    let far = connect(&format!("redis://127.0.0.1:{}/{}", proxy.port(), url.redis_settings().db())).await.unwrap();
    let mut changes = far.changes();
    for component in ["one", "two", "three"] {
        let version = lab.deploy("hello", &["a"], component).await.unwrap();
        assert!(soon(far.current(&lab.tenant)).await.unwrap() == [version.clone()]);
        assert!(proxy.cut() > 0, "it had a connection");
        changes.mark_unchanged();
        assert!(soon(far.current(&lab.tenant)).await.unwrap() == [version.clone()]);
        soon(far.component(&version.digest)).await.unwrap();
        // What is deployed while the subscription is down, or just was, is noticed too.
        lab.deploy("hello", &["a"], &format!("{component} again")).await.unwrap();
        soon(changes.changed()).await.unwrap();
    }
}
