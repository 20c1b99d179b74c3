//! Signed messages: what Celery signed is read, what we sign looks the same, and what was tampered with is refused.

use std::{fs, sync::Arc};

use jiff::Timestamp;
use proptest::{collection::vec, prelude::*, sample::Index};
use rtask_protocol::{
    Accept, Call, Compression, ContentTypes, Message, Request, Serializer,
    call::Signing,
    control::{Command, CommandError},
    request::Unreadable,
    retry::{self, Changes},
    security::{Certificate, CertificateStore, Digest, Signer},
};
use serde_json::json;

use super::{first, folder, messages};

/// The serialiser in the scenario's envelopes is its name.
const SCENARIOS: [(&str, Digest); 3] =
    [("auth/json", Digest::Sha256), ("auth/yaml", Digest::Sha384), ("auth/msgpack", Digest::Sha512)];

fn now() -> Timestamp {
    "2026-11-24T12:00:00Z".parse().unwrap()
}

fn file(name: &str) -> String {
    fs::read_to_string(folder().join("auth").join(name)).unwrap()
}

fn certificate(name: &str) -> Certificate {
    Certificate::read(&file(name)).unwrap()
}

/// Only what is signed by one of these.
fn accept(certificates: &[&str], digest: Digest) -> Accept {
    let store = CertificateStore::new(digest, certificates.iter().map(|name| certificate(name))).unwrap();
    Accept { content: ContentTypes::from_iter([]), signed: Some(Arc::new(store)), max_body: 1 << 16 }
}

fn signer(key: &str, certified: &str) -> Arc<Signer> {
    Arc::new(Signer::new(&file(key), None, &certificate(certified), Digest::Sha256, now()).unwrap())
}

fn reason(message: &Message, accept: &Accept) -> Unreadable {
    Request::decode(message, accept).unwrap_err().reason
}

#[test]
fn what_celery_signed_is_read() {
    for (scenario, digest) in SCENARIOS {
        let [task, broadcast] = <[Message; 2]>::try_from(messages(scenario)).unwrap();
        let accept = accept(&["signer.pem", "stranger.pem"], digest);
        let request = Request::decode(&task, &accept).unwrap_or_else(|poison| panic!("{scenario}: {poison}"));
        let said = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap();
        assert_eq!(said(request.body.args.get()), json!([1, "é", null]), "{scenario}");
        assert_eq!(said(request.body.kwargs.get()), json!({ "k": [1, 2] }), "{scenario}");
        let command = Command::decode(&broadcast, &accept).unwrap();
        assert_eq!((&*command.method, &command.arguments["rate_limit"]), ("rate_limit", &json!("1/m")), "{scenario}");
    }
}

#[test]
fn pickle_is_not_read_whoever_signed_it() {
    let [task, broadcast] = <[Message; 2]>::try_from(messages("auth/pickle")).unwrap();
    let accept = accept(&["signer.pem"], Digest::Sha256);
    let refused = reason(&task, &accept);
    assert!(refused.is_refused_content() && refused.to_string().contains("pickle"), "{refused}");
    assert!(matches!(Command::decode(&broadcast, &accept), Err(CommandError::Unreadable(_))));
}

#[test]
fn what_celery_signed_is_refused_once_something_is_wrong() {
    let task = first("auth/json");
    let rows = [
        (accept(&["stranger.pem"], Digest::Sha256), "not in security_cert_store"),
        (accept(&["impostor.pem"], Digest::Sha256), "was not signed by"),
        (accept(&["signer.pem"], Digest::Sha384), "another security_digest"),
    ];
    for (accept, expected) in rows {
        let refused = reason(&task, &accept);
        assert_eq!(refused.code(), "bad-signature");
        assert!(!refused.is_refused_content() && refused.to_string().contains(expected), "{refused}");
    }
    // Celery's own envelope, around a body that is another task's.
    let other = Call::new("t").with_args([2]);
    let other = Call { signing: Signing::By(signer("stranger.key", "impostor.pem")), ..other }.message(now());
    assert_eq!(reason(&other, &accept(&["signer.pem"], Digest::Sha256)).code(), "bad-signature");
}

#[test]
fn what_nobody_signed_is_refused_where_only_signed_messages_are_taken() {
    let accept = accept(&["signer.pem"], Digest::Sha256);
    for scenario in ["task/01_plain_send_task", "task/41_serializer_yaml", "task/42_serializer_msgpack"] {
        let refused = reason(&first(scenario), &accept);
        assert_eq!(refused.code(), "refused-content", "{scenario}");
        assert!(refused.to_string().contains("signed"), "{refused}");
    }
    let ping = first("control/00_ping");
    assert!(matches!(Command::decode(&ping, &accept), Err(CommandError::NotSigned)));
    let both = Accept { content: ContentTypes::default(), ..accept };
    assert!(Request::decode(&first("task/01_plain_send_task"), &both).is_ok());
    assert!(Request::decode(&first("auth/json"), &both).is_ok());
    assert!(Command::decode(&ping, &both).is_ok());
    assert_eq!(reason(&first("task/41_serializer_yaml"), &both).code(), "refused-content");
}

