//! Messages that somebody cut, changed or made up.

use jiff::Timestamp;
use proptest::{collection::vec, prelude::*, sample::Index};
use rtask_protocol::{
    Accept, ContentTypes, Exception, Message, Request,
    control::Command,
    json::raw,
    retry::{self, Changes},
    signature::{self, Parent},
};
use serde_json::{Value, json};

use super::{messages, scenarios};

const LIMIT: usize = 4096;
const ACCEPT: Accept = Accept { content: ContentTypes::ALL, signed: None, max_body: LIMIT };

/// One thing that is done to a message.
#[derive(Clone, Debug)]
enum Change {
    Cut(Index),
    Overwrite(Index, u8),
    Insert(Index, Vec<u8>),
    Repeat(Index, u16),
    Header(Index, Value),
    NoHeader(Index),
    ContentType(&'static str),
    Compression(&'static str),
}

fn change() -> impl Strategy<Value = Change> {
    let odd = prop_oneof![
        Just(json!(null)),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        Just(json!([[[[]]], {"a": {}}])),
        Just(json!("x".repeat(300))),
    ];
    let types =
        ["application/json", "application/x-yaml", "application/x-msgpack", "application/x-python-serialize", ""];
    let compressions = ["application/x-gzip", "application/x-bz2", "application/zstd", "brotli"];
    prop_oneof![
        any::<Index>().prop_map(Change::Cut),
        any::<(Index, u8)>().prop_map(|(at, byte)| Change::Overwrite(at, byte)),
        (any::<Index>(), vec(any::<u8>(), 1..8)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        any::<(Index, u16)>().prop_map(|(at, times)| Change::Repeat(at, times)),
        (any::<Index>(), odd).prop_map(|(at, value)| Change::Header(at, value)),
        any::<Index>().prop_map(Change::NoHeader),
        prop::sample::select(types.to_vec()).prop_map(Change::ContentType),
        prop::sample::select(compressions.to_vec()).prop_map(Change::Compression),
    ]
}

impl Change {
    fn apply(&self, message: &mut Message) {
        let mut body = message.body.to_vec();
        let name = |at: &Index, message: &Message| {
            let names: Vec<_> = message.headers.keys().cloned().collect();
            (!names.is_empty()).then(|| at.get(&names).clone())
        };
        match self {
            Self::Cut(at) if !body.is_empty() => body.truncate(at.index(body.len())),
            Self::Overwrite(at, byte) if !body.is_empty() => {
                let at = at.index(body.len());
                body[at] = *byte;
            }
            Self::Insert(at, bytes) => {
                let at = at.index(body.len() + 1);
                body.splice(at..at, bytes.iter().copied());
            }
            Self::Repeat(at, times) if !body.is_empty() => {
                let at = at.index(body.len());
                let byte = body[at];
                body.splice(at..at, std::iter::repeat_n(byte, usize::from(*times) % 3000));
            }
            Self::Cut(_) | Self::Overwrite(..) | Self::Repeat(..) => {}
            Self::Header(at, value) => {
                message.headers.extend(name(at, message).map(|name| (name, value.clone())));
            }
            Self::NoHeader(at) => {
                if let Some(name) = name(at, message) {
                    message.headers.remove(&name);
                }
            }
            Self::ContentType(name) => message.properties.content_type = Some((*name).to_owned()),
            Self::Compression(name) => {
                message.headers.insert("compression".to_owned(), json!(name));
            }
        }
        message.body = body.into();
    }
}

fn everything() -> Vec<Message> {
    let kinds = ["task", "flow", "control"];
    kinds.into_iter().flat_map(scenarios).flat_map(|scenario| messages(&scenario)).collect()
}

/// Use whatever was read in every way there is.
fn use_up(message: &Message, request: &Request) -> Result<(), TestCaseError> {
    let size = request.body.args.get().len() + request.body.kwargs.get().len();
    prop_assert!(size <= LIMIT + 4, "{size}");
    let now = Timestamp::UNIX_EPOCH;
    let parent = Parent { request, inherit_priority: true, origin: "o" };
    let embed = &request.body.embed;
    if let (Ok(callbacks), Ok(errbacks)) = (embed.callbacks(), embed.errbacks()) {
        if let Ok(followed) = signature::callbacks(&callbacks, &parent, &raw(&1), now) {
            followed.calls.iter().for_each(|call| drop(call.message(now)));
        }
        for errback in &errbacks {
            let _ = errback.errback(&parent, &Exception::builtin("E", "e"), None, now);
        }
        let _ = signature::errbacks(&errbacks.iter().collect::<Vec<_>>(), &parent, now);
    }
    let again = Request::decode(&retry::message(message, request, &Changes::default(), None, now), ACCEPT);
    // What could be read can be read once more, unless its JSON is longer than what it came as.
    match again {
        Ok(again) => {
            prop_assert_eq!(again.id, request.id.clone());
            prop_assert_eq!(again.retries, request.retries.saturating_add(1));
        }
        Err(poison) => prop_assert_eq!(poison.reason.code(), "too-large"),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_changed_message_panics_or_outgrows_its_limit(which: Index, changes in vec(change(), 1..6)) {
        let mut message = which.get(&everything()).clone();
        changes.iter().for_each(|change| change.apply(&mut message));
        if let Ok(request) = Request::decode(&message, ACCEPT) {
            use_up(&message, &request)?;
        }
        if let Ok(command) = Command::decode(&message, &Accept::default()) {
            command.is_for("celery@host");
            command.reply("celery@host", &json!(null), None);
        }
    }
}
