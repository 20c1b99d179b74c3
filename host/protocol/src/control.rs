//! Remote control's messages: commands that are broadcast to workers, and their replies (`kombu/pidbox.py`;
//! golden/04_remote_control).

use std::borrow::Cow;

use regex::RegexBuilder;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    Accept, Headers, Message, Properties, Serializer,
    content::Written,
    json,
    request::{self, Unreadable},
    security::{self, Signer},
};

/// A command's body has no more bytes.
const MAX_COMMAND: usize = 4 << 20;
/// A pattern has no more bytes, and makes no bigger an automaton.
const MAX_PATTERN: usize = 1 << 10;
const MAX_AUTOMATON: usize = 1 << 20;

/// The exchange that replies go through.
pub const REPLY_EXCHANGE: &str = "reply.celery.pidbox";

/// Something that a worker is asked to do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Command {
    pub method: String,
    pub arguments: Map<String, Value>,
    pub to: Recipients,
    /// None if nobody waits for an answer.
    pub reply_to: Option<ReplyTo>,
    /// Which question a reply answers.
    pub ticket: Option<String>,
    /// The sender's logical clock.
    pub clock: u64,
}

/// Which nodes a command is for.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Recipients {
    #[default]
    All,
    Nodes(Vec<String>),
    /// Names that a shell's pattern matches, as Python's `fnmatch` reads it.
    Glob(String),
    /// Names whose beginning a regular expression matches.
    Regex(String),
}

/// Where replies go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyTo {
    pub exchange: String,
    pub routing_key: String,
}

/// Why a broadcast is no command.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("its body has {0} bytes, more than the {MAX_COMMAND} allowed")]
    TooLarge(usize),
    #[error("its content type is not application/json")]
    ContentType,
    #[error("it is not signed, and accept_content takes only what is (auth)")]
    NotSigned,
    #[error("it is signed, and auth is not in accept_content")]
    Signed,
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("its body is no command: {0}")]
    Malformed(String),
    #[error("it is for whom a matcher `{0}` finds, which is not known; use glob or pcre")]
    Matcher(String),
}

/// The body; what else it holds is ignored.
#[derive(Serialize, Deserialize)]
struct Wire {
    method: String,
    #[serde(default)]
    arguments: Option<Map<String, Value>>,
    #[serde(default)]
    destination: Option<Vec<String>>,
    #[serde(default)]
    pattern: Option<String>,
    #[serde(default)]
    matcher: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ticket: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reply_to: Option<ReplyTo>,
}

impl Command {
    /// A command for every worker, which nobody waits for.
    pub fn new(method: impl Into<String>, arguments: Map<String, Value>) -> Self {
        Self { method: method.into(), arguments, ..Self::default() }
    }

    /// Read a broadcast. It must be signed where tasks must be.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn decode(message: &Message, accept: &Accept) -> Result<Self, CommandError> {
        let body = body(message, accept)?;
        let wire: Wire =
            serde_json::from_slice(&body).map_err(|error| CommandError::Malformed(json::reason(&error)))?;
        let destination = wire.destination.filter(|destination| !destination.is_empty());
        let to = match (destination, wire.pattern, wire.matcher) {
            (Some(nodes), ..) => Recipients::Nodes(nodes),
            (None, Some(pattern), Some(matcher)) if !pattern.is_empty() => match matcher.as_str() {
                "glob" => Recipients::Glob(pattern),
                "pcre" => Recipients::Regex(pattern),
                _ => return Err(CommandError::Matcher(matcher.escape_debug().to_string())),
            },
            // A pattern without a matcher is none, as for kombu.
            (None, ..) => Recipients::All,
        };
        Ok(Self {
            method: wire.method,
            arguments: wire.arguments.unwrap_or_default(),
            to,
            reply_to: wire.reply_to,
            ticket: wire.ticket,
            clock: message.headers.get("clock").and_then(Value::as_u64).unwrap_or(0),
        })
    }

    /// Whether it is for the worker of this name.
    pub fn is_for(&self, node: &str) -> bool {
        match &self.to {
            Recipients::All => true,
            Recipients::Nodes(nodes) => nodes.iter().any(|name| name == node),
            Recipients::Glob(pattern) => matches(&translated(pattern), node),
            Recipients::Regex(pattern) => matches(&format!("^(?:{pattern})"), node),
        }
    }

    /// `node`'s answer, for [`ReplyTo`].
    pub fn reply(&self, node: &str, answer: &Value, signer: Option<&Signer>) -> Message {
        let mut headers = Headers::new();
        headers.insert("ticket".to_owned(), self.ticket.clone().into());
        // One step for having heard, one for speaking (`kombu/clocks.py`).
        headers.insert("clock".to_owned(), self.clock.saturating_add(2).into());
        let body = Map::from_iter([(node.to_owned(), answer.clone())]);
        let properties = Properties { delivery_mode: Some(1), ..Properties::default() };
        written(headers, properties, json::raw(&body).get(), signer)
    }

    /// The broadcast. `expires` (seconds since 1970) is when nobody waits any more, 0 for never.
    pub fn message(&self, expires: f64, signer: Option<&Signer>) -> Message {
        let (destination, pattern, matcher) = match &self.to {
            Recipients::All => (None, None, None),
            Recipients::Nodes(nodes) => (Some(nodes.clone()), None, None),
            Recipients::Glob(pattern) => (None, Some(pattern.clone()), Some("glob".to_owned())),
            Recipients::Regex(pattern) => (None, Some(pattern.clone()), Some("pcre".to_owned())),
        };
        let wire = Wire {
            method: self.method.clone(),
            arguments: Some(self.arguments.clone()),
            destination,
            pattern,
            matcher,
            ticket: self.ticket.clone(),
            reply_to: self.reply_to.clone(),
        };
        let headers = [("clock", self.clock.into()), ("expires", expires.into())];
        let headers = headers.map(|(name, value)| (name.to_owned(), value)).into_iter().collect();
        let properties = Properties { delivery_mode: Some(2), ..Properties::default() };
        written(headers, properties, json::raw(&wire).get(), signer)
    }
}

