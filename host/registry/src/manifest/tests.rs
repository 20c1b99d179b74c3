use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A manifest with these tasks.
fn manifest(tasks: &Value) -> String {
    json!({ "module": "hello", "sdk": "rust/0.1.0", "tasks": tasks }).to_string()
}

/// A manifest with one task, `hello.add`, that also has these fields.
fn one_task(fields: &Value) -> String {
    let mut task = json!({ "name": "hello.add" });
    task.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    manifest(&json!([task]))
}

#[test]
fn everything_that_a_manifest_can_say_is_read() {
    let text = one_task(&json!({
        "doc": "Add.\n\tOr do not.",
        "parameters": [
            { "name": "x" },
            { "name": "y", "required": false, "default": null, "type": "Option<i64>" },
            { "name": "rest", "kind": "variadic", "required": false },
            { "name": "named", "kind": "keywords", "required": false },
        ],
        "options": {
            "acks_late": false, "acks_on_failure": false, "acks_on_timeout": false, "reject_on_worker_lost": false,
            "ignore_result": true, "store_errors_even_if_ignored": true, "track_started": true,
            "time_limit": 1.5, "soft_time_limit": 1, "memory": 1024,
            "max_retries": 5, "default_retry_delay": 0, "autoretry_for": ["ValueError", "shop.errors.Busy"],
            "dont_autoretry_for": ["KeyError"], "retry_backoff": 2, "retry_backoff_max": 60, "retry_jitter": false,
            "rate_limit": "10/m", "queue": "slow", "priority": 9, "expires": 60,
        },
    }));
    let manifest = Manifest::parse(&text).unwrap();
    let task = manifest.task("hello.add").unwrap();
    let kinds: Vec<_> = task.parameters.iter().map(|parameter| (parameter.kind, parameter.required)).collect();
    assert_eq!(
        kinds,
        [
            (ParameterKind::Normal, true),
            (ParameterKind::Normal, false),
            (ParameterKind::Variadic, false),
            (ParameterKind::Keywords, false),
        ]
    );
    assert_eq!(task.parameters[0].default, None);
    assert_eq!(task.parameters[1].default, Some(Value::Null), "null is a default");
    assert_eq!(task.parameters[1].type_name.as_deref(), Some("Option<i64>"));
    assert_eq!(
        task.options,
        TaskOptions {
            acks_late: Some(false),
            acks_on_failure: Some(false),
            acks_on_timeout: Some(false),
            reject_on_worker_lost: Some(false),
            ignore_result: Some(true),
            store_errors_even_if_ignored: Some(true),
            track_started: Some(true),
            time_limit: Some(1.5),
            soft_time_limit: Some(1.0),
            memory: Some(1024),
            max_retries: Some(MaxRetries::Times(5)),
            default_retry_delay: Some(0.0),
            autoretry_for: vec!["ValueError".to_owned(), "shop.errors.Busy".to_owned()],
            dont_autoretry_for: vec!["KeyError".to_owned()],
            retry_backoff: Some(2.0),
            retry_backoff_max: Some(60.0),
            retry_jitter: Some(false),
            rate_limit: Some("10/m".to_owned()),
            queue: Some("slow".to_owned()),
            priority: Some(9),
            expires: Some(60.0),
        }
    );
    assert_eq!(manifest.task("hello.sub"), None);

    let stored = serde_json::to_string(&manifest).unwrap();
    assert_eq!(Manifest::parse(&stored).unwrap(), manifest, "what is stored reads the same: {stored}");
}

#[test]
fn what_is_absent_stays_open() {
    let manifest = Manifest::parse(&one_task(&json!({ "doc": null }))).unwrap();
    let task = manifest.task("hello.add").unwrap();
    assert_eq!((&task.doc, &task.options), (&None, &TaskOptions::default()));
    assert!(task.parameters.is_empty());
}

