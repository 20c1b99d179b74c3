//! Messages as kombu writes them into Redis (`kombu/transport/virtual/base.py`; golden/02_redis_transport).
//!
//! A list may hold anything, since anybody may push to it. What is no envelope is handed out as a message without
//! headers whose body is the whole element, for the reader to bury.

use std::{borrow::Cow, collections::BTreeMap};

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use jiff::Timestamp;
use rtask_protocol::{Headers, Message, Properties};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};
use uuid::Uuid;

use crate::{Attempts, Routing};

/// As lenient as Python's decoder about padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// Where kombu notes that a message is delivered again: in the headers and in the delivery's information.
const REDELIVERED: &str = "redelivered";
/// Ours alone, among the properties: the end of a message's life, in milliseconds since 1970. kombu writes
/// `expiration` and never looks at it again, and it does not tell from when on it counts.
const EXPIRES_AT: &str = "x-expires-at";
/// Bytes. kombu's have 36.
const LONGEST_TAG: usize = 64;

/// What an element of a list turns out to be.
#[derive(Debug, PartialEq)]
pub(super) struct Opened {
    pub message: Message,
    pub routing: Option<Routing>,
    pub attempts: Attempts,
    /// Milliseconds since 1970.
    pub expires_at: Option<i64>,
    /// Whether it is an envelope at all.
    pub is_sound: bool,
}

/// The name that kombu gave to a message. The copies that a fanout exchange makes of it share that.
pub(super) fn delivery_tag(element: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Envelope {
        properties: Properties,
    }
    #[derive(Deserialize)]
    struct Properties {
        delivery_tag: String,
    }
    let envelope: Envelope = serde_json::from_slice(element).ok()?;
    Some(envelope.properties.delivery_tag).filter(|tag| tag.len() <= LONGEST_TAG)
}

/// Write a message as kombu would. `expires_at` is in milliseconds since 1970.
pub(super) fn seal(message: &Message, routing: &Routing, expires_at: Option<i64>) -> String {
    #[derive(Serialize)]
    struct Envelope<'a> {
        body: String,
        #[serde(rename = "content-encoding")]
        content_encoding: Option<&'a str>,
        #[serde(rename = "content-type")]
        content_type: Option<&'a str>,
        headers: &'a Headers,
        properties: Headers,
    }
    let envelope = Envelope {
        body: BASE64.encode(&message.body),
        content_encoding: message.properties.content_encoding.as_deref(),
        content_type: message.properties.content_type.as_deref(),
        headers: &message.headers,
        properties: properties(&message.properties, routing, expires_at),
    };
    // Its keys are texts and its values are values, which is all that could fail.
    serde_json::to_string(&envelope).expect("an envelope is JSON")
}

fn properties(properties: &Properties, routing: &Routing, expires_at: Option<i64>) -> Headers {
    let mut written = Headers::new();
    let mut write = |name: &str, value: Option<Value>| {
        value.and_then(|value| written.insert(name.to_owned(), value));
    };
    let text = |text: &Option<String>| text.as_deref().map(Value::from);
    write("correlation_id", text(&properties.correlation_id));
    write("reply_to", text(&properties.reply_to));
    write("delivery_mode", properties.delivery_mode.map(Value::from));
    write("expiration", text(&properties.expiration));
    write(EXPIRES_AT, expires_at.map(Value::from));
    write("message_id", text(&properties.message_id));
    write("timestamp", properties.timestamp.map(Value::from));
    write("type", text(&properties.kind));
    write("app_id", text(&properties.app_id));
    // kombu cannot read a message that lacks one of these.
    let Routing { exchange, routing_key } = routing;
    write("delivery_info", Some(json!({"exchange": exchange, "routing_key": routing_key})));
    write("priority", Some(properties.priority.unwrap_or(0).into()));
    write("body_encoding", Some("base64".into()));
    write("delivery_tag", Some(Uuid::new_v4().to_string().into()));
    written
}

/// Read an element of a list.
pub(super) fn open(element: &[u8]) -> Opened {
    read(element).unwrap_or_else(|| Opened {
        message: Message { body: element.to_vec().into(), ..Message::default() },
        routing: None,
        attempts: Attempts::First,
        expires_at: None,
        is_sound: false,
    })
}