/// The JSON text of a command, or of an answer to one.
///
/// # Errors
/// See [`CommandError`].
pub fn body<'a>(message: &'a Message, accept: &Accept) -> Result<Cow<'a, [u8]>, CommandError> {
    if message.body.len() > MAX_COMMAND {
        return Err(CommandError::TooLarge(message.body.len()));
    }
    match (message.properties.content_type.as_deref(), &accept.signed) {
        (Some(security::CONTENT_TYPE), Some(store)) => {
            Ok(Cow::Owned(request::signed(&message.body, store, MAX_COMMAND)?))
        }
        (Some(security::CONTENT_TYPE), None) => Err(CommandError::Signed),
        (None | Some("application/json" | "json"), _) if accept.is_signed_only() => Err(CommandError::NotSigned),
        (None | Some("application/json" | "json"), _) => Ok(Cow::Borrowed(&message.body)),
        (Some(_), _) => Err(CommandError::ContentType),
    }
}

fn written(headers: Headers, properties: Properties, json: &str, signer: Option<&Signer>) -> Message {
    let written = Written::new(json.to_owned(), Serializer::Json, signer);
    let properties = Properties {
        content_type: Some(written.content_type.to_owned()),
        content_encoding: Some(written.content_encoding.to_owned()),
        priority: Some(0),
        ..properties
    };
    Message { headers, properties, body: written.bytes.into() }
}

/// A pattern that cannot be compiled, or is too big, matches nobody.
fn matches(pattern: &str, node: &str) -> bool {
    let compiled = (pattern.len() <= MAX_PATTERN)
        .then(|| RegexBuilder::new(pattern).size_limit(MAX_AUTOMATON).dot_matches_new_line(true).build());
    matches!(compiled, Some(Ok(regex)) if regex.is_match(node))
}

/// A shell's pattern as a regular expression (Python's `fnmatch.translate`).
fn translated(glob: &str) -> String {
    let mut regex = String::from("^");
    let mut rest = glob.chars();
    while let Some(character) = rest.next() {
        match character {
            '*' => regex.push_str(".*"),
            '?' => regex.push('.'),
            '[' => match rest.as_str().char_indices().skip(1).find(|(_, end)| *end == ']') {
                Some((end, _)) => {
                    let class = &rest.as_str()[..end];
                    let (negated, class) = class.strip_prefix('!').map_or(("", class), |class| ("^", class));
                    regex.push_str(&format!("[{negated}{}]", escaped(class)));
                    rest = rest.as_str()[end + 1..].chars();
                }
                None => regex.push_str("\\["),
            },
            character => regex.push_str(&regex::escape(character.encode_utf8(&mut [0; 4]))),
        }
    }
    regex.push('$');
    regex
}

