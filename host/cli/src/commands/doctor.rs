//! `rtask doctor`: try what rtask needs on this machine, and say what is in force.

use std::{fmt, fs::File, io::Read, path::Path, process::ExitCode};

use clap::Args;
use rtask_broker::{Patience, connect_backend, connect_broker, connect_ledger, error::without_password};
use rtask_sandbox::{
    Sandbox, privileges,
    self_test::{self, SelfTest},
};
use serde::Serialize;

use super::{embedded_path, sandbox_options, unprivileged};
use crate::{
    failure::{Code, Failure},
    output::Output,
    progress::{Step, seconds},
    settings::Settings,
    visible,
};

/// Test this machine and the servers, and say what keeps tasks locked in
///
/// Exits with 1 if something that rtask needs does not work, and with 3 if that is a server which cannot be reached.
#[derive(Debug, Args)]
pub struct Doctor {}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// It works, with less than there could be.
    Warn,
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    subject: &'static str,
    verdict: Verdict,
    detail: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
    /// What the command exits with for it.
    #[serde(skip)]
    code: Code,
}

pub async fn run(settings: Settings, output: Output) -> Result<ExitCode, Failure> {
    let step = Step::begin(output, "Examining");
    let mut findings = vec![kernel(), user(&settings)];
    step.says("the sandbox");
    findings.extend(sandbox(&settings).await);
    step.says("the servers");
    findings.extend(tls(&settings));
    findings.extend(servers(&settings).await);
    drop(step);

    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    output.answer(lines.join("\n"), &findings)?;
    Ok(exit_code(&findings))
}

/// A server that cannot be reached is what to look at first.
fn exit_code(findings: &[Finding]) -> ExitCode {
    let mut failed = findings.iter().filter(|finding| finding.verdict == Verdict::Fail).map(|finding| finding.code);
    match failed.clone().find(|code| *code == Code::Unreachable).or_else(|| failed.next()) {
        Some(Code::Unreachable) => Code::Unreachable.into(),
        Some(Code::Failed | Code::Usage) => Code::Failed.into(),
        None => ExitCode::SUCCESS,
    }
}

fn kernel() -> Finding {
    match nix::sys::utsname::uname() {
        Ok(name) => Finding::ok(
            "kernel",
            format!("{} {} on {}", name.sysname().display(), name.release().display(), name.machine().display()),
        ),
        Err(error) => Finding::warn("kernel", format!("it does not say what it is: {error}"), "look at `uname -a`"),
    }
}

fn user(settings: &Settings) -> Finding {
    let [real, effective, saved] = privileges::standing().uids;
    match unprivileged(settings) {
        Ok(None) => Finding::ok("user", format!("uid {real} (effective {effective}, saved {saved}), not root")),
        Ok(Some(account)) => Finding::ok(
            "user",
            format!("root; a worker and whatever runs guests becomes `{}` (uid {})", account.name, account.uid),
        ),
        Err(failure) => Finding::failed("user", failure),
    }
}

/// Compile and run a component that is made on the spot.
async fn sandbox(settings: &Settings) -> Vec<Finding> {
    match try_sandbox(settings).await {
        Ok(test) => vec![guests(&test), isolation(&test), limits(&test), memory(&test)],
        Err(failure) => vec![Finding::failed("guests", failure)],
    }
}

async fn try_sandbox(settings: &Settings) -> Result<SelfTest, Failure> {
    let sandbox = Sandbox::new(sandbox_options(settings, 1)?)?;
    self_test::run(&sandbox).await.map_err(Failure::new)
}

fn guests(test: &SelfTest) -> Finding {
    let detail = format!(
        "a component was compiled in {} by a process of its own, and ran in {} in another",
        seconds(test.compile),
        seconds(test.echo)
    );
    Finding::ok("guests", detail)
}

fn isolation(test: &SelfTest) -> Finding {
    let uids: Vec<String> = test.runner_uids.iter().map(u32::to_string).collect();
    let no_new_privs = if test.runner_no_new_privs { "set" } else { "NOT set" };
    let detail = format!("a runner has uids {}, no_new_privs is {no_new_privs}", uids.join(" "));
    if test.runner_uids.is_empty() || test.runner_uids.contains(&0) || !test.runner_no_new_privs {
        return Finding::fail("isolation", detail, "do not run tasks on this machine; please report this as a bug");
    }
    Finding::ok("isolation", detail)
}

