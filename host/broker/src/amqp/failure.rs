//! What an AMQP server's errors mean to us (AMQP 0-9-1, section 1.8 of the reference, and RabbitMQ's use of it).

use lapin::{Error, ErrorKind};

use crate::{BrokerError, Refusal};

const NO_ROUTE: u16 = 312;
const CONNECTION_FORCED: u16 = 320;
const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const RESOURCE_LOCKED: u16 = 405;
const PRECONDITION_FAILED: u16 = 406;
const NOT_ALLOWED: u16 = 530;

pub(super) fn is_not_found(error: &Error) -> bool {
    code(error) == Some(NOT_FOUND)
}

pub(super) fn is_precondition_failed(error: &Error) -> bool {
    code(error) == Some(PRECONDITION_FAILED)
}

/// Another connection has it for itself.
pub(super) fn is_locked(error: &Error) -> bool {
    code(error) == Some(RESOURCE_LOCKED)
}

/// The server will not have it so, now or later: it is no loss of the connection and no want of permission.
pub(super) fn is_dislike(error: &Error) -> bool {
    !matches!(code(error), None | Some(CONNECTION_FORCED | ACCESS_REFUSED))
}

/// Why a connection did not come about. RabbitMQ answers a wrong password with 403; an unknown virtual host and
/// one that the user may not enter both with 530, told apart by the text alone.
pub(super) fn connecting(url: &str, error: &Error) -> BrokerError {
    let (url, reason) = (url.to_owned(), error.to_string());
    match code(error) {
        Some(ACCESS_REFUSED) => BrokerError::Refused { url, refusal: Refusal::Credentials, reason },
        Some(NOT_ALLOWED) if reason.contains("not found") => {
            BrokerError::Refused { url, refusal: Refusal::VirtualHost, reason }
        }
        Some(NOT_ALLOWED) => BrokerError::Refused { url, refusal: Refusal::Permission, reason },
        _ => BrokerError::Unreachable { url, reason },
    }
}

/// Why something failed on a connection that stood.
pub(super) fn operating(url: &str, error: &Error) -> BrokerError {
    let (url, reason) = (url.to_owned(), error.to_string());
    match code(error) {
        Some(ACCESS_REFUSED) => BrokerError::Refused { url, refusal: Refusal::Permission, reason },
        Some(NO_ROUTE | NOT_FOUND | PRECONDITION_FAILED) => BrokerError::Failed { url, reason },
        Some(CONNECTION_FORCED) | None => BrokerError::Lost { url, reason },
        Some(_) => BrokerError::Failed { url, reason },
    }
}

/// Why a publication failed. What the server will not have for what it is, such as a body beyond its `max_message_size`,
/// it would refuse each time.
pub(super) fn publishing(url: &str, error: &Error) -> BrokerError {
    match is_precondition_failed(error) {
        true => BrokerError::unsendable(error.to_string()),
        false => operating(url, error),
    }
}

/// The reply code of an error that the server sent.
fn code(error: &Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::{AMQPError, AMQPSoftError};

    use super::*;

    #[test]
    fn a_message_that_is_refused_for_what_it_is_is_not_sent_again() {
        let refused = |kind: AMQPSoftError| {
            let told = AMQPError::new(kind.into(), "message size 9 is larger than configured max size 8".into());
            publishing("amqp://h", &ErrorKind::ProtocolError(told).into())
        };
        assert!(matches!(refused(AMQPSoftError::PRECONDITIONFAILED), BrokerError::Unsendable { .. }));
        assert!(!refused(AMQPSoftError::NOTFOUND).is_permanent());
    }
}
