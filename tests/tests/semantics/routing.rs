//! Which queue a message goes to, and how queues and exchanges are made.

use rtask_tests::{Stage, servers::rabbitmqctl};
use serde_json::json;

facts![
    names_of_queue_exchange_and_routing_key_are_celery,
    names_of_the_default_queue_follow_the_settings,
    queues_of_a_worker_are_those_it_names,
    queues_that_are_excluded_are_left_alone,
    direct_exchange_leads_by_its_routing_key,
    topic_exchange_leads_by_patterns,
    fanout_exchange_leads_to_every_queue,
    task_routes_of_the_client_are_heeded,
    task_routes_of_the_worker_lead_the_tasks_that_its_tasks_send,
    worker_direct_reaches_one_worker,
];

/// The client makes the same queue, and publishes to the default exchange or to the named one.
fn names_of_queue_exchange_and_routing_key_are_celery(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
plain = app.send_task("probe.request").get(timeout=WAIT)["delivery_info"]
exchange = kombu.Exchange("celery", "direct")
named = app.send_task("probe.request", exchange=exchange, routing_key="celery").get(timeout=WAIT)["delivery_info"]
answer([plain["routing_key"], named["exchange"], named["routing_key"]])
"#,
    );
    assert_eq!(seen, json!(["celery", "celery", "celery"]));
}

fn names_of_the_default_queue_follow_the_settings(stage: &Stage) {
    stage.configure("task_default_queue = \"mine\"");
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
app.conf.task_default_queue = "mine"
answer(app.send_task("probe.request").get(timeout=WAIT)["delivery_info"]["routing_key"])
"#,
    );
    assert_eq!(seen, json!("mine"));
}