fn read(element: &[u8]) -> Option<Opened> {
    #[derive(Deserialize)]
    struct Envelope<'a> {
        #[serde(borrow, default)]
        body: Option<&'a RawValue>,
        #[serde(borrow, default, rename = "content-encoding")]
        content_encoding: Option<&'a RawValue>,
        #[serde(borrow, default, rename = "content-type")]
        content_type: Option<&'a RawValue>,
        #[serde(borrow, default)]
        headers: Option<&'a RawValue>,
        #[serde(borrow, default)]
        properties: Option<&'a RawValue>,
    }
    let envelope: Envelope<'_> = serde_json::from_slice(element).ok()?;
    if envelope.body.is_none() && envelope.headers.is_none() {
        return None;
    }
    let mut headers = match envelope.headers {
        Some(headers) => serde_json::from_str::<Option<Headers>>(headers.get()).ok()?.unwrap_or_default(),
        None => Headers::new(),
    };
    // Whoever wrote them oddly may still have written a task.
    let properties: Headers = lenient(envelope.properties).unwrap_or_default();
    let body = match envelope.body {
        Some(body) => read_body(body, properties.get("body_encoding"))?,
        None => Vec::new(),
    };
    let information = properties.get("delivery_info").and_then(Value::as_object);
    let noted = information.and_then(|information| information.get(REDELIVERED)) == Some(&Value::Bool(true));
    let in_headers = headers.remove(REDELIVERED) == Some(Value::Bool(true));
    Some(Opened {
        routing: information.and_then(routing),
        attempts: if noted || in_headers { Attempts::Again } else { Attempts::First },
        expires_at: properties.get(EXPIRES_AT).and_then(Value::as_i64),
        is_sound: true,
        message: Message {
            headers,
            properties: Properties {
                content_type: lenient(envelope.content_type),
                content_encoding: lenient(envelope.content_encoding),
                ..read_properties(&properties)
            },
            body: body.into(),
        },
    })
}

fn lenient<'a, T: Deserialize<'a>>(value: Option<&'a RawValue>) -> Option<T> {
    value.and_then(|value| serde_json::from_str(value.get()).ok())
}

/// None for a body that cannot be decoded.
fn read_body(body: &RawValue, encoding: Option<&Value>) -> Option<Vec<u8>> {
    let text = serde_json::from_str::<Option<Cow<'_, str>>>(body.get()).ok()?.unwrap_or_default();
    match encoding {
        None | Some(Value::Null) => Some(text.into_owned().into_bytes()),
        Some(Value::String(encoding)) => match encoding.to_ascii_lowercase().as_str() {
            "base64" => BASE64.decode(text.as_bytes()).ok(),
            "" | "utf-8" => Some(text.into_owned().into_bytes()),
            _ => None,
        },
        Some(_) => None,
    }
}

fn read_properties(properties: &Headers) -> Properties {
    let text = |name: &str| properties.get(name).and_then(Value::as_str).map(str::to_owned);
    let small = |name: &str| number(properties.get(name)?).map(|number| number.clamp(0, 255) as u8);
    Properties {
        content_type: None,
        content_encoding: None,
        delivery_mode: small("delivery_mode"),
        priority: small("priority"),
        correlation_id: text("correlation_id"),
        reply_to: text("reply_to"),
        expiration: text("expiration"),
        message_id: text("message_id"),
        timestamp: properties.get("timestamp").and_then(Value::as_u64),
        kind: text("type"),
        app_id: text("app_id"),
    }
}

/// Python's `int()`, as far as clients need it.
fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| number.as_f64().map(|number| number as i64)),
        Value::String(text) => text.trim().parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn routing(information: &Headers) -> Option<Routing> {
    let text = |name: &str| information.get(name).and_then(Value::as_str).map(str::to_owned);
    Some(Routing { exchange: text("exchange")?, routing_key: text("routing_key")? })
}

impl Opened {
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|end| end <= now.as_millisecond())
    }
}

/// An element on its way back into a list, and its priority: marked as delivered before, everything else in it as it
/// was, to the byte (`Channel._do_restore_message`).
#[derive(Debug, PartialEq)]
pub(super) struct Again {
    pub element: Vec<u8>,
    pub priority: Option<u8>,
}

/// What is no envelope goes back as it is.
pub(super) fn mark_redelivered(element: &[u8]) -> Again {
    marked(element).unwrap_or_else(|| Again { element: element.to_vec(), priority: None })
}

fn marked(element: &[u8]) -> Option<Again> {
    let mut envelope: Fields<'_> = serde_json::from_slice(element).ok()?;
    let mut properties: Fields<'_> = lenient(envelope.get("properties").copied()).unwrap_or_default();
    let priority = lenient(properties.get("priority").copied()).and_then(|value: Value| number(&value));
    let headers = with_mark(envelope.get("headers").copied());
    let information = with_mark(properties.get("delivery_info").copied());
    let rewritten;
    if let Some(information) = &information {
        properties.insert(Cow::Borrowed("delivery_info"), information);
        rewritten = raw(&properties)?;
        envelope.insert(Cow::Borrowed("properties"), &rewritten);
    }
    if let Some(headers) = &headers {
        envelope.insert(Cow::Borrowed("headers"), headers);
    }
    let priority = priority.map(|priority| priority.clamp(0, 255) as u8);
    Some(Again { element: raw(&envelope)?.get().as_bytes().to_vec(), priority })
}