fn limits(test: &SelfTest) -> Finding {
    Finding::ok("time limits", format!("an endless loop was ended {} after its limit", seconds(test.overshoot)))
}

fn memory(test: &SelfTest) -> Finding {
    if test.pagemap_scan {
        Finding::ok("pagemap scan", "the kernel clears only the memory that a run has touched")
    } else {
        let detail =
            "this kernel cannot clear touched memory alone, so each run starts from fresh mappings, which costs more";
        Finding::warn("pagemap scan", detail, "use Linux 6.7 or newer")
    }
}

/// Whether the files that are named can be read and hold what they should; that a server takes them is seen when it
/// is reached.
fn tls(settings: &Settings) -> Vec<Finding> {
    let named = [settings.broker_use_ssl.files(), settings.redis_backend_use_ssl.files()];
    let mut files: Vec<_> = named.into_iter().flatten().collect();
    files.sort_unstable();
    files.dedup();
    let problem = |file: &Path| Some(format!("{}: {}", file.display(), pem_problem(file)?));
    let problems: Vec<String> = files.iter().filter_map(|file| problem(file)).collect();
    match (files.len(), problems.is_empty()) {
        (0, _) => vec![],
        (count, true) => vec![Finding::ok("TLS files", format!("{count} can be read"))],
        (_, false) => {
            let advice = "name PEM files that the user of rtask may read, in broker_use_ssl and redis_backend_use_ssl";
            vec![Finding::fail("TLS files", problems.join("; "), advice)]
        }
    }
}

/// What every PEM file holds (RFC 7468).
const PEM: &str = "-----BEGIN ";
/// It stands near the start, after comments (bytes).
const LOOKED_AT: u64 = 64 << 10;

fn pem_problem(file: &Path) -> Option<String> {
    let mut start = Vec::new();
    match File::open(file).and_then(|file| file.take(LOOKED_AT).read_to_end(&mut start)) {
        Err(error) => Some(error.to_string()),
        Ok(_) if String::from_utf8_lossy(&start).contains(PEM) => None,
        Ok(_) => Some("it is no PEM file".to_owned()),
    }
}

async fn servers(settings: &Settings) -> Vec<Finding> {
    let mut findings = vec![broker(settings).await, backend(settings).await];
    // Nothing new where both are the same server.
    if settings.ledger().ok() != settings.backend().ok() {
        findings.push(ledger(settings).await);
    }
    findings.push(registry(settings).await);
    findings
}

async fn broker(settings: &Settings) -> Finding {
    reach("broker", settings.broker(), async |url| {
        let broker = connect_broker(url, settings.broker_transport(Patience::FailFast)?).await?;
        let mut told = Vec::new();
        for queue in settings.queues(None, None)? {
            let shown = visible::line(&queue.name);
            told.push(match broker.inspect(&queue.name).await? {
                Some(stats) => format!("{} messages wait in queue `{shown}`", stats.messages),
                None => format!("queue `{shown}` is not there yet"),
            });
        }
        broker.close().await;
        Ok(told.join(", "))
    })
    .await
}

/// What results are asked for to see whether somebody answers.
const NOBODYS_TASK: &str = "rtask-doctor";

async fn backend(settings: &Settings) -> Finding {
    let url = match settings.backend() {
        Ok(url) => url,
        Err(error) => return Finding::failed("result backend", error),
    };
    if settings.results_travel() {
        return Finding::ok("result backend", "results travel over the broker, to whoever sent the task");
    }
    reach("result backend", url, async |url| {
        let transport = settings.backend_transport(Patience::FailFast)?;
        let backend = connect_backend(url, settings.retention(), transport).await?;
        backend.get(NOBODYS_TASK).await?;
        Ok("it answers".to_owned())
    })
    .await
}

async fn ledger(settings: &Settings) -> Finding {
    let url = match settings.ledger() {
        Ok(url) => url,
        Err(error) => return Finding::failed("ledger", error),
    };
    reach("ledger", url, async |url| {
        let ledger = connect_ledger(url, settings.backend_transport(Patience::FailFast)?).await?;
        ledger.is_revoked(NOBODYS_TASK).await?;
        Ok("it answers".to_owned())
    })
    .await
}