#[test]
fn a_limit_of_retries_is_a_number_or_none() {
    let rows = [
        (json!({}), None),
        (json!({ "max_retries": null }), Some(MaxRetries::Unlimited)),
        (json!({ "max_retries": 0 }), Some(MaxRetries::Times(0))),
        (json!({ "max_retries": u32::MAX }), Some(MaxRetries::Times(u32::MAX))),
    ];
    for (options, expected) in rows {
        let manifest = Manifest::parse(&one_task(&json!({ "options": options }))).unwrap();
        assert_eq!(manifest.tasks[0].options.max_retries, expected, "{options}");
        let stored = serde_json::to_string(&manifest).unwrap();
        assert_eq!(Manifest::parse(&stored).unwrap(), manifest, "what is stored reads the same: {stored}");
    }
}

#[test]
fn a_backoff_is_wanted_or_has_a_factor() {
    let rows = [
        (json!({}), None),
        (json!({ "retry_backoff": false }), None),
        (json!({ "retry_backoff": true }), Some(1.0)),
        (json!({ "retry_backoff": 3 }), Some(3.0)),
        (json!({ "retry_backoff": 0.5 }), Some(0.5)),
    ];
    for (options, expected) in rows {
        let manifest = Manifest::parse(&one_task(&json!({ "options": options }))).unwrap();
        assert_eq!(manifest.tasks[0].options.retry_backoff, expected, "{options}");
    }
}

#[test]
fn rates_are_as_celery_writes_them() {
    for rate in ["10/s", "100/m", "1/h", "0.5/s", "10", "10/", "0", "0/m"] {
        Manifest::parse(&one_task(&json!({ "options": { "rate_limit": rate } })))
            .unwrap_or_else(|error| panic!("{rate}: {error}"));
    }
    for rate in ["", "/s", "ten/s", "-1/s", "1/d", "1/S", "1/s/s", "1 /s", "+1/s", "inf/s", "NaN", "1e3/s", "."]
        .map(str::to_owned)
        .into_iter()
        .chain(["9".repeat(21)])
    {
        let refused = Manifest::parse(&one_task(&json!({ "options": { "rate_limit": rate } }))).unwrap_err();
        assert!(refused.to_string().contains("such as `10/s`"), "{rate}: {refused}");
    }
}

