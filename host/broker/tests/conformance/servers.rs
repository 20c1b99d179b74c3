//! Where the tests find their servers, and how they wait.

use std::time::Duration;

use rtask_broker::{
    BrokerError, Patience, Publication, Retention, SharedBackend, SharedBroker, connect_backend, connect_broker,
};
use rtask_protocol::{Message, Properties};
use tempfile::TempDir;

/// Generous: reached only by a test that fails.
pub const SOON: Duration = Duration::from_secs(30);

/// Two handles on one broker, and a queue that no other test uses.
pub struct BrokerLab {
    pub broker: SharedBroker,
    pub other: SharedBroker,
    pub queue: String,
    /// The AMQP server, where it is one.
    pub server: Option<String>,
    _folder: Option<TempDir>,
}

impl BrokerLab {
    pub async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("rtask.db").display());
        Self::new(&url, None, Some(folder)).await
    }

    pub async fn rabbitmq() -> Self {
        let url = amqp_url();
        Self::new(&url, Some(url.clone()), None).await
    }

    async fn new(url: &str, server: Option<String>, folder: Option<TempDir>) -> Self {
        let broker = connect_broker(url, Patience::FailFast).await.unwrap();
        let other = connect_broker(url, Patience::FailFast).await.unwrap();
        Self { broker, other, queue: unique("queue"), server, _folder: folder }
    }

    pub async fn publish(&self, body: &str) {
        self.broker.publish(publication(&self.queue, body)).await.unwrap();
    }

    pub async fn until_waiting(&self, expected: u64) {
        until(async || self.other.waiting(&self.queue).await.unwrap() == expected).await;
    }
}

/// Two connections to one result backend.
pub struct BackendLab {
    pub backend: SharedBackend,
    pub other: SharedBackend,
    url: String,
    _folder: Option<TempDir>,
}

impl BackendLab {
    pub async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("rtask.db").display());
        Self::new(url, Some(folder)).await
    }

    pub async fn redis() -> Self {
        Self::new(redis_url(), None).await
    }

    async fn new(url: String, folder: Option<TempDir>) -> Self {
        let backend = connect_backend(&url, Retention::default(), Patience::FailFast).await.unwrap();
        let other = connect_backend(&url, Retention::default(), Patience::FailFast).await.unwrap();
        Self { backend, other, url, _folder: folder }
    }

    pub async fn keeping(&self, expires: Option<Duration>) -> SharedBackend {
        connect_backend(&self.url, Retention { expires }, Patience::FailFast).await.unwrap()
    }
}

pub fn amqp_url() -> String {
    server("RTASK_TEST_AMQP_URL")
}

pub fn redis_url() -> String {
    server("RTASK_TEST_REDIS_URL")
}

fn server(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!("this test needs a server and {variable} names none; run `cargo xtask test`, which starts it")
    })
}

pub fn unique(what: &str) -> String {
    format!("rtask-test-{what}-{}", uuid::Uuid::new_v4())
}

pub fn publication(queue: &str, body: &str) -> Publication {
    let message =
        Message { properties: Properties::persistent_json(), body: body.to_owned().into(), ..Message::default() };
    Publication { queue: queue.to_owned(), message }
}

/// What a future that ends soon answers.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("it takes too long")
}

/// Ask until it is so.
pub async fn until(condition: impl AsyncFn() -> bool) {
    soon(async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Ask again while a server is away.
pub async fn persistently<T>(attempt: impl AsyncFn() -> Result<T, BrokerError>) -> T {
    soon(async {
        loop {
            match attempt().await {
                Ok(answer) => return answer,
                Err(error) if error.is_permanent() => panic!("{error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    })
    .await
}
