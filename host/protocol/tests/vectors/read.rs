//! Messages of clients become requests.

use rtask_protocol::{
    Accept, ContentTypes, Message, Protocol, Request, TimeLimit,
    control::Command,
    signature::{Kind, Signature, SignatureError},
};
use serde_json::{Value, json};

use super::{first, messages, scenarios};

const ALL: Accept = Accept { content: ContentTypes::ALL, signed: None, max_body: 1 << 20 };

fn request(scenario: &str) -> Request {
    Request::decode(&first(scenario), ALL).unwrap_or_else(|poison| panic!("{scenario}: {poison}"))
}

#[test]
fn every_message_of_a_client_is_a_request_but_for_what_is_refused_on_purpose() {
    for scenario in scenarios("task").into_iter().chain(scenarios("flow")) {
        for message in messages(&scenario) {
            let refused = match (scenario.as_str(), Request::decode(&message, ALL)) {
                ("task/43_serializer_pickle", Err(poison)) => Some((poison, "pickle runs code")),
                ("task/54_compression_lzma", Err(poison)) => Some((poison, "use gzip, bzip2 or zstd")),
                (_, Err(poison)) => panic!("{scenario}: {poison}"),
                (_, Ok(request)) => {
                    assert_eq!(Some(&request.id), message.properties.correlation_id.as_ref(), "{scenario}");
                    None
                }
            };
            if let Some((poison, reason)) = refused {
                assert!(poison.to_string().contains(reason), "{scenario}: {poison}");
                assert!(poison.reason.is_refused_content());
                assert_eq!(poison.id, message.properties.correlation_id, "{scenario}");
            }
        }
    }
}

#[test]
fn each_header_finds_its_field() {
    let plain = request("task/01_plain_send_task");
    assert_eq!((plain.task.as_str(), plain.protocol, plain.retries), ("tasks.add", Protocol::Two, 0));
    assert_eq!((plain.root_id == plain.id, plain.parent_id, plain.ignore_result), (true, None, None));
    assert_eq!((plain.argsrepr.as_deref(), plain.lang.as_deref()), (Some("(2, 2)"), Some("py")));
    assert_eq!(plain.reply_to.as_deref(), Some("2a150778-ece6-3b1d-a076-d7cd5f1dace6"));
    assert_eq!(plain.correlation_id, Some(plain.id));
    assert!(plain.custom_headers.is_empty() && plain.stamped_headers.is_empty() && plain.shadow.is_none());

    assert_eq!(request("task/08_priority").priority, first("task/08_priority").properties.priority.unwrap());
    assert_eq!(request("task/10_time_limits").time_limit, TimeLimit { hard: Some(10.0), soft: Some(5.5) });
    assert_eq!(request("task/11_ignore_result").ignore_result, Some(true));
    assert_eq!(request("task/14_shadow_argsrepr").shadow.as_deref(), Some("pretty.name"));
    assert_eq!(Value::Object(request("task/17_custom_headers").custom_headers), json!({"x-my": 1, "y": "z"}));
    assert!(request("task/05_expires_seconds").expires.is_some() && request("task/03_countdown").eta.is_some());
    let member = request("task/22_chord");
    assert_eq!(
        (member.group.is_some(), member.group_index, member.body.embed.canvas()),
        (true, Some(0), Some("chord"))
    );
    let stamped = request("task/31_stamps_visitor");
    assert_eq!(stamped.stamped_headers, ["many", "mtask_id"]);
    assert_eq!(Value::Object(stamped.stamps), json!({"many": ["a", "b"], "mtask_id": "stamp-1"}));
}

#[test]
fn the_same_arguments_come_out_of_every_serialiser_and_compression() {
    let text = "x".repeat(266);
    let echo = (json!([1, "é", null, 1.5, true]), json!({"k": [1, 2]}));
    let rows = [
        ("task/41_serializer_yaml", echo.clone()),
        ("task/42_serializer_msgpack", echo),
        ("task/50_compression_gzip", (json!([text]), json!({}))),
        ("task/51_compression_bzip2", (json!([text]), json!({}))),
        ("task/53_compression_zlib", (json!([text]), json!({}))),
    ];
    for (scenario, (args, kwargs)) in rows {
        let body = request(scenario).body;
        let read: Value = serde_json::from_str(body.args.get()).unwrap();
        // How many they are is not what matters.
        let same = match (&args[0], &read[0]) {
            (Value::String(_), Value::String(many)) if args.as_array().unwrap().len() == 1 => {
                many.len() > 100 && many.chars().all(|character| character == 'x')
            }
            _ => read == args,
        };
        assert!(same, "{scenario}: {read}");
        assert_eq!(serde_json::from_str::<Value>(body.kwargs.get()).unwrap(), kwargs, "{scenario}");
        assert_eq!(body.embed.canvas(), None, "{scenario}");
    }
}

