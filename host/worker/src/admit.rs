//! Whether a request may run: a pure function of the request, a few facts, and now.

use std::time::Duration;

use jiff::Timestamp;
use rtask_protocol::Request;

/// What is to become of a request that could be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Run,
    /// Wait for it here.
    Hold {
        until: Timestamp,
    },
    /// Give it back to the broker until then.
    Postpone {
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
    Revoked,
    /// An earlier attempt stored its success and was cut off before the ack.
    AlreadyDone,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("no deployed module has a task of this name")]
    NotRegistered,
    #[error("its module cannot be run by this worker: {0}")]
    NotLoaded(String),
    #[error("it was attempted {limit} times without an end")]
    TooManyAttempts { limit: u32 },
    /// To run the task and drop what is to follow would leave somebody waiting for ever.
    #[error("the message asks for a follow-up (`{0}`), which this version of rtask does not send")]
    FollowUp(&'static str),
    #[error("the message asks for a follow-up that cannot be sent: {0}")]
    BadFollowUp(String),
}

impl Refusal {
    /// A short word for the dead letter.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::NotRegistered => "not-registered",
            Self::NotLoaded(_) => "module-not-loaded",
            Self::TooManyAttempts { .. } => "delivery-limit",
            Self::FollowUp(_) | Self::BadFollowUp(_) => "follow-up",
        }
    }
}

/// What is known of a delivery besides its request.
#[derive(Clone, Debug)]
pub(crate) struct Facts<'a> {
    pub registered: bool,
    pub succeeded: bool,
    pub revoked: bool,
    /// Why what is to follow the task cannot be sent.
    pub follow_up_refused: Option<&'a Refusal>,
    /// The longest time to wait for an ETA here.
    pub horizon: Duration,
}

/// Decide, in Celery's order (`celery/worker/strategy.py`, `task_message_handler`): unknown before expired and revoked, and
/// these before held.
pub(crate) fn admit(request: &Request, facts: &Facts<'_>, now: Timestamp) -> Admission {
    if !facts.registered {
        return Admission::Refuse(Refusal::NotRegistered);
    }
    if let Some(refusal) = facts.follow_up_refused {
        return Admission::Refuse(refusal.clone());
    }
    if facts.succeeded {
        return Admission::Drop(Reason::AlreadyDone);
    }
    if request.expires.is_some_and(|expires| now > expires) {
        return Admission::Drop(Reason::Expired);
    }
    if facts.revoked {
        return Admission::Drop(Reason::Revoked);
    }
    match request.eta {
        Some(eta) if eta.duration_since(now).unsigned_abs() > facts.horizon && eta > now => {
            Admission::Postpone { until: eta }
        }
        Some(eta) if eta > now => Admission::Hold { until: eta },
        Some(_) | None => Admission::Run,
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

    const USUAL: Facts<'_> = Facts {
        registered: true,
        succeeded: false,
        revoked: false,
        follow_up_refused: None,
        horizon: Duration::from_secs(5),
    };

    #[test]
    fn requests_are_admitted_by_what_is_known_of_them() {
        let at = |seconds| now() + SignedDuration::from_secs(seconds);
        let bad = Refusal::FollowUp("chain");
        let rows = [
            ("a plain request runs", request(None, None), USUAL, Admission::Run),
            ("an eta that has passed is no reason to wait", request(Some(-1), None), USUAL, Admission::Run),
            ("one long ago neither", request(Some(-9), None), USUAL, Admission::Run),
            ("an eta close by is waited for", request(Some(5), None), USUAL, Admission::Hold { until: at(5) }),
            ("one further ahead is not", request(Some(6), None), USUAL, Admission::Postpone { until: at(6) }),
            ("expired", request(None, Some(-1)), USUAL, Admission::Drop(Reason::Expired)),
            ("expired before its eta", request(Some(9), Some(-1)), USUAL, Admission::Drop(Reason::Expired)),
            ("not yet expired", request(None, Some(1)), USUAL, Admission::Run),
            (
                "revoked before its eta",
                request(Some(9), None),
                Facts { revoked: true, ..USUAL },
                Admission::Drop(Reason::Revoked),
            ),
            (
                "unknown, though expired",
                request(None, Some(-1)),
                Facts { registered: false, ..USUAL },
                Admission::Refuse(Refusal::NotRegistered),
            ),
            (
                "a success that was not acked",
                request(None, None),
                Facts { succeeded: true, ..USUAL },
                Admission::Drop(Reason::AlreadyDone),
            ),
            (
                "what cannot be followed up is refused rather than cut short",
                request(None, None),
                Facts { follow_up_refused: Some(&bad), ..USUAL },
                Admission::Refuse(bad.clone()),
            ),
        ];
        for (name, request, facts, expected) in rows {
            assert_eq!(admit(&request, &facts, now()), expected, "{name}");
        }
    }
}
