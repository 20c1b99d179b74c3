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
    #[error("its module cannot be run by this worker: {0}")]
    NotLoaded(String),
    #[error("it was attempted {limit} times without an end")]
    TooManyAttempts { limit: u32 },
    /// To run the task and drop what is to follow would leave somebody waiting for ever.
    #[error("the message asks for a follow-up (`{0}`), which this version of rtask does not send")]
    FollowUp(&'static str),
}

impl Refusal {
    /// A short word for the dead letter.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::NotRegistered => "not-registered",
            Self::NotLoaded(_) => "module-not-loaded",
            Self::TooManyAttempts { .. } => "delivery-limit",
            Self::FollowUp(_) => "follow-up",
        }
    }
}

/// What is known of a delivery besides its request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub registered: bool,
    pub succeeded: bool,
}

/// Decide, in Celery's order (`celery/worker/strategy.py`, `task_message_handler`): unknown before expired, expired
/// before held.
pub(crate) fn admit(request: &Request, facts: &Facts, now: Timestamp) -> Admission {
    if !facts.registered {
        return Admission::Refuse(Refusal::NotRegistered);
    }
    if let Some(follow_up) = request.body.embed.first() {
        return Admission::Refuse(Refusal::FollowUp(follow_up));
    }
    if facts.succeeded {
        return Admission::Drop(Reason::AlreadyDone);
    }
    if request.expires.is_some_and(|expires| now > expires) {
        return Admission::Drop(Reason::Expired);
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
        let usual = Facts { registered: true, succeeded: false };
        let until = now() + SignedDuration::from_secs(9);
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
            (
                "a success that was not acked",
                request(None, None),
                Facts { succeeded: true, ..usual },
                Admission::Drop(Reason::AlreadyDone),
            ),
        ];
        for (name, request, facts, expected) in rows {
            assert_eq!(admit(&request, &facts, now()), expected, "{name}");
        }
    }

    #[test]
    fn a_message_with_a_follow_up_is_refused_rather_than_cut_short() {
        let facts = Facts { registered: true, succeeded: false };
        for (embed, follow_up) in [
            (r#"{"chain": [{"task": "next"}], "callbacks": null}"#, "chain"),
            (r#"{"callbacks": [{"task": "next"}]}"#, "callbacks"),
            (r#"{"errbacks": [{"task": "next"}]}"#, "errbacks"),
            (r#"{"chord": {"task": "next"}}"#, "chord"),
        ] {
            let mut message = Call::new("t").message(now());
            message.body = format!("[[], {{}}, {embed}]").into();
            let request = Request::decode(&message, 1024).unwrap();
            assert_eq!(admit(&request, &facts, now()), Admission::Refuse(Refusal::FollowUp(follow_up)));
        }
        let mut message = Call::new("t").message(now());
        message.body = r#"[[], {}, {"chain": [], "callbacks": [], "errbacks": null}]"#.into();
        assert_eq!(admit(&Request::decode(&message, 1024).unwrap(), &facts, now()), Admission::Run);
    }
}