#[test]
fn what_is_not_in_accept_content_is_refused() {
    for scenario in ["task/41_serializer_yaml", "task/42_serializer_msgpack"] {
        let poison = Request::decode(&first(scenario), Accept::default()).unwrap_err();
        assert!(poison.to_string().contains("not in accept_content"), "{scenario}: {poison}");
        assert_eq!(poison.reason.code(), "refused-content");
    }
}

#[test]
fn a_decompressed_body_is_held_to_the_limit_too() {
    let message = first("task/50_compression_gzip");
    assert!(message.body.len() < 100);
    let poison = Request::decode(&message, Accept { max_body: 100, ..ALL }).unwrap_err();
    assert_eq!(poison.reason.code(), "too-large");
}

#[test]
fn protocol_1_says_the_same_in_its_body() {
    let request = request("task/61_protocol_1");
    assert_eq!((request.protocol, request.task.as_str()), (Protocol::One, "tasks.add"));
    assert_eq!(request.id, "3cef897b-e3e6-4b35-abf1-b0bcf1c6e7a2");
    assert_eq!((request.body.args.get(), request.body.kwargs.get()), ("[2, 2]", "{}"));
    assert_eq!(request.eta, Some("2026-11-24T08:37:28.500348Z".parse().unwrap()));
    assert_eq!((request.root_id == request.id, request.retries, request.expires), (true, 0, None));
}

fn bare(body: &Value) -> Message {
    Message { body: body.to_string().into(), ..Message::default() }
}

/// What other clients leave out or write as null.
#[test]
fn protocol_1_may_lack_almost_everything() {
    let request = Request::decode(&bare(&json!({"task": "t", "id": "i"})), ALL).unwrap();
    assert_eq!((request.body.args.get(), request.body.kwargs.get()), ("[]", "{}"));
    let sparse = json!({"task": "t", "id": "i", "args": null, "kwargs": null, "retries": null, "eta": "",
        "expires": null, "timelimit": null, "taskset": "g", "utc": true, "callbacks": [{"task": "next"}], "odd": {}});
    let request = Request::decode(&bare(&sparse), ALL).unwrap();
    assert_eq!((request.eta, request.group.as_deref(), request.priority), (None, Some("g"), 0));
    assert_eq!(request.body.embed.callbacks().unwrap()[0].task, "next");
    let wrong = [
        (json!({"id": "i"}), "not-a-task", None),
        (json!({"task": "t"}), "bad-header", None),
        (json!({"task": 5, "id": "i"}), "bad-header", Some("i")),
        (json!({"task": "t", "id": "i", "args": "text"}), "undecodable", Some("i")),
        (json!({"task": "t", "id": "i", "eta": "soon"}), "bad-header", Some("i")),
        (json!([]), "not-a-task", None),
        (json!({}), "not-a-task", None),
    ];
    for (body, code, id) in wrong {
        let poison = Request::decode(&bare(&body), ALL).unwrap_err();
        assert_eq!((poison.reason.code(), poison.id.as_deref()), (code, id), "{body}");
    }
}

#[test]
fn headers_go_before_the_body_of_a_hybrid() {
    let mut message = bare(&json!({"task": "old", "id": "old", "args": [1], "kwargs": {}, "retries": 2}));
    message.headers = json!({"task": "new", "id": "new", "x": 1}).as_object().unwrap().clone();
    let request = Request::decode(&message, ALL).unwrap();
    assert_eq!((request.task.as_str(), request.id.as_str(), request.retries), ("new", "new", 2));
    assert_eq!((request.body.args.get(), &request.custom_headers["x"]), ("[1]", &json!(1)));
    message.body = r#"{"odd": 1}"#.into();
    let poison = Request::decode(&message, ALL).unwrap_err();
    assert_eq!((poison.reason.code(), poison.id.as_deref()), ("undecodable", Some("new")));
}

