"""What the scripts of tests start from: a Celery application for the broker and the backend of the test's stage.

A script ends with `answer(value)`. Nothing here knows of rtask: it is what any Celery client would write.
"""

import json
import os
import time

import kombu
import redis
from celery import Celery
from celery.exceptions import NotRegistered, TaskRevokedError, TimeoutError  # noqa: A004, F401 (for the scripts)

# Seconds; for whatever is sure to come.
WAIT = 120

BROKER = os.environ["STAGE_BROKER"]
BACKEND = os.environ["STAGE_BACKEND"]

app = Celery("client", broker=BROKER, backend=BACKEND)


def answer(value):
    """The script's result, as the last line of its output."""
    print(json.dumps(value))


def store():
    """The Redis behind the result backend."""
    return redis.Redis.from_url(BACKEND, decode_responses=True)


def record(task_id):
    """A stored result as it lies in Redis, with its time to live in seconds."""
    key = f"celery-task-meta-{task_id}"
    return {"record": json.loads(store().get(key)), "ttl": store().ttl(key)}


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


def publish(body, queue="celery", **properties):
    """A raw message."""
    with kombu.Connection(BROKER) as connection:
        kombu.Queue(queue, kombu.Exchange(queue), queue, channel=connection.default_channel).declare()
        producer = connection.Producer()
        producer.publish(body, routing_key=queue, **properties)


def take(queue):
    """Wait for the next message of a queue, take it out, and leave it undecoded."""
    with kombu.Connection(BROKER) as connection:
        waiting = kombu.Queue(queue, kombu.Exchange(queue), queue, channel=connection.default_channel)
        waiting.declare()
        taken = []
        wait_until(lambda: taken.append(waiting.get(no_ack=True)) or taken[-1])
        message = taken[-1]
        body = message.body
        return {
            "body": body.decode() if isinstance(body, bytes) else body,
            "headers": message.headers,
            "content_type": message.content_type,
        }
