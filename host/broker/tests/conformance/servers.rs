//! Where the tests find their servers, and how they wait.

use std::{process::Command, time::Duration};

use rtask_broker::{
    BrokerError, Patience, Publication, Queue, Retention, SharedBackend, SharedBroker, Subscription, Transport,
    connect_backend, connect_broker,
};
use rtask_protocol::{Message, Properties};
use serde_json::Value;
use tempfile::TempDir;

/// Generous: reached only by a test that fails.
pub const SOON: Duration = Duration::from_secs(30);

/// Make a test of each fact for each broker, but for those that do not hold for a quorum queue or on Redis.
macro_rules! broker_facts {
    ($($fact:ident),* $(,)?
     $(; except quorum and redis: $($unfair:ident),*)?
     $(; except redis: $($unlike:ident),*)?) => {
        crate::servers::broker_facts!(@ sqlite: $($fact,)* $($($unfair,)*)? $($($unlike,)*)?);
        crate::servers::broker_facts!(@ rabbitmq: $($fact,)* $($($unfair,)*)? $($($unlike,)*)?);
        crate::servers::broker_facts!(@ rabbitmq_quorum: $($fact,)* $($($unlike,)*)?);
        crate::servers::broker_facts!(@ redis: $($fact,)*);
    };
    (@ $lab:ident: $($fact:ident,)*) => {
        mod $lab {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $fact() {
                super::$fact(crate::servers::BrokerLab::$lab().await).await
            })*
        }
    };
}
pub(crate) use broker_facts;

/// Two handles on one broker, and a queue that no other test uses.
pub struct BrokerLab {
    pub broker: SharedBroker,
    pub other: SharedBroker,
    pub queue: String,
    _folder: Option<TempDir>,
}

impl BrokerLab {
    pub async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("rtask.db").display());
        Self::new(&url, Patience::FailFast, Some(folder)).await
    }

    /// With a prefix of its own, since its tests share the database.
    pub async fn redis() -> Self {
        let key_prefix = format!("{}/", unique("prefix"));
        Self::new(&redis_url(), Transport { key_prefix, ..Patience::FailFast.into() }, None).await
    }

    pub async fn rabbitmq() -> Self {
        Self::new(&amqp_url(), Patience::FailFast, None).await
    }

    /// Whoever uses the queue finds it as a quorum queue.
    pub async fn rabbitmq_quorum() -> Self {
        let lab = Self::rabbitmq().await;
        lab.declare(with_argument(&lab.queue, "x-queue-type", "quorum")).await;
        lab
    }

    async fn new(url: &str, transport: impl Into<Transport>, folder: Option<TempDir>) -> Self {
        let transport = transport.into();
        let broker = connect_broker(url, transport.clone()).await.unwrap();
        let other = connect_broker(url, transport).await.unwrap();
        Self { broker, other, queue: unique("queue"), _folder: folder }
    }

    /// As a consumer declares it.
    pub async fn declare(&self, queue: Queue) {
        let subscription = Subscription { queues: vec![queue], prefetch: 1, tag: unique("consumer") };
        soon(self.broker.consume(subscription).await.unwrap().cancel()).await;
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

/// Administer the RabbitMQ.
pub fn rabbitmqctl(arguments: &[&str]) {
    let done = Command::new(server("RTASK_TEST_RABBITMQCTL")).arg("--quiet").args(arguments).status();
    assert!(done.unwrap().success(), "rabbitmqctl {arguments:?}");
}

pub fn unique(what: &str) -> String {
    format!("rtask-test-{what}-{}", uuid::Uuid::new_v4())
}

pub fn publication(queue: &str, body: &str) -> Publication {
    let message =
        Message { properties: Properties::persistent_json(), body: body.to_owned().into(), ..Message::default() };
    Publication::to_queue(queue, message)
}

/// A queue that is declared with an argument, and else as Celery declares it.
pub fn with_argument(queue: &str, argument: &str, value: impl Into<Value>) -> Queue {
    let mut queue = Queue::named(queue);
    queue.arguments.insert(argument.to_owned(), value.into());
    queue
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