/// Arguments by name only, and none of the fields that only Python's client knows.
#[test]
fn a_message_of_another_language_needs_no_more_than_a_task_and_an_id() {
    let mut message = bare(&json!([[], {"x": 1}, {"callbacks": null}]));
    message.headers = json!({"task": "t", "id": "i", "lang": "rust"}).as_object().unwrap().clone();
    let request = Request::decode(&message, ALL).unwrap();
    assert_eq!((request.body.kwargs.get(), request.lang.as_deref()), (r#"{"x":1}"#, Some("rust")));
    message.properties.content_type = Some("application/json; charset=utf-8".into());
    assert!(Request::decode(&message, ALL).is_ok());
    message.properties.content_type = None;
    message.body = "no JSON".into();
    assert_eq!(Request::decode(&message, ALL).unwrap_err().reason.code(), "refused-content");
}

#[test]
fn callbacks_are_signatures() {
    let embed = request("task/13_link_lists_immutable").body.embed;
    let callbacks = embed.callbacks().unwrap();
    let told: Vec<_> = callbacks.iter().map(|call| (call.task.as_str(), call.args[0].get(), call.immutable)).collect();
    assert_eq!(told, [("tasks.mul", "3", false), ("tasks.noop", "1", true)]);
    assert_eq!(embed.errbacks().unwrap().len(), 2);
    let chain = request("task/20_chain").body.embed.chain.unwrap();
    let steps: Vec<Value> = serde_json::from_str(chain.get()).unwrap();
    let step = Signature::parse(&steps[0].to_string()).unwrap();
    assert_eq!(step.options.task_id.as_deref(), Some("c4c9995c-eb31-402a-95bc-28564a4c710c"));
    let stamped = request("task/31_stamps_visitor").body.embed.chain.unwrap();
    let steps: Vec<Value> = serde_json::from_str(stamped.get()).unwrap();
    let step = Signature::parse(&steps[0].to_string()).unwrap();
    assert_eq!(Value::Object(step.options.stamps), json!({"many": ["a", "b"], "mtask_id": "stamp-1"}));
}

#[test]
fn a_canvas_is_told_apart_from_a_task() {
    let rows = [
        (json!({"task": "tasks.add", "subtask_type": null}), Kind::Task),
        (json!({"task": "celery.chain", "subtask_type": "chain"}), Kind::Chain),
        (json!({"task": "celery.group"}), Kind::Group),
        (json!({"task": "celery.chord", "subtask_type": "chord"}), Kind::Chord),
        (json!({"task": "celery.map", "subtask_type": "xmap"}), Kind::Task),
    ];
    for (signature, kind) in rows {
        assert_eq!(Signature::parse(&signature.to_string()).unwrap().kind, kind, "{signature}");
    }
}

#[test]
fn what_is_no_callback_is_refused() {
    let mut message = first("task/12_link_and_link_error");
    let mut with = |callbacks: Value| {
        message.body = json!([[], {}, {"callbacks": callbacks}]).to_string().into();
        Request::decode(&message, ALL).unwrap().body.embed.callbacks()
    };
    assert_eq!(with(json!({"task": "alone"})).unwrap().len(), 1);
    assert_eq!(with(json!([])).unwrap().len(), 0);
    for wrong in [json!(5), json!("t"), json!([5]), json!({}), json!({"task": ""}), json!({"task": "t", "args": {}})] {
        assert!(with(wrong.clone()).is_err(), "{wrong}");
    }
    let option = with(json!({"task": "t", "options": {"countdown": "soon"}})).unwrap_err();
    assert!(option.to_string().contains("countdown"));
    let many = vec![json!({"task": "t"}); 1001];
    assert!(matches!(with(json!(many)), Err(SignatureError::TooMany(1001))));
}

#[test]
fn remote_control_is_understood() {
    let ping = messages("control/00_ping");
    let command = Command::decode(&ping[0], &Accept::default()).unwrap();
    let reply = command.reply("w1@host1", &json!({"ok": "pong"}), None);
    assert_eq!(
        serde_json::from_slice::<Value>(&reply.body).unwrap(),
        serde_json::from_slice::<Value>(&ping[1].body).unwrap()
    );
    assert_eq!(reply.properties, ping[1].properties);
    assert_eq!(reply.headers["ticket"], ping[1].headers["ticket"]);
    let pattern = Command::decode(&first("control/02_ping_pattern"), &Accept::default()).unwrap();
    assert!(pattern.is_for("w1@host1") && !pattern.is_for("x1@host1"));
    let cast = Command::decode(&first("control/20_revoke_cast"), &Accept::default()).unwrap();
    assert_eq!((cast.arguments["task_id"].as_str(), cast.reply_to), (Some("id-1"), None));
    for scenario in scenarios("control") {
        let sent = first(&scenario);
        let command = Command::decode(&sent, &Accept::default()).unwrap();
        let again = command.message(sent.headers["expires"].as_f64().unwrap(), None);
        assert_eq!(
            serde_json::from_slice::<Value>(&again.body).unwrap(),
            serde_json::from_slice::<Value>(&sent.body).unwrap()
        );
        assert_eq!((again.headers, again.properties), (sent.headers, sent.properties), "{scenario}");
    }
}
