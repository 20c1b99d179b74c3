//! `rtask call`: publish one message, as Celery's client would.

mod link;

use std::{collections::BTreeMap, process::ExitCode, str::FromStr, time::Duration};

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use rtask_broker::{Broker, Patience, Publication, Queue, Route, SharedBackend, SharedBroker, Target};
use rtask_broker::{connect_backend_over, connect_broker};
use rtask_protocol::{
    Call as TaskCall, Compression, ContentName, Headers, Serializer, TimeLimit,
    call::Argument,
    call::Signing,
    request::{MAX_ID, MAX_NAME},
    time,
};
use serde_json::{Map, Value, json};

use super::{
    key_value,
    result::{self, Wait},
    text_within,
};
use crate::{
    failure::{Attempt, Failure},
    output::Output,
    settings::{ExchangeType, Seconds, Settings, SettingsError, Text},
    visible,
};
use link::Link;

/// Send a task to a queue, and print its id or, with --wait, its result
#[derive(Debug, Args)]
#[command(after_help = "Example: rtask call hello.add --args '[2, 2]' --wait")]
pub struct Call {
    /// The task, such as hello.add
    #[arg(value_parser = name)]
    name: String,
    /// Arguments by position: a JSON array
    #[arg(short, long, value_name = "JSON", value_parser = array, default_value = "[]", allow_hyphen_values = true)]
    args: Array,
    /// Arguments by name: a JSON object
    #[arg(short, long, value_name = "JSON", value_parser = object, default_value = "{}")]
    kwargs: Object,
    /// Run no earlier than so many seconds from now
    #[arg(long, allow_negative_numbers = true, value_name = "SECONDS", conflicts_with = "eta", help_heading = "When")]
    countdown: Option<Seconds>,
    /// Run no earlier than this: ISO 8601, in UTC if it has no offset
    #[arg(long, value_name = "TIME", value_parser = time::parse, help_heading = "When")]
    eta: Option<Timestamp>,
    /// Do not run later than this: ISO 8601, or seconds from now
    #[arg(long, allow_negative_numbers = true, value_name = "TIME|SECONDS", help_heading = "When")]
    expires: Option<Expiry>,
    /// End the run as failed after so many seconds
    #[arg(long, allow_negative_numbers = true, value_name = "SECONDS", value_parser = limit, help_heading = "When")]
    time_limit: Option<Seconds>,
    /// Tell the run to come to an end after so many seconds
    #[arg(long, allow_negative_numbers = true, value_name = "SECONDS", value_parser = limit, help_heading = "When")]
    soft_time_limit: Option<Seconds>,
    /// The queue; without it, what task_routes says, or task_default_queue
    #[arg(long, value_parser = name, help_heading = "Where")]
    queue: Option<String>,
    /// The exchange, in place of a queue
    #[arg(long, value_parser = name, conflicts_with = "queue", help_heading = "Where")]
    exchange: Option<String>,
    /// Of the exchange, if it does not exist yet and task_queues does not tell
    #[arg(long, value_name = "TYPE", requires = "exchange", help_heading = "Where")]
    exchange_type: Option<ExchangeType>,
    /// What the exchange finds queues by
    #[arg(long, value_name = "KEY", value_parser = name, help_heading = "Where")]
    routing_key: Option<String>,
    /// Of the message, 0 to 255; queues that know priorities hand out higher ones first, and lower ones on Redis
    #[arg(long, help_heading = "Message")]
    priority: Option<u8>,
    /// The task's id; without it, a fresh one
    #[arg(long, value_name = "ID", value_parser = id, help_heading = "Message")]
    task_id: Option<String>,
    /// A header of your own; give it again for more
    #[arg(long = "header", value_name = "KEY=VALUE", value_parser = key_value, help_heading = "Message")]
    headers: Vec<(String, String)>,
    /// A header to revoke the task by, with others that have the same; give it again for more
    #[arg(long = "stamp", value_name = "KEY=VALUE", value_parser = key_value, help_heading = "Message")]
    stamps: Vec<(String, String)>,
    /// A name to show in logs and monitors, instead of the task's
    #[arg(long, value_name = "NAME", value_parser = name, help_heading = "Message")]
    shadow: Option<String>,
    /// Do not keep the result
    #[arg(long, conflicts_with = "wait", help_heading = "Message")]
    ignore_result: bool,
    /// json, yaml, msgpack or auth; without it, task_serializer
    #[arg(long, value_name = "NAME", help_heading = "Message")]
    serializer: Option<ContentName>,
    /// gzip, bzip2 or zstd; without it, task_compression
    #[arg(long, value_name = "NAME", help_heading = "Message")]
    compression: Option<Compression>,
    /// Run this task with the result: a name, or a signature in JSON; give it again for more
    #[arg(long, value_name = "TASK", help_heading = "What follows")]
    link: Vec<Link>,
    /// Run this task if it fails: a name, or a signature in JSON; give it again for more
    #[arg(long, value_name = "TASK", help_heading = "What follows")]
    link_error: Vec<Link>,
    #[command(flatten)]
    wait: Wait,
}

