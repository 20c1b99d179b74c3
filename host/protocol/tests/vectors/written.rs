//! Calls, callbacks and retries become the messages that Celery would have published.

use jiff::{SignedDuration, Timestamp};
use rtask_protocol::{
    Accept, Call, Compression, ContentTypes, Exception, Message, Request, Serializer, TimeLimit,
    json::raw,
    record::Child,
    retry::{self, Asked, Changes},
    signature::{self, Parent, Signature},
};
use serde_json::{Value, json};

use super::{first, messages, scenarios};

const ALL: Accept = Accept { content: ContentTypes::ALL, signed: None, max_body: 1 << 20 };

fn now() -> Timestamp {
    "2026-11-24T08:50:44Z".parse().unwrap()
}

fn request(message: &Message) -> Request {
    Request::decode(message, ALL).unwrap()
}

fn parent(request: &Request) -> Parent<'_> {
    Parent { request, inherit_priority: false, origin: "gen<PID>@<HOST>" }
}

/// Everything that a request tells of its call.
fn call_of(request: &Request, message: &Message) -> Call {
    let kwargs: Vec<(String, Value)> =
        serde_json::from_str::<serde_json::Map<String, Value>>(request.body.kwargs.get())
            .unwrap()
            .into_iter()
            .collect();
    let call = Call {
        id: request.id.clone(),
        eta: request.eta,
        expires: request.expires,
        time_limit: request.time_limit,
        ignore_result: request.ignore_result,
        priority: Some(request.priority),
        headers: request.custom_headers.clone(),
        origin: request.origin.clone().unwrap_or_default(),
        root_id: Some(request.root_id.clone()),
        parent_id: request.parent_id.clone(),
        group_id: request.group.clone(),
        group_index: request.group_index,
        retries: request.retries,
        correlation_id: request.correlation_id.clone(),
        reply_to: request.reply_to.clone(),
        serializer: message.properties.content_type.as_deref().unwrap().parse().unwrap(),
        compression: message.headers.get("compression").map(|name| name.as_str().unwrap().parse().unwrap()),
        shadow: request.shadow.clone(),
        replaced_task_nesting: request.replaced_task_nesting,
        transient: message.properties.delivery_mode == Some(1),
        argsrepr: request.argsrepr.clone().filter(|shown| shown.starts_with('<')),
        kwargsrepr: request.kwargsrepr.clone().filter(|shown| shown.starts_with('<')),
        stamped_headers: request.stamped_headers.clone(),
        stamps: request.stamps.clone(),
        embed: request.body.embed.clone(),
        ..Call::new(&*request.task)
    };
    call.with_args(serde_json::from_str::<Vec<Value>>(request.body.args.get()).unwrap()).with_kwargs(kwargs)
}

#[test]
fn a_call_is_the_message_that_celery_would_send() {
    let refused = ["task/43_serializer_pickle", "task/54_compression_lzma"];
    // What Celery shows of long arguments is an abridgement of its own, and protocol 1 is only read.
    let own =
        ["task/50_compression_gzip", "task/51_compression_bzip2", "task/53_compression_zlib", "task/61_protocol_1"];
    let tested = scenarios("task").into_iter().filter(|name| !refused.contains(&&**name) && !own.contains(&&**name));
    let mut count = 0;
    for scenario in tested {
        for sent in messages(&scenario) {
            let read = request(&sent);
            // So that as much is left of it as there was for the client.
            let left = sent.properties.expiration.as_deref().map_or(0, |left| left.parse().unwrap());
            let now = read.expires.map_or(now(), |expires| expires - SignedDuration::from_millis(left));
            let mut made = call_of(&read, &sent).message(now);
            made.headers.insert("lang".into(), json!("py"));
            assert_eq!(Value::Object(made.headers.clone()), Value::Object(sent.headers.clone()), "{scenario}");
            assert_eq!(made.properties, sent.properties, "{scenario}");
            assert_eq!(parts(&made), parts(&sent), "{scenario}");
            count += 1;
        }
    }
    assert!(count > 15);
}

fn parts(message: &Message) -> Value {
    let body = request(message).body;
    serde_json::from_str(&body.encode()).unwrap()
}

