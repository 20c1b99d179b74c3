//! What no broker carries, so that a message which one accepts is one that every other would.

use rtask_protocol::Properties;

use crate::BrokerError;

/// The longest name of a queue or exchange and the longest routing key, which AMQP sets (bytes).
const MAX_NAME: usize = 255;

/// # Errors
/// For an empty name, which an AMQP server would replace by one of its own, and one that is too long.
pub(crate) fn check_queue_name(queue: &str) -> Result<(), BrokerError> {
    if queue.is_empty() {
        return Err(BrokerError::unsendable("a queue needs a name"));
    }
    check_length("a queue's name", queue)
}

/// # Errors
/// For a text that is too long; an empty one is the default exchange's name, and a routing key like any other.
pub(crate) fn check_length(what: &str, text: &str) -> Result<(), BrokerError> {
    match text.len() {
        0..=MAX_NAME => Ok(()),
        length => Err(BrokerError::unsendable(format!("{what} of {length} bytes is longer than {MAX_NAME}"))),
    }
}

/// Milliseconds to live, none for ever.
///
/// # Errors
/// For a text that is no such number, over which RabbitMQ would close the channel.
pub(crate) fn lifetime(properties: &Properties) -> Result<Option<u32>, BrokerError> {
    let Some(text) = &properties.expiration else {
        return Ok(None);
    };
    match text.parse() {
        Ok(milliseconds) => Ok(Some(milliseconds)),
        Err(_) => Err(BrokerError::unsendable(format!("expiration `{text}` is no number of milliseconds below 2^32"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiration_is_a_number_of_milliseconds() {
        let with = |text: &str| Properties { expiration: Some(text.to_owned()), ..Properties::default() };
        assert_eq!(lifetime(&Properties::default()).unwrap(), None);
        assert_eq!(lifetime(&with("60000")).unwrap(), Some(60_000));
        for text in ["", "-1", "1.5", "soon", "4294967296"] {
            assert!(lifetime(&with(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn a_queue_name_has_1_to_255_bytes() {
        for (length, carried) in [(0, false), (1, true), (255, true), (256, false)] {
            assert_eq!(check_queue_name(&"q".repeat(length)).is_ok(), carried, "{length}");
        }
    }
}