#[test]
fn signed_messages_are_refused_where_nobody_is_known() {
    let [task, broadcast] = <[Message; 2]>::try_from(messages("auth/json")).unwrap();
    assert_eq!(reason(&task, &Accept::default()).code(), "refused-content");
    assert!(matches!(Command::decode(&broadcast, &Accept::default()), Err(CommandError::Signed)));
}

#[test]
fn what_is_signed_here_is_read_again_in_every_serialiser() {
    let accept = accept(&["signer.pem"], Digest::Sha256);
    for serializer in [Serializer::Json, Serializer::Yaml, Serializer::Msgpack] {
        for compression in [None, Some(Compression::Zstd)] {
            let signing = Signing::By(signer("signer.key", "signer.pem"));
            let call = Call { serializer, compression, signing, ..Call::new("t").with_args(["é"]) };
            let message = call.message(now());
            assert_eq!(message.properties.content_type.as_deref(), Some("application/data"));
            assert_eq!(message.properties.content_encoding.as_deref(), Some("utf-8"));
            assert_eq!(Request::decode(&message, &accept).unwrap().body.args.get(), r#"["é"]"#);
        }
    }
    let signer = signer("signer.key", "signer.pem");
    let command = Command { ticket: Some("t".into()), ..Command::new("ping", serde_json::Map::new()) };
    assert_eq!(Command::decode(&command.message(0.0, Some(&signer)), &accept).unwrap(), command);
    let reply = command.reply("w1@h", &json!({ "ok": "pong" }), Some(&signer));
    let body = rtask_protocol::control::body(&reply, &accept).unwrap();
    assert_eq!(&*body, br#"{"w1@h":{"ok":"pong"}}"#);
}

#[test]
fn a_retry_keeps_its_signature_until_its_arguments_change() {
    let (sent, accept) = (first("auth/yaml"), accept(&["signer.pem"], Digest::Sha384));
    let request = Request::decode(&sent, &accept).unwrap();
    let same = retry::message(&sent, &request, &Changes::default(), None, now());
    assert_eq!((&same.body, &same.headers["compression"]), (&sent.body, &sent.headers["compression"]));
    assert_eq!(Request::decode(&same, &accept).unwrap().retries, 1);

    let key = Signer::new(&file("signer.key"), None, &certificate("signer.pem"), Digest::Sha384, now()).unwrap();
    let changes = Changes { args: Some(rtask_protocol::json::raw(&[2])), ..Changes::default() };
    let changed = retry::message(&sent, &request, &changes, Some(&key), now());
    assert_eq!(Request::decode(&changed, &accept).unwrap().body.args.get(), "[2]");
    let unsigned = retry::message(&sent, &request, &changes, None, now());
    assert_eq!(reason(&unsigned, &accept).code(), "refused-content");
}

#[test]
fn bounds_hold_before_and_after_the_envelope() {
    let task = first("auth/json");
    let accept = accept(&["signer.pem"], Digest::Sha256);
    let limited = |max_body: usize| Accept { max_body, ..accept.clone() };
    assert_eq!(reason(&task, &limited(task.body.len() - 1)).code(), "too-large");
    assert!(Request::decode(&task, limited(task.body.len())).is_ok());
    // The little that is sent is more than allowed once it is unpacked.
    let signing = Signing::By(signer("signer.key", "signer.pem"));
    let call =
        Call { signing, compression: Some(Compression::Zstd), ..Call::new("t").with_args(["x".repeat(100_000)]) };
    let bomb = call.message(now());
    assert!(bomb.body.len() < 1 << 16);
    assert_eq!(reason(&bomb, &accept).code(), "too-large");
}

proptest! {
    /// A change anywhere in the message's text is found out, or says the same as before.
    #[test]
    fn no_tampered_body_is_believed(changes in vec((any::<Index>(), any::<u8>()), 1..4), cut in any::<Index>()) {
        let (sent, accept) = (first("auth/json"), accept(&["signer.pem"], Digest::Sha256));
        let args = |message: &Message| Request::decode(message, &accept).map(|request| request.body.args.get().to_owned());
        let mut body = sent.body.to_vec();
        for (at, byte) in changes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        let cut = Message { body: body[..cut.index(body.len())].to_vec().into(), ..sent.clone() };
        prop_assert!(args(&cut).is_err());
        if let Ok(args) = args(&Message { body: body.into(), ..sent.clone() }) {
            prop_assert_eq!(args, "[1, \"\\u00e9\", null]");
        }
    }
}