/// Of its own type, since clap takes a plain `Vec` for an option that is given several times.
#[derive(Clone, Debug)]
struct Array(Vec<Argument>);

#[derive(Clone, Debug)]
struct Object(BTreeMap<String, Argument>);

/// As it is typed: relative to a now that comes later.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Expiry {
    At(Timestamp),
    After(Duration),
}

pub async fn run(call: Call, settings: Settings, output: Output) -> Result<ExitCode, Failure> {
    let (target, priority) = settings.routes()?.resolve(&call.name, call.route());
    if let Target::Queue(queue) = &target {
        settings.queue(queue)?;
    }
    let now = Timestamp::now();
    let (wait, mut task) = (call.wait, call.into_call(&settings, now)?);
    task.priority = priority;
    let broker = connect_broker(settings.broker(), settings.broker_transport(Patience::FailFast)?).await?;
    // Before it is sent, so that nothing is sent whose result cannot be waited for.
    let backend = match wait.is_asked() {
        true => Some(backend(&broker, &settings).await?),
        false => None,
    };
    if let Some(backend) = &backend {
        task.reply_to = backend.reply_to().await.attempt("failed to make a queue for the result")?;
    }
    let queue = place(&target);
    let attempted = format!("failed to send task {} to {}", visible::line(&task.task), visible::line(&queue));
    publish(broker.as_ref(), target, &task, &settings, now).await.attempt(attempted)?;
    let done = match backend {
        None => {
            let sent = json!({ "task_id": task.id, "task": task.task, "queue": queue });
            output.answer(&task.id, &sent)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(backend) => {
            let record = result::wait(backend.as_ref(), &task.id, wait, output).await;
            record.and_then(|record| result::show(&record, output))
        }
    };
    broker.close().await;
    done
}

async fn backend(broker: &SharedBroker, settings: &Settings) -> Result<SharedBackend, Failure> {
    let transport = settings.backend_transport(Patience::FailFast)?;
    Ok(connect_backend_over(broker, settings.backend()?, settings.retention(), transport).await?)
}

/// What the settings say of queues on the way is declared first, since their readers may not have come yet.
async fn publish(
    broker: &dyn Broker,
    target: Target,
    task: &TaskCall,
    settings: &Settings,
    now: Timestamp,
) -> Result<(), Failure> {
    for queue in on_the_way(&target, settings)?.iter().filter(|queue| !queue.is_plain()) {
        broker.declare(queue).await?;
    }
    Ok(broker.publish(Publication { target, message: task.message(now) }).await?)
}

fn on_the_way(target: &Target, settings: &Settings) -> Result<Vec<Queue>, SettingsError> {
    Ok(match target {
        Target::Queue(name) => vec![settings.queue(name)?],
        Target::Exchange { exchange, .. } => {
            let leads_from = |queue: &Queue| queue.bindings.iter().any(|binding| binding.exchange == *exchange);
            settings.known_queues()?.into_iter().filter(leads_from).collect()
        }
        Target::Reply { .. } => vec![],
    })
}

/// For people: the queue, or the exchange and the key.
fn place(target: &Target) -> String {
    match target {
        Target::Queue(queue) => queue.clone(),
        Target::Exchange { exchange, routing_key } => format!("{}/{routing_key}", exchange.name),
        Target::Reply { exchange, routing_key } => format!("{exchange}/{routing_key}"),
    }
}

impl Call {
    fn route(&self) -> Route {
        Route {
            queue: self.queue.clone(),
            exchange: self.exchange.clone(),
            exchange_kind: self.exchange_type.map(Into::into),
            routing_key: self.routing_key.clone(),
            priority: self.priority,
        }
    }

    fn into_call(self, settings: &Settings, now: Timestamp) -> Result<TaskCall, Failure> {
        let call = TaskCall::new(self.name);
        let later = |after: Duration| {
            let after = SignedDuration::try_from(after)?;
            now.checked_add(after)
        };
        let countdown = self.countdown.map(|countdown| later(countdown.0)).transpose()?;
        let expires = match self.expires {
            Some(Expiry::At(instant)) => Some(instant),
            Some(Expiry::After(after)) => Some(later(after)?),
            None => None,
        };
        let headers: Headers = self.headers.into_iter().map(|(key, value)| (key, Value::from(value))).collect();
        let seconds = |limit: Option<Seconds>| limit.map(|limit| limit.0.as_secs_f64());
        let stamps = stamps(self.stamps);
        let (serializer, signing) = content(self.serializer, settings)?;
        Ok(TaskCall {
            id: self.task_id.unwrap_or(call.id),
            args: self.args.0,
            kwargs: self.kwargs.0,
            eta: self.eta.or(countdown),
            expires,
            time_limit: TimeLimit { hard: seconds(self.time_limit), soft: seconds(self.soft_time_limit) },
            ignore_result: self.ignore_result.then_some(true),
            headers,
            stamped_headers: stamps.keys().cloned().collect(),
            stamps,
            shadow: self.shadow,
            serializer,
            signing,
            compression: self.compression.or(settings.task_compression.map(|Text(compression)| compression)),
            embed: link::embed(&self.link, &self.link_error),
            origin: format!("rtask{}@{}", std::process::id(), super::host_name()),
            ..TaskCall::new(call.task)
        })
    }
}

/// Where task_serializer is auth, everything is signed, and another name says what is.
fn content(asked: Option<ContentName>, settings: &Settings) -> Result<(Serializer, Signing), SettingsError> {
    let asked = asked.unwrap_or(settings.task_serializer.0);
    let (serializer, signer) = match asked {
        ContentName::Plain(serializer) => (serializer, settings.signer()?),
        ContentName::Signed => (Serializer::default(), Some(settings.needed_signer()?)),
    };
    Ok((serializer, signer.map_or(Signing::No, Signing::By)))
}

/// A stamp that is given again has several values.
fn stamps(given: Vec<(String, String)>) -> Map<String, Value> {
    let mut stamps: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, value) in given {
        stamps.entry(key).or_default().push(value);
    }
    stamps.into_iter().map(|(key, values)| (key, Value::from(values))).collect()
}

