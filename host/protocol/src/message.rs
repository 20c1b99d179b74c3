//! What a broker carries: headers, properties and an opaque body.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Application headers; an AMQP field table and a kombu envelope's `headers` both become this.
pub type Headers = Map<String, Value>;

/// The content type of what is neither signed nor made with another serialiser.
pub const JSON: &str = "application/json";

/// One message as it travels, whatever the broker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    pub headers: Headers,
    pub properties: Properties,
    pub body: Bytes,
}

/// The AMQP 0-9-1 basic properties (section 4.2.6 of the protocol, without the ones that nobody in a Celery
/// fleet reads).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Properties {
    pub content_type: Option<String>,
    pub content_encoding: Option<String>,
    /// 2 is persistent, 1 is transient.
    pub delivery_mode: Option<u8>,
    pub priority: Option<u8>,
    pub correlation_id: Option<String>,
    pub reply_to: Option<String>,
    /// Milliseconds to live, as a decimal string.
    pub expiration: Option<String>,
    pub message_id: Option<String>,
    /// Seconds since 1970.
    pub timestamp: Option<u64>,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub app_id: Option<String>,
}

impl Properties {
    /// What Celery's client sets on a task: persistent UTF-8 JSON.
    pub fn persistent_json() -> Self {
        Self {
            content_type: Some(JSON.to_owned()),
            content_encoding: Some("utf-8".to_owned()),
            delivery_mode: Some(2),
            ..Self::default()
        }
    }
}
