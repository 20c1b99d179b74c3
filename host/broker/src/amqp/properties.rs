//! Basic properties, both ways (AMQP 0-9-1, section 4.2.6).

use lapin::{BasicProperties, types::ShortString};
use rtask_protocol::{Headers, Properties};

use super::table;
use crate::BrokerError;

/// # Errors
/// When something is longer than AMQP can carry.
pub(super) fn to_amqp(headers: &Headers, properties: &Properties) -> Result<BasicProperties, BrokerError> {
    let mut amqp = BasicProperties::default().with_headers(table::to_amqp(headers)?);
    type Setter = fn(BasicProperties, ShortString) -> BasicProperties;
    let texts: [(&Option<String>, Setter); 8] = [
        (&properties.content_type, BasicProperties::with_content_type),
        (&properties.content_encoding, BasicProperties::with_content_encoding),
        (&properties.correlation_id, BasicProperties::with_correlation_id),
        (&properties.reply_to, BasicProperties::with_reply_to),
        (&properties.expiration, BasicProperties::with_expiration),
        (&properties.message_id, BasicProperties::with_message_id),
        (&properties.kind, BasicProperties::with_type),
        (&properties.app_id, BasicProperties::with_app_id),
    ];
    for (text, set) in texts {
        if let Some(text) = text {
            let text = ShortString::try_new(text.as_str())
                .map_err(|error| BrokerError::unsendable(format!("a property is too long: {error}")))?;
            amqp = set(amqp, text);
        }
    }
    if let Some(mode) = properties.delivery_mode {
        amqp = amqp.with_delivery_mode(mode);
    }
    if let Some(priority) = properties.priority {
        amqp = amqp.with_priority(priority);
    }
    if let Some(timestamp) = properties.timestamp {
        amqp = amqp.with_timestamp(timestamp);
    }
    Ok(amqp)
}

pub(super) fn from_amqp(amqp: &BasicProperties) -> (Headers, Properties) {
    let text = |text: &Option<ShortString>| text.as_ref().map(|text| text.as_str().to_owned());
    let properties = Properties {
        content_type: text(amqp.content_type()),
        content_encoding: text(amqp.content_encoding()),
        delivery_mode: *amqp.delivery_mode(),
        priority: *amqp.priority(),
        correlation_id: text(amqp.correlation_id()),
        reply_to: text(amqp.reply_to()),
        expiration: text(amqp.expiration()),
        message_id: text(amqp.message_id()),
        timestamp: *amqp.timestamp(),
        kind: text(amqp.kind()),
        app_id: text(amqp.app_id()),
    };
    (amqp.headers().as_ref().map(table::from_amqp).unwrap_or_default(), properties)
}