async fn registry(settings: &Settings) -> Finding {
    let url = match settings.registry() {
        Ok(url) => url,
        Err(error) => return Finding::failed("registry", error),
    };
    reach("registry", url, async |_| {
        let registry = super::connect_registry(settings).await?;
        let modules = registry.modules(rtask_registry::DEFAULT_TENANT).await?;
        let workers = registry.workers().await?;
        let names: Vec<String> = workers.iter().map(|worker| visible::line(&worker.name)).collect();
        let alive = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        Ok(format!("{} modules; workers alive: {alive}", modules.len()))
    })
    .await
}

async fn reach(
    subject: &'static str,
    url: &str,
    attempt: impl AsyncFnOnce(&str) -> Result<String, Failure>,
) -> Finding {
    let shown = without_password(url);
    // To look must not make the file, least of all as root.
    if embedded_path(url).is_some_and(|path| !path.exists()) {
        return Finding::ok(subject, format!("{shown} is not there yet; it is made when it is first used"));
    }
    match attempt(url).await {
        Ok(detail) => Finding::ok(subject, format!("{shown}: {detail}")),
        Err(failure) => Finding::failed(subject, failure),
    }
}

impl Finding {
    fn ok(subject: &'static str, detail: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Ok, detail: detail.into(), advice: None, code: Code::Failed }
    }

    fn warn(subject: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warn, advice: Some(advice.into()), ..Self::ok(subject, detail) }
    }

    fn fail(subject: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, ..Self::warn(subject, detail, advice) }
    }

    fn failed(subject: &'static str, failure: impl Into<Failure>) -> Self {
        let failure: Failure = failure.into();
        let code = failure.code();
        let (detail, advice) = failure.into_parts();
        Self { verdict: Verdict::Fail, advice, code, ..Self::ok(subject, detail) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        write!(f, "{verdict:4}  {:14}  {}", self.subject, visible::line(&self.detail))?;
        match &self.advice {
            Some(advice) => write!(f, "\n      {:14}  -> {advice}", ""),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rtask_broker::BrokerError;

    use super::*;

    fn test() -> SelfTest {
        SelfTest {
            compile: Duration::from_millis(20),
            echo: Duration::from_micros(300),
            overshoot: Duration::from_millis(4),
            pagemap_scan: true,
            runner_uids: vec![65_534; 4],
            runner_no_new_privs: true,
        }
    }

    #[test]
    fn a_runner_that_is_root_or_may_become_it_is_a_failure() {
        assert_eq!(isolation(&test()).verdict, Verdict::Ok);
        let bad = [
            SelfTest { runner_uids: vec![65_534, 65_534, 0, 65_534], ..test() },
            SelfTest { runner_uids: vec![], ..test() },
            SelfTest { runner_no_new_privs: false, ..test() },
        ];
        for test in bad {
            assert_eq!(isolation(&test).verdict, Verdict::Fail, "{test:?}");
        }
        let slow = SelfTest { pagemap_scan: false, ..test() };
        assert_eq!((memory(&slow).verdict, memory(&test()).verdict), (Verdict::Warn, Verdict::Ok));
    }

    #[test]
    fn a_server_that_cannot_be_reached_has_an_exit_code_of_its_own() {
        let down = || BrokerError::Unreachable { url: "amqp://h".to_owned(), reason: "refused".to_owned() };
        let fine = || Finding::ok("kernel", "Linux");
        let wrong = || Finding::fail("isolation", "none", "do not");
        let rows = [
            (vec![fine()], ExitCode::SUCCESS),
            (vec![fine(), wrong()], Code::Failed.into()),
            (vec![Finding::failed("user", Failure::usage("nobody")), fine()], Code::Failed.into()),
            (vec![wrong(), fine(), Finding::failed("broker", down())], Code::Unreachable.into()),
        ];
        for (findings, expected) in rows {
            assert_eq!(exit_code(&findings), expected, "{findings:?}");
        }
    }

    #[test]
    fn a_file_without_a_certificate_is_told_from_one_that_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        assert!(pem_problem(&file).unwrap().contains("No such file"));
        std::fs::write(&file, "certificate").unwrap();
        assert!(pem_problem(&file).unwrap().contains("no PEM file"));
        std::fs::write(&file, "# ours\n-----BEGIN CERTIFICATE-----\n").unwrap();
        assert_eq!(pem_problem(&file), None);
    }

    #[test]
    fn advice_stands_under_its_finding() {
        let shown = Finding::fail("broker", "down", "start it").to_string();
        assert_eq!(shown, "FAIL  broker          down\n                      -> start it");
    }
}