fn queues_of_a_worker_are_those_it_names(stage: &Stage) {
    let _both = stage.probe(&["-c", "1", "-Q", "a,b"]);
    let seen = stage.celery(
        r#"
left = app.send_task("probe.echo", args=["c"], queue="c")
values = [app.send_task("probe.echo", args=[queue], queue=queue).get(timeout=WAIT) for queue in "aab"]
answer([values, waiting("c"), left.state])
"#,
    );
    assert_eq!(seen, json!([["a", "a", "b"], 1, "PENDING"]));
    let _third = stage.worker("w2", &["-c", "1", "-Q", "c"]);
    assert_eq!(stage.celery(r#"wait_until(lambda: not waiting("c")); answer(waiting("c"))"#), json!(0));
}

fn queues_that_are_excluded_are_left_alone(stage: &Stage) {
    stage.configure("task_queues = [\"a\", \"b\"]");
    let _worker = stage.probe(&["-c", "1", "-X", "b"]);
    let seen = stage.celery(
        r#"
app.send_task("probe.echo", args=["b"], queue="b")
answer([app.send_task("probe.echo", args=["a"], queue="a").get(timeout=WAIT), waiting("b")])
"#,
    );
    assert_eq!(seen, json!(["a", 1]));
}

/// An exchange of each kind, and what is bound to it.
const EXCHANGES: &str = r#"
[task_queues.small]
exchange = "sizes"
routing_key = "size.small"

[task_queues.sport]
exchange = "news"
exchange_type = "topic"
routing_key = "news.sport.#"

[task_queues.all-news]
exchange = "news"
exchange_type = "topic"
routing_key = "news.#"

[task_queues.first]
exchange = "everyone"
exchange_type = "fanout"

[task_queues.second]
exchange = "everyone"
exchange_type = "fanout"
"#;

/// The worker consumes one queue; what the others get, stays there.
fn direct_exchange_leads_by_its_routing_key(stage: &Stage) {
    stage.configure(EXCHANGES);
    let _worker = stage.probe(&["-c", "1", "-Q", "small"]);
    let seen = stage.celery(
        r#"
exchange = kombu.Exchange("sizes", "direct")
app.send_task("probe.echo", args=[0], exchange=exchange, routing_key="size.large")
value = app.send_task("probe.request", exchange=exchange, routing_key="size.small").get(timeout=WAIT)
answer(value["delivery_info"])
"#,
    );
    assert_eq!((&seen["exchange"], &seen["routing_key"]), (&json!("sizes"), &json!("size.small")));
}

fn topic_exchange_leads_by_patterns(stage: &Stage) {
    stage.configure(EXCHANGES);
    let _sport = stage.probe(&["-c", "1", "-Q", "sport"]);
    let _all = stage.worker("w2", &["-c", "2", "-Q", "all-news"]);
    let seen = stage.celery(
        r#"
exchange = kombu.Exchange("news", "topic")
with announced(own("football")) as records:
    app.send_task("probe.tracked", args=[3600], exchange=exchange, routing_key="news.sport.football",
                  declare=[exchange], task_id=own("football"))
    started = [next(records)["result"]["hostname"] for worker in range(2)]
weather = app.send_task("probe.tracked", args=[0], exchange=exchange, routing_key="news.weather", declare=[exchange])
answer([sorted(started), weather.get(timeout=WAIT)])
"#,
    );
    assert_eq!(seen, json!([["w1@localhost", "w2@localhost"], "w2@localhost"]));
}

fn fanout_exchange_leads_to_every_queue(stage: &Stage) {
    stage.configure(EXCHANGES);
    let _first = stage.probe(&["-c", "1", "-Q", "first"]);
    let _second = stage.worker("w2", &["-c", "1", "-Q", "second"]);
    let seen = stage.celery(
        r#"
exchange = kombu.Exchange("everyone", "fanout")
with announced(own("news")) as records:
    app.send_task("probe.tracked", args=[3600], exchange=exchange, routing_key="any", declare=[exchange],
                  task_id=own("news"))
    answer(sorted(next(records)["result"]["hostname"] for worker in range(2)))
"#,
    );
    assert_eq!(seen, json!(["w1@localhost", "w2@localhost"]));
}

fn task_routes_of_the_client_are_heeded(stage: &Stage) {
    let _worker = stage.probe(&["-c", "1", "-Q", "celery,feeds"]);
    let seen = stage.celery(
        r#"
app.conf.task_routes = {"probe.req*": {"queue": "feeds", "priority": 2}}
request = app.send_task("probe.request").get(timeout=WAIT)
answer([request["delivery_info"]["routing_key"], request["priority"]])
"#,
    );
    assert_eq!(seen, json!(["feeds", 2]));
}

fn task_routes_of_the_worker_lead_the_tasks_that_its_tasks_send(stage: &Stage) {
    stage.configure("task_routes = { \"probe.req*\" = { queue = \"feeds\", priority = 2 } }");
    let _worker = stage.probe(&["-c", "1", "-Q", "celery,feeds"]);
    let seen = stage.celery(
        r#"
sender = app.send_task("probe.send", args=["probe.request"])
request = app.AsyncResult(sender.get(timeout=WAIT)).get(timeout=WAIT)
answer([request["delivery_info"]["routing_key"], request["priority"]])
"#,
    );
    assert_eq!(seen, json!(["feeds", 2]));
}

fn worker_direct_reaches_one_worker(stage: &Stage) {
    stage.configure("worker_direct = true");
    let _first = stage.probe(&["-c", "1"]);
    let _second = stage.worker("w2", &["-c", "1"]);
    let seen = stage.celery(
        r#"
from celery.utils.nodenames import worker_direct
second = worker_direct("w2@localhost")
values = {app.send_task("probe.tracked", args=[0], queue=second).get(timeout=WAIT) for number in range(4)}
answer([second.name, list(values)])
"#,
    );
    assert_eq!(seen, json!(["w2@localhost.dq2", ["w2@localhost"]]));
}

/// kombu's Redis transport has no such exchange.
#[test]
fn headers_exchange_leads_by_headers_on_rabbitmq() {
    let stage = Stage::servers();
    stage.configure(
        r#"
[task_queues.red]
bindings = [{ exchange = "kinds", exchange_type = "headers", arguments = { x-match = "all", colour = "red" } }]
"#,
    );
    let _worker = stage.probe(&["-c", "1", "-Q", "red"]);
    let seen = stage.celery(
        r#"
exchange = kombu.Exchange("kinds", "headers")
blue = app.send_task("probe.echo", args=["blue"], exchange=exchange, routing_key="any", headers={"colour": "blue"})
red = app.send_task("probe.echo", args=["red"], exchange=exchange, routing_key="any", headers={"colour": "red"})
answer([red.get(timeout=WAIT), blue.state])
"#,
    );
    assert_eq!(seen, json!(["red", "PENDING"]));
}

/// The order in which tasks of these priorities are done that wait together for one place.
const ORDER: &str = r#"
def order(priorities):
    nap = occupy()
    results = [app.send_task("probe.echo", args=[priority], priority=priority) for priority in priorities]
    wait_until(lambda: waiting() == len(results))
    terminate(nap)
    values = [result.get(timeout=WAIT) for result in results]
    return [value for _, value in sorted((done_at(result), value) for result, value in zip(results, values))]
"#;

#[test]
fn priorities_on_rabbitmq_are_those_of_the_queue() {
    let stage = Stage::servers();
    stage.configure("task_queue_max_priority = 10");
    let _worker = stage.probe(&["-c", "1", "--disable-prefetch"]);
    let order = stage.celery(&format!(
        r#"{ORDER}
app.conf.task_queue_max_priority = 10
answer(order([0, 5, 9, 0, 5, 9]))
"#
    ));
    assert_eq!(order, json!([9, 9, 5, 5, 0, 0]));
}

/// The lowest first, in steps of three (golden/02_redis_transport/19_priorities_consume.json).
#[test]
fn priorities_on_redis_are_kombus_steps() {
    let stage = Stage::redis();
    let _worker = stage.probe(&["-c", "1", "--disable-prefetch"]);
    let order = stage.celery(&format!("{ORDER}answer(order([9, 5, 0, 3, 9, 4]))"));
    assert_eq!(order, json!([0, 5, 3, 4, 9, 9]));
}

#[test]
fn quorum_queues_are_consumed_and_count_their_deliveries() {
    let stage = Stage::servers();
    stage.configure("task_default_queue_type = \"quorum\"\ndelivery_limit = 3");
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
app.conf.task_default_queue_type = "quorum"
value = app.send_task("probe.echo", args=[1]).get(timeout=WAIT)
retried = app.send_task("probe.flaky", args=[2]).get(timeout=WAIT)
rejected = app.send_task("probe.reject", args=[True])
raised(rejected)
answer([value, retried, take("celery.dead")["headers"]["x-rtask-death-attempts"]])
"#,
    );
    assert_eq!(seen, json!([1, 2, 3]));
    let virtual_host = stage.broker.rsplit('/').next().unwrap_or_default();
    let queues = rabbitmqctl(&["list_queues", "--vhost", virtual_host, "name", "type"]);
    assert!(queues.lines().any(|queue| queue.starts_with("celery\t") && queue.ends_with("quorum")), "{queues}");
}

/// The client itself parks it (golden/01b_native_delayed_delivery/02_countdown_3s.json).
#[test]
fn quorum_queues_take_what_celery_delayed_natively() {
    let stage = Stage::servers();
    stage.configure("task_default_queue_type = \"quorum\"\ntask_default_exchange_type = \"topic\"");
    let _worker = stage.probe(&["-c", "1"]);
    let seen = stage.celery(
        r#"
app.conf.update(task_default_queue_type="quorum", task_default_exchange_type="topic",
                broker_native_delayed_delivery_queue_type="quorum")
sent = now()
held = app.send_task("probe.echo", args=[1], countdown=2)
at_once = app.send_task("probe.echo", args=[2]).get(timeout=WAIT)
answer({"at_once": at_once, "held": held.get(timeout=WAIT), "early": done_at(held) < sent + timedelta(seconds=2)})
"#,
    );
    assert_eq!(seen, json!({ "at_once": 2, "held": 1, "early": false }));
}