#[test]
fn the_bounds_themselves_are_allowed() {
    let rows = [
        one_task(&json!({ "doc": "é".repeat(MAX_DOC) })),
        one_task(&json!({ "name": "n".repeat(MAX_NAME) })),
        one_task(&json!({ "options": { "time_limit": MAX_SECONDS, "memory": u64::MAX } })),
        one_task(&json!({ "options": {
            "soft_time_limit": MAX_SECONDS, "time_limit": MAX_SECONDS, "retry_backoff": MAX_SECONDS,
            "expires": MAX_SECONDS, "default_retry_delay": MAX_SECONDS, "retry_backoff_max": 0,
            "priority": 255, "queue": "q".repeat(MAX_NAME), "autoretry_for": vec!["e".repeat(MAX_NAME); MAX_EXCEPTIONS],
        } })),
        one_task(
            &json!({ "parameters": (0..MAX_PARAMETERS).map(|n| json!({ "name": n.to_string() })).collect::<Vec<_>>() }),
        ),
        manifest(&json!((0..MAX_TASKS).map(|n| json!({ "name": n.to_string() })).collect::<Vec<_>>())),
        one_task(&json!({ "name": "celery_like.übersetzen 任务" })),
    ];
    for text in rows {
        Manifest::parse(&text).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn a_text_that_is_no_manifest_is_refused_with_the_reason() {
    let tasks = |count: usize| (0..count).map(|n| json!({ "name": n.to_string() })).collect::<Vec<_>>();
    let module = |name: &str| json!({ "module": name, "sdk": "s", "tasks": [{ "name": "a" }] }).to_string();
    let rows = [
        (String::new(), "EOF"),
        ("null".to_owned(), "expected struct"),
        ("{}".to_owned(), "missing field `module`"),
        ("\u{1b}[2J".to_owned(), "expected value"),
        ("[".repeat(100_000), "line 1"),
        (" ".repeat(MAX_SIZE + 1), "1048577 bytes, more than the 1048576 allowed"),
        (manifest(&json!([])), "it has no tasks"),
        (manifest(&json!({})), "expected a sequence"),
        (manifest(&json!(tasks(MAX_TASKS + 1))), "1001 tasks, more than the 1000 allowed"),
        (manifest(&json!([{ "name": "a" }])) + "x", "trailing characters"),
        (module(""), "cannot name a module"),
        (module("../etc"), "`../etc` cannot name a module"),
        (module("a:b"), "cannot name a module"),
        (module("é"), "cannot name a module"),
        (module(&"m".repeat(65)), "cannot name a module"),
        (module("a\u{1b}[2J"), "`a\\u{1b}[2J` cannot name a module"),
        (
            json!({ "module": "m", "sdk": "s".repeat(65), "tasks": [{ "name": "a" }] }).to_string(),
            "the SDK's name is longer",
        ),
        (
            json!({ "module": "m", "sdk": "s\n", "tasks": [{ "name": "a" }] }).to_string(),
            "the SDK's name holds control",
        ),
        (
            json!({ "module": "m", "sdk": "s", "tasks": [{ "name": "a" }], "x\u{7}": 1 }).to_string(),
            "unknown field `x\\u{7}`",
        ),
        (r#"{"module":"m","module":"n","sdk":"s","tasks":[{"name":"a"}]}"#.to_owned(), "duplicate field"),
    ];
    for (text, reason) in rows {
        let error = Manifest::parse(&text).unwrap_err().to_string();
        assert!(error.contains(reason), "{error} does not say {reason}");
        assert!(error.starts_with("the manifest is refused: "), "{error}");
        assert!(!error.contains(char::is_control) && error.len() < 2_000, "{error:?}");
    }
}

#[test]
fn a_task_that_is_none_is_refused_by_name_with_the_reason() {
    let parameters = |count: usize| (0..count).map(|n| json!({ "name": n.to_string() })).collect::<Vec<_>>();
    let rows = [
        (json!({ "doc": "d".repeat(MAX_DOC + 1) }), "its doc is longer than the 10000 characters allowed"),
        (json!({ "doc": "\u{1b}]0;x\u{7}" }), "its doc holds control"),
        (json!({ "doc": 1 }), "invalid type"),
        (json!({ "parameters": parameters(MAX_PARAMETERS + 1) }), "256 parameters, more than the 255 allowed"),
        (json!({ "parameters": [{ "name": "" }] }), "a parameter's name is empty"),
        (json!({ "parameters": [{ "name": "p\n" }] }), "a parameter's name holds control"),
        (json!({ "parameters": [{ "name": "p".repeat(256) }] }), "a parameter's name is longer"),
        (json!({ "parameters": [{ "name": "p" }, { "name": "p" }] }), "the parameter `p` is named twice"),
        (json!({ "parameters": [{ "name": "p", "kind": "secret" }] }), "unknown variant `secret`"),
        (json!({ "parameters": [{ "name": "p", "type": null }] }), "invalid type: null"),
        (json!({ "parameters": [{ "name": "p", "type": "\u{0}" }] }), "a parameter's type holds control"),
        (json!({ "parameters": [{ "name": "p", "required": 1 }] }), "invalid type"),
        (json!({ "parameters": null }), "invalid type"),
        (json!({ "options": null }), "invalid type"),
        (json!({ "options": { "acks_late": null } }), "invalid type: null"),
        (json!({ "options": { "acks_late": "yes" } }), "invalid type"),
        (json!({ "options": { "retries": 3 } }), "unknown field `retries`"),
        (json!({ "options": { "time_limit": 0 } }), "a time limit of 0 seconds"),
        (json!({ "options": { "time_limit": -1.5 } }), "a time limit of -1.5 seconds"),
        (json!({ "options": { "time_limit": 1e300 } }), "at most 31536000"),
        (json!({ "options": { "time_limit": "1" } }), "invalid type"),
        (json!({ "options": { "soft_time_limit": 0 } }), "a soft time limit of 0 seconds"),
        (json!({ "options": { "soft_time_limit": 2, "time_limit": 1 } }), "a soft time limit of 2 seconds is over"),
        (json!({ "options": { "max_retries": -1 } }), "invalid value"),
        (json!({ "options": { "max_retries": 1.5 } }), "invalid type"),
        (json!({ "options": { "max_retries": 4294967296_u64 } }), "invalid value"),
        (json!({ "options": { "default_retry_delay": -1 } }), "a default retry delay of -1 seconds is not 0 or above"),
        (json!({ "options": { "retry_backoff": 0 } }), "a retry backoff of 0 seconds"),
        (json!({ "options": { "retry_backoff": null } }), "expected true, false or a number"),
        (json!({ "options": { "retry_backoff": "2" } }), "expected true, false or a number"),
        (json!({ "options": { "retry_backoff_max": 1e9 } }), "a longest retry backoff of 1000000000 seconds"),
        (json!({ "options": { "autoretry_for": "ValueError" } }), "invalid type"),
        (json!({ "options": { "autoretry_for": null } }), "invalid type"),
        (json!({ "options": { "autoretry_for": [""] } }), "an exception's name is empty"),
        (json!({ "options": { "dont_autoretry_for": ["a\u{202e}"] } }), "an exception's name holds control"),
        (json!({ "options": { "dont_autoretry_for": ["e".repeat(256)] } }), "an exception's name is longer"),
        (
            json!({ "options": { "autoretry_for": vec!["E"; MAX_EXCEPTIONS + 1] } }),
            "101 exceptions in autoretry_for, more than the 100 allowed",
        ),
        (json!({ "options": { "rate_limit": "\u{1b}[2J" } }), "the rate limit `\\u{1b}[2J` is not"),
        (json!({ "options": { "rate_limit": 10 } }), "invalid type"),
        (json!({ "options": { "queue": "" } }), "its queue's name is empty"),
        (json!({ "options": { "queue": "a\n" } }), "its queue's name holds control"),
        (json!({ "options": { "priority": 256 } }), "invalid value"),
        (json!({ "options": { "priority": -1 } }), "invalid value"),
        (json!({ "options": { "expires": 0 } }), "an expiry of 0 seconds"),
        (json!({ "options": { "memory": 0 } }), "a memory limit of 0 bytes"),
        (json!({ "options": { "memory": -1 } }), "invalid value"),
        (json!({ "options": { "memory": 1.5 } }), "invalid type"),
        (json!({ "unknown": 1 }), "unknown field `unknown`"),
    ];
    for (fields, reason) in rows {
        let error = Manifest::parse(&one_task(&fields)).unwrap_err().to_string();
        assert!(error.contains(reason), "{error} does not say {reason}");
        assert!(error.starts_with("the manifest's task `hello.add` is refused: "), "{error}");
    }
}

#[test]
fn a_task_name_that_could_mislead_is_refused() {
    let rows = [
        (json!(""), "number 1", "its name is empty"),
        (json!(7), "number 1", "invalid type"),
        (json!("n".repeat(256)), "nnn…`", "longer than the 255 bytes"),
        (json!("é".repeat(128)), "ééé`", "longer than the 255 bytes"),
        (json!("a\u{1b}[2Jb"), "`a\\u{1b}[2Jb`", "control or invisible"),
        (json!("a\u{202e}b"), "`a\\u{202e}b`", "control or invisible"),
        (json!("a\u{200b}b"), "`a\\u{200b}b`", "control or invisible"),
        (json!("celery.chord"), "`celery.chord`", "Celery's own"),
    ];
    for (name, label, reason) in rows {
        let error = Manifest::parse(&one_task(&json!({ "name": name }))).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains(label), "{error} does not say {label}, {reason}");
        assert!(!error.contains(char::is_control), "{error:?}");
    }
}

#[test]
fn a_name_twice_is_refused() {
    let error = Manifest::parse(&manifest(&json!([{ "name": "a" }, { "name": "b" }, { "name": "a" }]))).unwrap_err();
    assert_eq!(error.to_string(), "the manifest's task `a` is refused: the task is named twice");
    let twice = r#"{"module":"m","sdk":"s","tasks":[{"name":"a","name":"b"}]}"#;
    let error = Manifest::parse(twice).unwrap_err().to_string();
    assert!(error.contains("number 1") && error.contains("duplicate field `name`"), "{error}");
}

#[test]
fn a_default_that_is_nested_too_deep_to_be_stored_is_refused() {
    let with_default = |levels: usize| {
        let default = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        one_task(&json!({ "parameters": [{ "name": "p", "default": 1 }] }))
            .replace(r#""default":1"#, &format!(r#""default":{default}"#))
    };
    let rows = [(MAX_DEPTH + 1, "parameter `p` is nested deeper"), (120, "nested deeper"), (10_000, "recursion limit")];
    for (levels, reason) in rows {
        let error = Manifest::parse(&with_default(levels)).unwrap_err().to_string();
        assert!(error.contains("`hello.add`") && error.contains(reason), "{error} does not say {reason}");
    }
    Manifest::parse(&with_default(MAX_DEPTH)).unwrap();
}

#[test]
fn changes_name_what_a_deploy_would_change() {
    let parse = |tasks: Value| Manifest::parse(&manifest(&tasks)).unwrap();
    let before = parse(json!([
        { "name": "same", "options": { "memory": 1 } },
        { "name": "gone" },
        { "name": "limited", "options": { "time_limit": 1.0, "acks_late": true } },
        { "name": "retried", "options": { "retry_backoff": 1, "autoretry_for": ["KeyError"], "rate_limit": "1/s" } },
        { "name": "called", "parameters": [{ "name": "x" }] },
    ]));
    let after = parse(json!([
        { "name": "new" },
        { "name": "limited", "options": { "time_limit": 2.0, "memory": 5 } },
        { "name": "called", "parameters": [{ "name": "x" }, { "name": "y" }] },
        { "name": "retried", "options": { "retry_backoff": true, "max_retries": null, "rate_limit": "2/s" } },
        { "name": "same", "doc": "Said better.", "options": { "memory": 1 } },
    ]));
    let changes = after.changes_since(&before);
    let option = |option: &str, before: Option<Value>, after: Option<Value>| OptionChange {
        option: option.to_owned(),
        before,
        after,
    };
    assert_eq!((&changes.added, &changes.removed), (&vec!["new".to_owned()], &vec!["gone".to_owned()]));
    assert_eq!(
        changes.changed,
        [
            TaskChange { task: "called".to_owned(), parameters: true, options: vec![] },
            TaskChange {
                task: "limited".to_owned(),
                parameters: false,
                options: vec![
                    option("acks_late", Some(json!(true)), None),
                    option("memory", None, Some(json!(5))),
                    option("time_limit", Some(json!(1.0)), Some(json!(2.0))),
                ],
            },
            TaskChange {
                task: "retried".to_owned(),
                parameters: false,
                options: vec![
                    option("autoretry_for", Some(json!(["KeyError"])), None),
                    option("max_retries", None, Some(Value::Null)),
                    option("rate_limit", Some(json!("1/s")), Some(json!("2/s"))),
                ],
            },
        ]
    );
    let endless = serde_json::to_value(&changes.changed[2].options[1]).unwrap();
    assert_eq!(endless, json!({ "option": "max_retries", "after": null }), "the default is absent, no end is null");
    assert!(before.changes_since(&before).is_empty());
}

/// JSON that is close to a manifest, so that chance reaches past the first check.
fn nearly_a_manifest() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ];
    let key = prop_oneof![
        proptest::sample::select(vec![
            "module",
            "sdk",
            "tasks",
            "name",
            "doc",
            "parameters",
            "options",
            "kind",
            "required",
            "default",
            "type",
            "acks_late",
            "time_limit",
            "memory",
            "max_retries",
            "autoretry_for",
            "retry_backoff",
            "rate_limit",
            "queue",
        ])
        .prop_map(str::to_owned),
        ".{0,5}",
    ];
    leaf.prop_recursive(5, 60, 8, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(key.clone(), inner, 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_text_makes_parse_panic(text in "\\PC*") {
        let _ = Manifest::parse(&text);
    }

    #[test]
    fn what_is_read_is_within_bounds_and_reads_again(fields in nearly_a_manifest(), name in ".{0,10}") {
        let options = json!({ "name": name, "parameters": [{ "name": name, "default": fields }] });
        for text in [fields.to_string(), manifest(&fields), manifest(&json!([fields])), manifest(&json!([options]))] {
            match Manifest::parse(&text) {
                Ok(manifest) => {
                    let stored = serde_json::to_string(&manifest).unwrap();
                    prop_assert_eq!(Manifest::parse(&stored), Ok(manifest));
                }
                Err(error) => prop_assert!(!error.to_string().contains(char::is_control), "{:?}", error),
            }
        }
    }
}