type Fields<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

/// None for what is no object, and cannot be marked.
fn with_mark(value: Option<&RawValue>) -> Option<Box<RawValue>> {
    let mut fields: Fields<'_> = lenient(value)?;
    let yes: &RawValue = serde_json::from_str("true").ok()?;
    fields.insert(Cow::Borrowed(REDELIVERED), yes);
    raw(&fields)
}

fn raw(fields: &Fields<'_>) -> Option<Box<RawValue>> {
    serde_json::value::to_raw_value(fields).ok()
}

/// What `unacked` holds of a delivery.
#[derive(Debug, PartialEq)]
pub(super) struct Entry<'a> {
    pub element: &'a [u8],
    pub routing: Routing,
}

/// What `unacked` has behind an element that came from `queue`. Restored, it goes back to that queue alone, by the
/// default exchange, whatever exchange it came through: kombu looks the exchange's bindings up anew and hands a copy
/// to every queue that it finds.
pub(super) fn unacked_end(queue: &str) -> String {
    routed_end("", queue)
}

/// The same for an element that came through an exchange, as kombu writes it.
pub(super) fn routed_end(exchange: &str, routing_key: &str) -> String {
    format!(", {}, {}]", Value::from(exchange), Value::from(routing_key))
}

/// Read an entry of `unacked`; none for what neither kombu nor rtask has written.
pub(super) fn read_unacked(entry: &[u8]) -> Option<Entry<'_>> {
    type Triple<'a> = (&'a RawValue, Option<Cow<'a, str>>, Option<Cow<'a, str>>);
    match serde_json::from_slice::<Triple<'_>>(entry) {
        Ok((element, exchange, routing_key)) => {
            let text = |text: Option<Cow<'_, str>>| text.unwrap_or_default().into_owned();
            let routing = Routing { exchange: text(exchange), routing_key: text(routing_key) };
            Some(Entry { element: element.get().as_bytes(), routing })
        }
        Err(_) => read_unsound(entry),
    }
}