/// Within brackets, only a range's dash means something to a shell.
fn escaped(class: &str) -> String {
    let is_plain = |character: char| character.is_alphanumeric() || character == '-';
    class.chars().flat_map(|character| (!is_plain(character)).then_some('\\').into_iter().chain([character])).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn broadcast(body: &Value) -> Message {
        let headers = Map::from_iter([("clock".to_owned(), json!(2)), ("expires".to_owned(), json!(1795510441.5))]);
        Message { headers, properties: Properties::persistent_json(), body: body.to_string().into() }
    }

    /// golden/04_remote_control/00_ping.json
    fn ping() -> Value {
        json!({"method": "ping", "arguments": {}, "destination": null, "pattern": null, "matcher": null,
            "ticket": "62e741e6-ef50-46e7-a0f0-2943177f07ee",
            "reply_to": {"exchange": "reply.celery.pidbox", "routing_key": "8b9eaf95-d38c-3120-be7e-317dece3f78d"}})
    }

    #[test]
    fn a_command_is_read_and_answered_as_celery_does() {
        let command = Command::decode(&broadcast(&ping()), &Accept::default()).unwrap();
        assert_eq!((command.method.as_str(), command.is_for("w1@host1")), ("ping", true));
        assert_eq!(command.reply_to.as_ref().unwrap().exchange, REPLY_EXCHANGE);
        let reply = command.reply("w1@host1", &json!({"ok": "pong"}), None);
        assert_eq!(reply.body, r#"{"w1@host1":{"ok":"pong"}}"#);
        assert_eq!(reply.properties.delivery_mode, Some(1));
        let headers = json!({"ticket": "62e741e6-ef50-46e7-a0f0-2943177f07ee", "clock": 4});
        assert_eq!(Value::Object(reply.headers), headers);
    }

    #[test]
    fn a_broadcast_of_ours_has_the_shape_of_celerys() {
        let asked = Command {
            ticket: Some("62e741e6-ef50-46e7-a0f0-2943177f07ee".into()),
            reply_to: serde_json::from_value(ping()["reply_to"].clone()).unwrap(),
            clock: 2,
            ..Command::new("ping", Map::new())
        };
        let message = asked.message(1795510441.5, None);
        assert_eq!(message.headers, broadcast(&ping()).headers);
        assert_eq!(serde_json::from_slice::<Value>(&message.body).unwrap(), ping());
        assert_eq!(Command::decode(&message, &Accept::default()).unwrap(), asked);
        // 20_revoke_cast.json: nobody waits, so there is no ticket.
        let cast = Command::new("revoke", Map::from_iter([("task_id".to_owned(), json!("id-1"))])).message(0.0, None);
        let expected = json!({"method": "revoke", "arguments": {"task_id": "id-1"}, "destination": null,
            "pattern": null, "matcher": null});
        assert_eq!(serde_json::from_slice::<Value>(&cast.body).unwrap(), expected);
    }

    #[test]
    fn a_command_finds_its_recipients() {
        let rows = [
            (json!({"destination": ["w1@host1"]}), true),
            (json!({"destination": ["zz@host1"]}), false),
            (json!({"destination": []}), true),
            (json!({"pattern": "w*", "matcher": "glob"}), true),
            (json!({"pattern": "w?@host[0-9]", "matcher": "glob"}), true),
            (json!({"pattern": "w[!1]*", "matcher": "glob"}), false),
            (json!({"pattern": "w", "matcher": "glob"}), false),
            (json!({"pattern": "[", "matcher": "glob"}), false),
            (json!({"pattern": "w\\d@", "matcher": "pcre"}), true),
            (json!({"pattern": "host1", "matcher": "pcre"}), false),
            (json!({"pattern": "(", "matcher": "pcre"}), false),
            (json!({"pattern": "(((w{999}){999}){999})?", "matcher": "pcre"}), false),
            (json!({"pattern": "x*"}), true),
        ];
        for (mut body, expected) in rows {
            body["method"] = json!("ping");
            assert_eq!(
                Command::decode(&broadcast(&body), &Accept::default()).unwrap().is_for("w1@host1"),
                expected,
                "{body}"
            );
        }
    }

    #[test]
    fn what_is_no_command_is_refused() {
        let rows = [json!([]), json!({}), json!({"method": 1}), json!({"method": "m", "arguments": []})];
        for body in rows {
            assert!(Command::decode(&broadcast(&body), &Accept::default()).is_err(), "{body}");
        }
        let unknown = json!({"method": "m", "pattern": "x", "matcher": "sql"});
        assert!(
            Command::decode(&broadcast(&unknown), &Accept::default())
                .unwrap_err()
                .to_string()
                .contains("use glob or pcre")
        );
        let mut pickled = broadcast(&ping());
        pickled.properties.content_type = Some("application/x-python-serialize".into());
        assert!(matches!(Command::decode(&pickled, &Accept::default()), Err(CommandError::ContentType)));
    }

    proptest::proptest! {
        #[test]
        fn no_pattern_panics(pattern: String, name: String) {
            for to in [Recipients::Glob(pattern.clone()), Recipients::Regex(pattern.clone())] {
                Command { to, ..Command::default() }.is_for(&name);
            }
        }
    }
}
