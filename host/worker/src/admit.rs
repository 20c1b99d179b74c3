//! Whether a request may run: a pure function of the request, a few facts, and now.

use jiff::Timestamp;
use rtask_protocol::Request;

/// What is to become of a request that could be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Run,
    Hold {
        until: Timestamp,
    },
    /// It is not to run, and that is in order.
    Drop(Reason),
    /// It cannot run, and somebody should look at it.
    Refuse(Refusal),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Expired,
    /// An earlier attempt stored its success and was cut off before the ack.
    AlreadyDone,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("no deployed module has a task of this name")]
    NotRegistered,
    #[error("it was attempted {limit} times without an end")]
    TooManyAttempts { limit: u32 },
}

impl Refusal {
    /// A short word for the dead letter.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::NotRegistered => "not-registered",
            Self::TooManyAttempts { .. } => "delivery-limit",
        }
    }
}

/// What is known of a delivery besides its request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub registered: bool,
    /// 1 for the first.
    pub attempt: u32,
    pub delivery_limit: u32,
    pub succeeded: bool,
}

/// Decide, in Celery's order (`celery/worker/strategy.py`, `task_message_handler`): unknown before expired, expired before held.
pub(crate) fn admit(request: &Request, facts: &Facts, now: Timestamp) -> Admission {
    if !facts.registered {
        return Admission::Refuse(Refusal::NotRegistered);
    }
    if facts.succeeded {
        return Admission::Drop(Reason::AlreadyDone);
    }
    if request.expires.is_some_and(|expires| now > expires) {
        return Admission::Drop(Reason::Expired);
    }
    if facts.attempt > facts.delivery_limit {
        return Admission::Refuse(Refusal::TooManyAttempts { limit: facts.delivery_limit });
    }
    match request.eta {
        Some(eta) if eta > now => Admission::Hold { until: eta },
        _ => Admission::Run,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;
    use rtask_protocol::Call;

    fn now() -> Timestamp {
        "2026-11-24T12:00:00Z".parse().unwrap()
    }

    fn request(eta: Option<i64>, expires: Option<i64>) -> Request {
        let at = |seconds: i64| now() + SignedDuration::from_secs(seconds);
        let call = Call { eta: eta.map(at), expires: expires.map(at), ..Call::new("t") };
        Request::decode(&call.message(now()), 1024).unwrap()
    }

    #[test]
    fn requests_are_admitted_by_what_is_known_of_them() {
        let usual = Facts { registered: true, attempt: 1, delivery_limit: 5, succeeded: false };
        let until = now() + SignedDuration::from_secs(9);
        let too_many = || Admission::Refuse(Refusal::TooManyAttempts { limit: 5 });
        let rows = [
            ("a plain request runs", request(None, None), usual, Admission::Run),
            ("an eta that has passed is no reason to wait", request(Some(-1), None), usual, Admission::Run),
            ("an eta to come is waited for", request(Some(9), None), usual, Admission::Hold { until }),
            ("expired", request(None, Some(-1)), usual, Admission::Drop(Reason::Expired)),
            ("expired before its eta", request(Some(9), Some(-1)), usual, Admission::Drop(Reason::Expired)),
            ("not yet expired", request(None, Some(1)), usual, Admission::Run),
            (
                "unknown, though expired",
                request(None, Some(-1)),
                Facts { registered: false, ..usual },
                Admission::Refuse(Refusal::NotRegistered),
            ),
            ("the last attempt", request(None, None), Facts { attempt: 5, ..usual }, Admission::Run),
            ("one attempt too many", request(None, None), Facts { attempt: 6, ..usual }, too_many()),
            (
                "a success that was not acked",
                request(None, None),
                Facts { attempt: 2, succeeded: true, ..usual },
                Admission::Drop(Reason::AlreadyDone),
            ),
        ];
        for (name, request, facts, expected) in rows {
            assert_eq!(admit(&request, &facts, now()), expected, "{name}");
        }
    }
}