fn array(text: &str) -> Result<Array, String> {
    serde_json::from_str(text).map(Array).map_err(|error| format!("it is no JSON array, such as '[2, 2]': {error}"))
}

fn object(text: &str) -> Result<Object, String> {
    serde_json::from_str(text)
        .map(Object)
        .map_err(|error| format!("it is no JSON object, such as '{{\"x\": 2}}': {error}"))
}

fn limit(text: &str) -> Result<Seconds, String> {
    match text.parse::<Seconds>() {
        Ok(limit) if limit.limit().is_none() => Err("nothing runs in no time".to_owned()),
        parsed => parsed.map_err(|error| error.to_string()),
    }
}

/// Of a task, a queue, an exchange or a key.
fn name(text: &str) -> Result<String, String> {
    text_within(text, MAX_NAME)
}

fn id(text: &str) -> Result<String, String> {
    text_within(text, MAX_ID)
}

impl FromStr for Expiry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(seconds) = text.parse::<Seconds>() {
            return Ok(Self::After(seconds.0));
        }
        time::parse(text).map(Self::At).map_err(|error| format!("it is neither ISO 8601 nor seconds: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rtask_broker::{Exchange, ExchangeKind};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        call: Call,
    }

    fn now() -> Timestamp {
        "2026-11-24T08:00:00Z".parse().unwrap()
    }

    fn parse(arguments: &[&str]) -> Call {
        let line = Line::try_parse_from([["call", "hello.add"].as_slice(), arguments].concat());
        line.unwrap_or_else(|error| panic!("{error}")).call
    }

    fn call(arguments: &[&str]) -> TaskCall {
        parse(arguments).into_call(&Settings::default(), now()).unwrap()
    }

    fn refusal(arguments: &[&str]) -> String {
        match Line::try_parse_from([["call", "hello.add"].as_slice(), arguments].concat()) {
            Ok(_) => panic!("{arguments:?} was accepted"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn arguments_are_json_and_stay_as_they_are_written() {
        let call = call(&["--args", "[-2, 123456789012345678901234567890]", "-k", r#"{"y": null}"#]);
        let args: Vec<&str> = call.args.iter().map(|argument| argument.get()).collect();
        assert_eq!(args, ["-2", "123456789012345678901234567890"]);
        assert_eq!(call.kwargs["y"].get(), "null");
    }

    #[test]
    fn times_count_from_now() {
        let rows = [
            (["--countdown", "1.5"], Some("2026-11-24T08:00:01.5Z"), None),
            (["--eta", "2026-11-24T10:00:00+01:00"], Some("2026-11-24T09:00:00Z"), None),
            (["--expires", "60"], None, Some("2026-11-24T08:01:00Z")),
            (["--expires", "2030-01-02T03:04:05"], None, Some("2030-01-02T03:04:05Z")),
        ];
        let instant = |text: Option<&str>| text.map(|text| text.parse::<Timestamp>().unwrap());
        for (arguments, eta, expires) in rows {
            let call = call(&arguments);
            assert_eq!((call.eta, call.expires), (instant(eta), instant(expires)), "{arguments:?}");
        }
    }

    #[test]
    fn the_rest_reaches_the_message() {
        let line = "--time-limit 2.5 --soft-time-limit 2 --task-id mine --ignore-result --header a=b=c --shadow s \
                    --stamp k=v --stamp k=w --serializer yaml --compression zlib --link hello.log";
        let call = call(&line.split_whitespace().collect::<Vec<_>>());
        assert_eq!((call.time_limit.hard, call.time_limit.soft, call.id.as_str()), (Some(2.5), Some(2.0), "mine"));
        assert_eq!((call.ignore_result, &call.headers["a"]), (Some(true), &json!("b=c")));
        assert_eq!((call.shadow.as_deref(), &call.stamps["k"]), (Some("s"), &json!(["v", "w"])));
        assert_eq!(call.stamped_headers, ["k"]);
        assert_eq!((call.serializer, call.compression), (Serializer::Yaml, Some(Compression::Zlib)));
        assert!(call.embed.callbacks.unwrap().get().contains("hello.log") && call.embed.errbacks.is_none());
        let plain = self::call(&[]);
        assert_eq!((plain.ignore_result, plain.time_limit.hard, plain.id.len()), (None, None, 36));
    }

    #[test]
    fn settings_say_what_a_call_leaves_open() {
        let text = "task_serializer = 'msgpack'\ntask_compression = 'zstd'\ntask_routes = 'hello.*=hellos'";
        let settings: Settings = toml::from_str(text).unwrap();
        let plain = parse(&[]).into_call(&settings, now()).unwrap();
        assert_eq!((plain.serializer, plain.compression), (Serializer::Msgpack, Some(Compression::Zstd)));
        let said = parse(&["--serializer", "json"]).into_call(&settings, now()).unwrap();
        assert_eq!(said.serializer, Serializer::Json);
        assert!(matches!(said.signing, Signing::No));
        let target = |arguments: &[&str]| settings.routes().unwrap().resolve("hello.add", parse(arguments).route());
        assert_eq!(target(&[]), (Target::Queue("hellos".into()), None));
        assert_eq!(target(&["--queue", "q", "--priority", "3"]), (Target::Queue("q".into()), Some(3)));
        let news = Exchange { name: "news".into(), kind: ExchangeKind::Fanout };
        let line = ["--exchange", "news", "--exchange-type", "fanout", "--routing-key", "k"];
        assert_eq!(target(&line).0, Target::Exchange { exchange: news, routing_key: "k".into() });
    }

    #[test]
    fn a_call_is_signed_where_the_settings_or_the_call_say_so() {
        let vectors = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/auth");
        let key = format!("security_key = '{vectors}/signer.key'\nsecurity_certificate = '{vectors}/signer.pem'\n");
        let made = |settings: &str, arguments: &[&str]| {
            let settings: Settings = toml::from_str(settings).unwrap();
            let call = parse(arguments).into_call(&settings, now()).map_err(|failure| failure.into_parts().0)?;
            Ok::<_, String>((call.serializer, matches!(call.signing, Signing::By(_))))
        };
        let always = format!("{key}task_serializer = 'auth'");
        assert_eq!(made(&always, &[]), Ok((Serializer::Json, true)));
        assert_eq!(made(&always, &["--serializer", "yaml"]), Ok((Serializer::Yaml, true)));
        assert_eq!(made(&key, &["--serializer", "auth"]), Ok((Serializer::Json, true)));
        assert_eq!(made(&key, &[]), Ok((Serializer::Json, false)));
        assert!(made("", &["--serializer", "auth"]).unwrap_err().contains("security_key"));
    }

    #[test]
    fn what_is_known_of_the_queues_on_the_way_is_declared() {
        let text = "[task_queues.a]\nqueue_type = 'quorum'\n\
                    [task_queues.b]\nexchange = 'news'\nexchange_type = 'fanout'";
        let settings: Settings = toml::from_str(text).unwrap();
        let declared = |target: &Target| -> Vec<String> {
            let queues = on_the_way(target, &settings).unwrap();
            queues.into_iter().map(|queue| queue.name).collect()
        };
        assert_eq!(declared(&Target::Queue("a".into())), ["a"]);
        let news = Exchange { name: "news".into(), kind: ExchangeKind::Fanout };
        assert_eq!(declared(&Target::Exchange { exchange: news, routing_key: String::new() }), ["b"]);
        let other = Exchange { name: "other".into(), kind: ExchangeKind::Fanout };
        assert!(declared(&Target::Exchange { exchange: other, routing_key: String::new() }).is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_the_name_of_its_option() {
        let long = "x".repeat(256);
        let rows: [(&[&str], &str); 17] = [
            (&["--args", "2, 2"], "--args"),
            (&["--args", "{}"], "--args"),
            (&["--kwargs", "[]"], "--kwargs"),
            (&["--time-limit", "soon"], "--time-limit"),
            (&["--time-limit", "0"], "--time-limit"),
            (&["--soft-time-limit", "-1"], "--soft-time-limit"),
            (&["--eta", "tomorrow"], "--eta"),
            (&["--expires", "-1"], "--expires"),
            (&["--countdown", "1", "--eta", "2030-01-01T00:00:00"], "--eta"),
            (&["--header", "novalue"], "--header"),
            (&["--wait", "--ignore-result"], "--wait"),
            (&["--task-id", &long], "--task-id"),
            (&["--serializer", "pickle"], "--serializer"),
            (&["--compression", "rar"], "--compression"),
            (&["--queue", "q", "--exchange", "e"], "--exchange"),
            (&["--priority", "256"], "--priority"),
            (&["--link", "{}"], "--link"),
        ];
        for (arguments, option) in rows {
            let refusal = refusal(arguments);
            assert!(refusal.contains(option), "{arguments:?}: {refusal}");
        }
    }
}
