//! What bodies are made of.

use rtask_tests::Stage;
use serde_json::json;

facts![
    serializers_that_are_accepted_all_say_the_same,
    serializer_of_a_client_may_be_another_by_default,
    compressions_all_say_the_same,
    tagged_values_pass_through,
    numbers_keep_their_digits,
];

fn serializers_that_are_accepted_all_say_the_same(stage: &Stage) {
    stage.configure("accept_content = [\"json\", \"yaml\", \"msgpack\"]");
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
args, kwargs = [1, -1.5, "ü\n", None, True, [], {"a": [{}]}], {"k": "v", "no": False}
answer([app.send_task("probe.echo_all", args=args, kwargs=kwargs, serializer=serializer).get(timeout=WAIT)
        == [args, kwargs] for serializer in ("json", "yaml", "msgpack")])
"#,
    );
    assert_eq!(seen, json!([true, true, true]));
}

/// A retry, a callback and a parked message of it are read again.
fn serializer_of_a_client_may_be_another_by_default(stage: &Stage) {
    stage.configure("accept_content = [\"json\", \"msgpack\"]");
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
app.conf.task_serializer = "msgpack"
app.conf.task_compression = "zstd"
callback = app.signature("probe.echo_all", args=[1])
linked = app.send_task("probe.echo", args=["a"], link=callback)
linked.get(timeout=WAIT)
answer([app.send_task("probe.flaky", args=[1]).get(timeout=WAIT), linked.children[0].get(timeout=WAIT),
        app.send_task("probe.echo", args=["later"], countdown=1.5).get(timeout=WAIT)])
"#,
    );
    assert_eq!(seen, json!([1, [["a", 1], {}], "later"]));
}

fn compressions_all_say_the_same(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
text = "ü and so on, " * 10_000
answer([app.send_task("probe.echo", args=[text], compression=compression).get(timeout=WAIT) == text
        for compression in ("gzip", "zlib", "bzip2", "zstd")])
"#,
    );
    assert_eq!(seen, json!([true, true, true, true]));
}

/// kombu's JSON has a tag for what JSON cannot say (`kombu/utils/json.py`).
fn tagged_values_pass_through(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
import decimal, uuid
values = [datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc), datetime(2026, 1, 2).date(),
          decimal.Decimal("1.10"), uuid.uuid4(), b"bytes", b"\x00\xff"]
back = app.send_task("probe.echo_all", args=values, kwargs={"nested": {"in": values}}).get(timeout=WAIT)
answer([back[0] == values, back[1]["nested"]["in"] == values])
"#,
    );
    assert_eq!(seen, json!([true, true]));
}

/// Neither cut to 64 bits nor to a double's precision.
fn numbers_keep_their_digits(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
values = [2**63 - 1, -(2**63), 0.1, 1e-300, 12345678.12345678]
answer(app.send_task("probe.echo", args=[values]).get(timeout=WAIT) == values)
"#,
    );
    assert_eq!(seen, json!(true));
}