/// An element that is no JSON, which its holder had not come to replace.
fn read_unsound(entry: &[u8]) -> Option<Entry<'_>> {
    const BEFORE_QUEUE: &[u8] = b", \"\", ";
    let rest = entry.strip_prefix(b"[")?.strip_suffix(b"]")?;
    let start = rest.windows(BEFORE_QUEUE.len()).rposition(|window| window == BEFORE_QUEUE)?;
    let routing_key = serde_json::from_slice(&rest[start + BEFORE_QUEUE.len()..]).ok()?;
    Some(Entry { element: &rest[..start], routing: Routing { exchange: String::new(), routing_key } })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// golden/02_redis_transport/05_publish_countdown_expires.json, and the same as its restore writes it.
    const KOMBU: &[u8] = include_bytes!("../../../tests/vectors/redis_envelope.json");
    const RESTORED: &[u8] = include_bytes!("../../../tests/vectors/redis_envelope_restored.json");

    fn routing_to(queue: &str) -> Routing {
        Routing { exchange: String::new(), routing_key: queue.to_owned() }
    }

    #[test]
    fn kombus_envelope_is_read() {
        let opened = open(KOMBU);
        let Opened { message, routing, attempts, expires_at, is_sound } = &opened;
        assert_eq!((*attempts, *expires_at, *is_sound), (Attempts::First, None, true));
        assert_eq!(*routing, Some(routing_to("celery")));
        assert_eq!(message.headers["task"], "tasks.add");
        assert_eq!(
            message.body,
            br#"[[2, 2], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]"#[..]
        );
        let properties = &message.properties;
        assert_eq!(properties.content_type.as_deref(), Some("application/json"));
        assert_eq!((properties.delivery_mode, properties.priority), (Some(2), Some(0)));
        assert_eq!(properties.expiration.as_deref(), Some("60000"));
        assert_eq!(properties.reply_to.as_deref(), Some("3347e82c-714e-3d65-b34a-3aaeed27eebe"));
    }

    #[test]
    fn an_envelope_has_the_fields_that_kombu_writes() {
        let opened = open(KOMBU);
        let sealed: Value = serde_json::from_str(&seal(&opened.message, &opened.routing.unwrap(), None)).unwrap();
        assert_eq!(delivery_tag(KOMBU).as_deref(), Some("f5f5926f-6cf7-434a-9cbc-439883b7d445"));
        let mut expected: Value = serde_json::from_slice(KOMBU).unwrap();
        expected["properties"]["delivery_tag"] = sealed["properties"]["delivery_tag"].clone();
        assert!(sealed["properties"]["delivery_tag"].as_str().is_some_and(|tag| tag.len() == 36));
        assert_eq!(sealed, expected);
    }

    #[test]
    fn what_goes_back_is_marked_as_kombu_marks_it() {
        let Again { element, priority } = mark_redelivered(KOMBU);
        let marked: Value = serde_json::from_slice(&element).unwrap();
        assert_eq!(marked, serde_json::from_slice::<Value>(RESTORED).unwrap());
        assert_eq!(priority, Some(0));
        let opened = open(&element);
        assert_eq!(opened.attempts, Attempts::Again);
        assert_eq!(opened.message, open(KOMBU).message);
    }

    #[test]
    fn a_mark_changes_no_number() {
        let element =
            br#"{"headers":{"n":123456789012345678901234567890,"f":1.10},"body":"","properties":{"priority":"7"}}"#;
        let Again { element, priority } = mark_redelivered(element);
        let text = String::from_utf8(element).unwrap();
        assert!(text.contains("123456789012345678901234567890") && text.contains("1.10"), "{text}");
        assert!(text.contains(r#""redelivered":true"#), "{text}");
        assert_eq!(priority, Some(7));
    }

    #[test]
    fn what_is_no_envelope_is_a_body_without_headers() {
        let rows: [&[u8]; 14] = [
            b"",
            b"nonsense",
            b"\xff\xfe",
            b"null",
            b"[]",
            b"7",
            b"{}",
            br#"{"properties": {}}"#,
            br#"{"body": 7}"#,
            br#"{"body": "x", "headers": []}"#,
            br#"{"body": "x", "headers": "task"}"#,
            br#"{"body": "?", "properties": {"body_encoding": "base64"}}"#,
            br#"{"body": "x", "properties": {"body_encoding": "rot13"}}"#,
            br#"{"body": "x", "body": "y"}"#,
        ];
        for element in rows {
            let opened = open(element);
            let message = Message { body: element.to_vec().into(), ..Message::default() };
            assert!(!opened.is_sound && opened.message == message, "{}", String::from_utf8_lossy(element));
            // Put into an envelope it is read as the same message.
            let sealed = seal(&message, &routing_to("q"), None);
            let again = open(sealed.as_bytes());
            assert!(again.is_sound && again.message.body == element && again.message.headers.is_empty());
        }
    }

    #[test]
    fn fields_of_wrong_types_are_as_good_as_missing() {
        let element = br#"{"body": "e30=", "headers": {"task": "t"}, "content-type": 7, "properties":
            {"body_encoding": "base64", "priority": "high", "reply_to": [], "delivery_info": "celery", "timestamp": -1}}"#;
        let opened = open(element);
        assert!(opened.is_sound && opened.routing.is_none());
        assert_eq!(opened.message.properties, Properties::default());
        assert_eq!(opened.message.body, "{}");
    }

    #[test]
    fn an_entry_of_unacked_tells_where_it_belongs() {
        let kombu = [b"[", KOMBU, b", \"exchange\", \"key\"]"].concat();
        let routing = Routing { exchange: "exchange".to_owned(), routing_key: "key".to_owned() };
        assert_eq!(read_unacked(&kombu), Some(Entry { element: KOMBU, routing }));
        let queue = "a \"quoted\" queue";
        for element in [KOMBU, b"nonsense", b"\xff", b"{", br#"[1, "", "]"#] {
            let ours = [b"[", element, unacked_end(queue).as_bytes()].concat();
            assert_eq!(read_unacked(&ours), Some(Entry { element, routing: routing_to(queue) }));
        }
        for entry in [&b""[..], b"[]", b"null", b"[{}]", b"nonsense"] {
            assert_eq!(read_unacked(entry), None, "{}", String::from_utf8_lossy(entry));
        }
    }

    #[test]
    fn an_end_of_life_is_kept() {
        let message = open(KOMBU).message;
        let opened = open(seal(&message, &routing_to("q"), Some(1_000)).as_bytes());
        let at = |milliseconds| Timestamp::from_millisecond(milliseconds).unwrap();
        assert!(opened.is_expired(at(1_000)) && !opened.is_expired(at(999)));
        assert!(!open(KOMBU).is_expired(at(i64::from(u32::MAX) * 1_000)));
    }

    proptest! {
        #[test]
        fn no_element_is_lost_or_panics(element in prop::collection::vec(any::<u8>(), 0..200)) {
            let opened = open(&element);
            prop_assert!(opened.is_sound || opened.message.body == element);
            mark_redelivered(&element);
            read_unacked(&element);
        }

        #[test]
        fn no_cut_or_changed_envelope_panics(cut in 0..KOMBU.len(), at in 0..KOMBU.len(), byte in any::<u8>()) {
            open(&KOMBU[..cut]);
            let mut changed = KOMBU.to_vec();
            changed[at] = byte;
            let opened = open(&changed);
            prop_assert!(opened.is_sound || opened.message.body == changed);
            mark_redelivered(&changed);
        }
    }
}
