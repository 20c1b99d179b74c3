//! Why a command did not do what it was asked: what failed, why, and what to try next.

use std::{error::Error, fmt::Display, process::ExitCode};

use rtask_broker::{BrokerError, Refusal};
use rtask_registry::RegistryError;
use serde_json::json;

use crate::{
    output::{self, Output},
    settings::SettingsError,
    visible,
};

/// What a command's exit says to scripts; done is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Failed = 1,
    Usage = 2,
    Unreachable = 3,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// An error on its way to a person. Every error of ours becomes one by `?`.
#[derive(Debug)]
pub struct Failure {
    code: Code,
    message: String,
    /// From the outermost inwards.
    causes: Vec<String>,
    hint: Option<String>,
}

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Self { code: Code::Failed, message: message.into(), causes: Vec::new(), hint: None }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: Code::Usage, ..Self::new(message) }
    }

    /// What to try next.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// What was attempted when this happened.
    fn context(mut self, attempted: String) -> Self {
        self.causes.insert(0, std::mem::replace(&mut self.message, attempted));
        self
    }

    pub fn code(&self) -> Code {
        self.code
    }

    /// All of it in one line, and the hint.
    pub fn into_parts(self) -> (String, Option<String>) {
        let told: Vec<String> = std::iter::once(self.message).chain(self.causes).collect();
        (told.join(": "), self.hint)
    }

    /// Tell it on standard error, and answer the exit code.
    pub fn report(self, output: Output) -> ExitCode {
        if output.is_json() {
            let Self { code, message, causes, hint } = &self;
            output::complain(json!({ "error": message, "causes": causes, "hint": hint, "code": *code as u8 }));
        } else {
            // A compiler's complaint can quote the component that it is about.
            output::complain(format_args!("error: {}", visible::lines(&self.message)));
            self.causes
                .iter()
                .for_each(|cause| output::complain(format_args!("  caused by: {}", visible::lines(cause))));
            self.hint.iter().for_each(|hint| output::complain(format_args!("hint: {hint}")));
        }
        self.code.into()
    }
}

impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let chain = || chain(&error);
        let (code, hint) = chain().find_map(judge).unwrap_or((Code::Failed, None));
        let mut failure = Self { code, hint, ..Self::new(error.to_string()) };
        for cause in chain().skip(1).map(ToString::to_string) {
            // Many errors say what their source says; once is enough.
            if !failure.causes.last().unwrap_or(&failure.message).contains(&cause) {
                failure.causes.push(cause);
            }
        }
        failure
    }
}

/// An error and its sources, from the outermost inwards.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

/// Adds what was attempted to an error.
pub trait Attempt<T> {
    /// `attempted` begins with "failed to".
    fn attempt(self, attempted: impl Display) -> Result<T, Failure>;
}

impl<T, E: Into<Failure>> Attempt<T> for Result<T, E> {
    fn attempt(self, attempted: impl Display) -> Result<T, Failure> {
        self.map_err(|error| error.into().context(attempted.to_string()))
    }
}

/// The exit code and the hint for an error of ours; none for others.
fn judge(error: &(dyn Error + 'static)) -> Option<(Code, Option<String>)> {
    if let Some(error) = error.downcast_ref::<BrokerError>() {
        return Some((broker_code(error), broker_hint(error)));
    }
    if let Some(error) = error.downcast_ref::<RegistryError>() {
        return Some((registry_code(error), registry_hint(error)));
    }
    let error = error.downcast_ref::<SettingsError>()?;
    Some((Code::Usage, error.hint().map(str::to_owned)))
}

fn broker_code(error: &BrokerError) -> Code {
    match error {
        BrokerError::Address { .. } => Code::Usage,
        BrokerError::Unreachable { .. }
        | BrokerError::Refused { .. }
        | BrokerError::Lost { .. }
        | BrokerError::Failed { .. } => Code::Unreachable,
        BrokerError::NotConfirmed { .. }
        | BrokerError::Unsendable { .. }
        | BrokerError::NotOurs { .. }
        | BrokerError::Elsewhere { .. }
        | BrokerError::Closed { .. }
        | BrokerError::Damaged { .. } => Code::Failed,
    }
}

fn broker_hint(error: &BrokerError) -> Option<String> {
    let hint = match error {
        BrokerError::Address { .. } => {
            "name it by flag, by RTASK_BROKER_URL and RTASK_RESULT_BACKEND, or in rtask.toml"
        }
        BrokerError::Unreachable { reason, .. } => unreachable_hint(reason),
        BrokerError::Refused { url, refusal, .. } => match refusal {
            Refusal::Permission if url.starts_with("sqlite:") => EMBEDDED_STORE_IS_OUT_OF_REACH,
            Refusal::Permission => {
                "let the server's user read, write and configure there, or name another one in the URL"
            }
            Refusal::Credentials => "check the credentials in the URL: scheme://USER:PASSWORD@HOST, percent-encoded",
            Refusal::VirtualHost => {
                "create the virtual host (`rabbitmqctl add_vhost NAME`), or name another one after the host in the URL"
            }
            Refusal::Database => "name a database that the server has after the host in the URL",
        },
        BrokerError::Lost { .. } | BrokerError::Failed { .. } => "try again; `rtask doctor` tests all that rtask needs",
        BrokerError::Elsewhere { .. } => {
            "wait for it where it is sent, as `rtask call --wait` does, or keep results in Redis or SQLite"
        }
        BrokerError::NotConfirmed { .. } => {
            "the message may have arrived all the same; send it again with the same --task-id"
        }
        BrokerError::Unsendable { .. }
        | BrokerError::NotOurs { .. }
        | BrokerError::Closed { .. }
        | BrokerError::Damaged { .. } => return None,
    };
    Some(hint.to_owned())
}

/// What a TLS library complains of names certificates.
fn unreachable_hint(reason: &str) -> &'static str {
    if reason.to_ascii_lowercase().contains("certificate") { CERTIFICATES } else { SERVER_IS_DOWN }
}

