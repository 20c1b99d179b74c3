"""What the scripts of tests start from: a Celery application for the broker and the backend of the test's stage.

A script ends with `answer(value)`. Nothing here knows of rtask: it is what any Celery client would write.
"""

import json
import os
import time
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone  # noqa: F401 (for the scripts)

import kombu
import redis
from celery import Celery
from celery.exceptions import (  # noqa: A004, F401 (for the scripts)
    MaxRetriesExceededError,
    NotRegistered,
    Reject,
    TaskRevokedError,
    TimeoutError,
    WorkerLostError,
)

# Seconds; for whatever is sure to come.
WAIT = 120

BROKER = os.environ["STAGE_BROKER"]
BACKEND = os.environ["STAGE_BACKEND"]
NAME = os.environ["STAGE_NAME"]

app = Celery("client", broker=BROKER, backend=BACKEND)
if BROKER.startswith("amqp"):
    # A script may end right after it has sent, and RabbitMQ may drop what a client that ends has not had confirmed.
    app.conf.broker_transport_options = {"confirm_publish": True}
if os.path.exists("celery.json"):
    with open("celery.json") as settings:
        app.conf.update(json.load(settings))
if app.conf.security_key:
    app.setup_security()


def answer(value):
    """The script's result, as the last line of its output."""
    print(json.dumps(value))


def own(name):
    """An id that no other test has: Redis announces results to all databases."""
    return f"{name}-{NAME}"


def now():
    return datetime.now(timezone.utc)


def store():
    """The Redis behind the result backend."""
    return redis.Redis.from_url(BACKEND, decode_responses=True, socket_timeout=WAIT)


def record(task_id):
    """A stored result as it lies in Redis, with its time to live in seconds."""
    key = f"celery-task-meta-{task_id}"
    return {"record": json.loads(store().get(key)), "ttl": store().ttl(key)}


def is_stored(task_id):
    return bool(store().exists(f"celery-task-meta-{task_id}"))


def done_at(result):
    """When a task was done, as its record says."""
    return datetime.fromisoformat(record(result.id)["record"]["date_done"])


@contextmanager
def announced(task_id):
    """What the backend announces of a task from here on, record after record."""
    with store().pubsub() as channel:
        channel.subscribe(f"celery-task-meta-{task_id}")
        # Until this confirmation, an announcement could be missed.
        assert channel.get_message(timeout=WAIT)["type"] == "subscribe"
        yield map(json.loads, messages(channel))


def messages(channel):
    while message := channel.get_message(timeout=WAIT):
        yield message["data"]
    raise AssertionError("nothing more was announced")


def raised(result):
    """The exception that `get` raises, in parts."""
    try:
        value = result.get(timeout=WAIT)
    except Exception as error:
        return {"type": type(error).__name__, "module": type(error).__module__, "args": list(error.args)}
    raise AssertionError(f"returned {value!r}")


def wait_until(condition):
    """For what nobody announces."""
    deadline = time.monotonic() + WAIT
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("waited in vain")
        time.sleep(0.01)


def told(command, *arguments, **options):
    """What the first worker answers to a command of remote control."""
    [reply] = getattr(app.control, command)(*arguments, **options, reply=True, limit=1, timeout=WAIT)
    [message] = reply.values()
    return message


def occupy():
    """A task that runs, and goes on until it is terminated."""
    nap = app.send_task("probe.nap", args=[3600])
    wait_until(lambda: nap.state == "NAPPING")
    return nap


def terminate(result):
    """End a task that runs."""
    assert told("revoke", result.id, terminate=True) == {"ok": f"terminate: {result.id}"}


def publish(body, queue="celery", **properties):
    """A raw message."""
    with kombu.Connection(BROKER) as connection:
        kombu.Queue(queue, kombu.Exchange(queue), queue, channel=connection.default_channel).declare()
        producer = connection.Producer()
        producer.publish(body, routing_key=queue, **properties)


def waiting(queue="celery"):
    """How many messages of a queue nobody holds."""
    with kombu.Connection(BROKER) as connection:
        try:
            declared = kombu.Queue(queue, channel=connection.default_channel).queue_declare(passive=True)
        except connection.channel_errors:
            return 0
        return declared.message_count


def take(queue):
    """Wait for the next message of a queue, take it out, and leave it undecoded."""
    with kombu.Connection(BROKER) as connection:
        channel = connection.default_channel
        kombu.Queue(queue, kombu.Exchange(queue), queue, channel=channel).declare()
        taken = []
        wait_until(lambda: taken.append(channel.basic_get(queue, no_ack=True)) or taken[-1])
        message = channel.message_to_python(taken[-1])
        body = message.body
        return {
            "body": body.decode(errors="replace") if isinstance(body, bytes) else body,
            "headers": message.headers,
            "content_type": message.content_type,
        }