#[test]
fn calls_go_out_in_every_serialiser_and_compression() {
    for serializer in [Serializer::Json, Serializer::Yaml, Serializer::Msgpack] {
        for compression in [None, Some(Compression::Zlib), Some(Compression::Bzip2), Some(Compression::Zstd)] {
            let call = Call { serializer, compression, ..Call::new("t") }.with_args([json!({"é": [1.5, null]})]);
            let message = call.message(now());
            assert_eq!(message.properties.content_type.as_deref(), Some(serializer.content_type()));
            assert_eq!(message.headers.contains_key("compression"), compression.is_some());
            assert_eq!(request(&message).body.args.get(), r#"[{"é":[1.5,null]}]"#);
        }
    }
}

#[test]
fn arguments_that_a_serialiser_cannot_say_go_out_as_json() {
    let wide = "[123456789012345678901234567890]";
    let args = serde_json::from_str::<Vec<Box<serde_json::value::RawValue>>>(wide).unwrap();
    let message = Call { serializer: Serializer::Msgpack, args, ..Call::new("t") }.message(now());
    assert_eq!(message.properties.content_type.as_deref(), Some("application/json"));
    assert_eq!(request(&message).body.args.get(), wide);
}

#[test]
fn a_retry_is_the_message_that_celery_would_send() {
    let flow = messages("flow/04_retry_then_success");
    let (sent, again) = (&flow[0], &flow[1]);
    let eta = Some("2026-11-24T08:50:45.487056Z".parse().unwrap());
    let made = retry::message(sent, &request(sent), &Changes { eta, ..Changes::default() }, None, now());
    assert_eq!(made, *again);
}

#[test]
fn a_retry_keeps_what_does_not_change() {
    for scenario in scenarios("task") {
        for mut sent in messages(&scenario) {
            sent.headers.insert("x-death".into(), json!([{"count": 1}]));
            let Ok(read) = Request::decode(&sent, ALL) else { continue };
            let made = retry::message(&sent, &read, &Changes::default(), None, now());
            let again = request(&made);
            assert_eq!((again.retries, again.parent_id.as_ref()), (read.retries + 1, Some(&read.id)), "{scenario}");
            assert_eq!((&again.id, again.eta, again.expires), (&read.id, None, read.expires), "{scenario}");
            assert_eq!(again.body.encode(), read.body.encode(), "{scenario}");
            assert_eq!((again.priority, again.time_limit), (read.priority, read.time_limit), "{scenario}");
            assert_eq!((again.group, again.group_index), (read.group, read.group_index), "{scenario}");
            assert_eq!((again.stamps, again.root_id), (read.stamps, read.root_id), "{scenario}");
            assert!(!made.headers.contains_key("x-death"), "{scenario}");
            if scenario != "task/61_protocol_1" {
                assert_eq!(made.body, sent.body, "{scenario}");
                assert_eq!(made.headers.get("compression"), sent.headers.get("compression"), "{scenario}");
            }
        }
    }
}

#[test]
fn a_retry_may_change_much() {
    let sent = first("task/50_compression_gzip");
    let asked = json!({"countdown": 5, "max_retries": 9, "expires": 60, "priority": 7, "queue": "other", "args": [1, "two"],
        "kwargs": {"k": 1}, "soft_time_limit": 2});
    let asked = Asked::parse(&asked.to_string()).unwrap();
    let expires = asked.expires.unwrap().resolve(now()).unwrap();
    let changes = Changes { expires: Some(expires), ..asked.changes };
    assert_eq!((asked.countdown, changes.queue.as_deref()), (Some(5.0), Some("other")));
    let made = retry::message(&sent, &request(&sent), &changes, None, now());
    let again = request(&made);
    assert_eq!((again.body.args.get(), again.body.kwargs.get()), (r#"[1,"two"]"#, r#"{"k":1}"#));
    assert_eq!(
        (made.headers["argsrepr"].as_str(), made.headers["kwargsrepr"].as_str()),
        (Some("(1, 'two')"), Some("{'k': 1}"))
    );
    assert_eq!((again.priority, made.properties.expiration.as_deref()), (7, Some("60000")));
    assert_eq!(again.time_limit, TimeLimit { hard: None, soft: Some(2.0) });
    assert!(!made.headers.contains_key("compression"));
    for wrong in [r#"{"args": {}}"#, r#"{"kwargs": []}"#, r#"{"countdown": "soon"}"#, "[]", "5"] {
        assert!(Asked::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_retry_of_protocol_1_is_of_protocol_2() {
    let sent = first("task/61_protocol_1");
    let made = retry::message(&sent, &request(&sent), &Changes::default(), None, now());
    let again = request(&made);
    assert_eq!((again.protocol, again.retries), (rtask_protocol::Protocol::Two, 1));
    assert_eq!((again.body.args.get(), made.headers["argsrepr"].as_str()), ("[2, 2]", Some("(2, 2)")));
}

/// A worker's message, without what is its own: fresh ids, its name, where rpc results go, and the setting of a task that
/// it knows.
fn comparable(message: &Message, id: &str, group: Option<&str>) -> Value {
    let mut headers = message.headers.clone();
    assert_eq!(headers["id"], id);
    for own in ["id", "lang", "ignore_result"] {
        headers.remove(own);
    }
    assert_eq!(headers["group"].as_str(), group);
    headers.remove("group");
    let mut properties = message.properties.clone();
    assert_eq!(properties.correlation_id.take().as_deref(), Some(id));
    properties.reply_to = None;
    json!([headers, properties, parts(message)])
}

fn id(message: &Message) -> &str {
    message.headers["id"].as_str().unwrap()
}

#[test]
fn callbacks_are_the_messages_that_celery_would_send() {
    for (scenario, result) in [("flow/16_link", "4"), ("flow/17_links_two", "4")] {
        let flow = messages(scenario);
        let read = request(&flow[0]);
        let callbacks = read.body.embed.callbacks().unwrap();
        let result: Box<serde_json::value::RawValue> = serde_json::from_str(result).unwrap();
        let followed = signature::callbacks(&callbacks, &parent(&read), &result, now()).unwrap();
        assert_eq!(followed.calls.len(), flow.len() - 1, "{scenario}");
        for (call, expected) in followed.calls.iter().zip(&flow[1..]) {
            let made = comparable(&call.message(now()), &call.id, call.group_id.as_deref());
            let golden = comparable(expected, id(expected), expected.headers["group"].as_str());
            assert_eq!(made, golden, "{scenario}");
        }
        match followed.child.unwrap() {
            Child::Task(id) => assert_eq!(id, followed.calls[0].id),
            Child::Group { id, members } => {
                assert!(followed.calls.iter().all(|call| call.group_id.as_deref() == Some(&id)));
                assert_eq!(members.len(), 2);
            }
        }
    }
}

#[test]
fn an_errback_that_takes_an_id_is_sent_in_a_group() {
    let flow = messages("flow/19_link_error_old");
    let read = request(&flow[0]);
    let errbacks = read.body.embed.errbacks().unwrap();
    let followed = signature::errbacks(&errbacks.iter().collect::<Vec<_>>(), &parent(&read), now()).unwrap();
    let call = &followed.calls[0];
    let made = comparable(&call.message(now()), &call.id, call.group_id.as_deref());
    assert_eq!(made, comparable(&flow[1], id(&flow[1]), flow[1].headers["group"].as_str()));
    assert!(signature::errbacks(&[], &parent(&read), now()).unwrap().calls.is_empty());
}

#[test]
fn an_errback_that_takes_more_is_told_all() {
    let read = request(&first("flow/19_link_error_old"));
    let errback = Signature::parse(r#"{"task": "on_err", "args": ["own"]}"#).unwrap();
    let exception = Exception::builtin("ValueError", "boom");
    let call = errback.errback(&parent(&read), &exception, Some("Traceback"), now()).unwrap();
    let args: Vec<Value> = call.args.iter().map(|argument| serde_json::from_str(argument.get()).unwrap()).collect();
    assert_eq!((&args[0]["id"], &args[0]["args"]), (&json!(read.id), &json!([])));
    assert_eq!(args[1], json!({"exc_type": "ValueError", "exc_message": ["boom"], "exc_module": "builtins"}));
    assert_eq!((&args[2], &args[3], args.len()), (&json!("Traceback"), &json!("own"), 4));
    assert_eq!(call.parent_id, Some(read.id));
}

#[test]
fn a_task_that_is_sent_by_a_task_knows_its_root_and_parent() {
    let flow = messages("flow/33_children");
    let read = request(&flow[0]);
    let call =
        Signature::parse(r#"{"task": "tasks.add", "args": [1, 1]}"#).unwrap().call(&parent(&read), now()).unwrap();
    let made = comparable(&call.message(now()), &call.id, None);
    assert_eq!(made, comparable(&flow[1], id(&flow[1]), None));
}

#[test]
fn options_of_a_signature_reach_its_message() {
    let read = request(&first("task/08_priority"));
    let signature = json!({"task": "t", "kwargs": {"x": 123456789012345678901234567890_f64}, "immutable": true, "options": {
        "countdown": 10, "expires": 60, "priority": 3, "queue": "q", "task_id": "mine", "shadow": "s", "time_limit": 5,
        "root_id": "elsewhere", "parent_id": "elsewhere", "reply_to": "me", "serializer": "yaml", "compression": "zstd",
        "headers": {"mine": 1}, "stamped_headers": ["a"], "a": "b", "link": {"task": "next"}, "link_error": [{"task": "no"}],
        "delivery_mode": 1, "ignore_result": true, "replaced_task_nesting": 2}});
    let signature = Signature::parse(&signature.to_string()).unwrap();
    let followed = signature::callbacks(&[signature], &parent(&read), &raw(&5), now()).unwrap();
    let call = &followed.calls[0];
    let made = call.message(now());
    let again = request(&made);
    assert_eq!((again.id.as_str(), call.queue.as_deref(), again.priority), ("mine", Some("q"), 3));
    assert_eq!((again.root_id, again.parent_id), (read.root_id.clone(), Some(read.id.clone())));
    assert_eq!(again.body.args.get(), "[]", "an immutable signature takes no result");
    assert_eq!(again.eta, Some(now() + SignedDuration::from_secs(10)));
    assert_eq!((made.properties.expiration.as_deref(), made.properties.delivery_mode), (Some("60000"), Some(1)));
    assert_eq!((again.stamps["a"].as_str(), again.custom_headers["mine"].as_i64()), (Some("b"), Some(1)));
    assert_eq!(again.body.embed.callbacks().unwrap()[0].task, "next");
    assert_eq!(again.body.embed.errbacks().unwrap()[0].task, "no");
    assert_eq!((again.shadow.as_deref(), again.reply_to.as_deref()), (Some("s"), Some("me")));
    assert_eq!((again.replaced_task_nesting, again.ignore_result), (2, Some(true)));
}

#[test]
fn a_priority_is_inherited_only_if_so_set() {
    let read = request(&first("task/08_priority"));
    let signature = Signature::parse(r#"{"task": "t", "options": {"priority": 1}}"#).unwrap();
    let plain = Signature::parse(r#"{"task": "t"}"#).unwrap();
    let inheriting = Parent { inherit_priority: true, ..parent(&read) };
    let priority = |signature: &Signature, parent: &Parent<'_>| {
        let followed = signature::callbacks(std::slice::from_ref(signature), parent, &raw(&1), now()).unwrap();
        (followed.calls[0].priority, signature.call(parent, now()).unwrap().priority)
    };
    assert_eq!(priority(&plain, &parent(&read)), (None, None));
    assert_eq!(priority(&plain, &inheriting), (Some(read.priority), Some(read.priority)));
    // A callback's own goes behind the parent's, a sent task's before it.
    assert_eq!(priority(&signature, &inheriting), (Some(read.priority), Some(1)));
}

/// Integers that no 64 bits hold, and numbers as they were spelled.
#[test]
fn a_result_reaches_its_callback_unchanged() {
    let read = request(&first("flow/16_link"));
    let result = "{\"n\": 123456789012345678901234567890, \"f\": 1.10}";
    let callbacks = read.body.embed.callbacks().unwrap();
    let result = serde_json::from_str(result).unwrap();
    let followed = signature::callbacks(&callbacks, &parent(&read), result, now()).unwrap();
    let message = followed.calls[0].message(now());
    assert_eq!(request(&message).body.args.get(), "[{\"n\": 123456789012345678901234567890, \"f\": 1.10},10]");
}