const CERTIFICATES: &str =
    "say whom to trust and who to be in broker_use_ssl and redis_backend_use_ssl: ca_certs, certfile and keyfile";
const SERVER_IS_DOWN: &str = "start the server, or correct its address by flag, environment or rtask.toml; `rtask doctor` tests all that rtask needs";
const EMBEDDED_STORE_IS_OUT_OF_REACH: &str = "the user that rtask runs as must be able to reach and write the file and its folder; name another with sqlite:PATH";

fn registry_code(error: &RegistryError) -> Code {
    match error {
        RegistryError::Address { .. } => Code::Usage,
        RegistryError::Unreachable { .. } | RegistryError::Refused { .. } | RegistryError::Failed { .. } => {
            Code::Unreachable
        }
        RegistryError::InvalidName { .. }
        | RegistryError::TooLarge { .. }
        | RegistryError::NameTaken { .. }
        | RegistryError::Contended { .. }
        | RegistryError::UnknownDigest(_)
        | RegistryError::Damaged(_)
        | RegistryError::Unreadable { .. } => Code::Failed,
    }
}

/// The others say in their own words what to do.
fn registry_hint(error: &RegistryError) -> Option<String> {
    let hint = match error {
        RegistryError::Address { .. } => "name it with --registry, RTASK_REGISTRY or `registry` in rtask.toml",
        RegistryError::Unreachable { reason, .. } => unreachable_hint(reason),
        RegistryError::Refused { url, .. } if url.starts_with("sqlite:") => EMBEDDED_STORE_IS_OUT_OF_REACH,
        RegistryError::Failed { .. } => "try again; `rtask doctor` tests all that rtask needs",
        RegistryError::Refused { .. }
        | RegistryError::InvalidName { .. }
        | RegistryError::TooLarge { .. }
        | RegistryError::NameTaken { .. }
        | RegistryError::Contended { .. }
        | RegistryError::UnknownDigest(_)
        | RegistryError::Damaged(_)
        | RegistryError::Unreadable { .. } => return None,
    };
    Some(hint.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreachable() -> BrokerError {
        BrokerError::Unreachable { url: "amqp://h".to_owned(), reason: "refused".to_owned() }
    }

    #[test]
    fn the_exit_code_is_that_of_the_cause() {
        let address = BrokerError::Address { url: "x".to_owned(), of: "broker", reason: "no".to_owned() };
        let rows = [
            (Failure::from(unreachable()), Code::Unreachable),
            (Failure::from(address), Code::Usage),
            (Failure::from(RegistryError::Contended { module: "m".to_owned() }), Code::Failed),
            (Failure::from(std::io::Error::other("disk")), Code::Failed),
            (Failure::usage("no"), Code::Usage),
        ];
        for (failure, code) in rows {
            assert_eq!(failure.code, code, "{failure:?}");
        }
    }

    #[test]
    fn what_a_server_thinks_of_certificates_is_told_from_its_absence() {
        let hint = |reason: &str| {
            let error = BrokerError::Unreachable { url: "amqps://h".to_owned(), reason: reason.to_owned() };
            Failure::from(error).hint.unwrap()
        };
        assert!(hint("invalid peer certificate: UnknownIssuer").contains("ca_certs"));
        assert!(hint("received fatal alert: CertificateRequired").contains("certfile"));
        assert!(hint("connection refused").contains("start the server"));
    }

    #[test]
    fn what_was_attempted_stands_before_the_cause() {
        let failed: Result<(), _> = Err(unreachable());
        let failure = failed.attempt("failed to publish").unwrap_err();
        assert_eq!(failure.message, "failed to publish");
        assert_eq!(failure.causes, ["amqp://h cannot be reached: refused"]);
        assert_eq!((failure.code, failure.hint.is_some()), (Code::Unreachable, true));
    }

    #[test]
    fn a_source_that_was_quoted_is_not_told_twice() {
        #[derive(Debug, thiserror::Error)]
        #[error("failed to read: {0}")]
        struct Quoting(#[source] std::io::Error);
        let failure = Failure::from(Quoting(std::io::Error::other("disk")));
        assert_eq!((failure.message.as_str(), failure.causes.len()), ("failed to read: disk", 0));
    }
}
