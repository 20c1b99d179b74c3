"""The one client of the bench: it sends, and reads what is stored, in the same way whoever the worker is.

    client.py publish COUNT | drain COUNT LIMIT_SECONDS | latency COUNT

Each prints one JSON object. The broker and the result backend come from BENCH_BROKER and BENCH_BACKEND.
"""

import json
import os
import sys
import time
from datetime import datetime

import redis
from celery import Celery

BACKEND = os.environ["BENCH_BACKEND"]
# Round trips before the first that counts: connections, caches, first pages.
WARM_UP = 30
# How often the number of results is asked for; an answer costs the server microseconds.
GLANCE_SECONDS = 0.05
# Keys of one MGET.
CHUNK = 1000

app = Celery("bench", broker=os.environ["BENCH_BROKER"], backend=BACKEND)


def publish(count):
    """Forget all results and put `count` messages into the queue, for a worker that is to start later."""
    redis.Redis.from_url(BACKEND).flushdb()
    with app.producer_pool.acquire(block=True) as producer:
        for _ in range(count):
            app.send_task("hello.add", args=(2, 2), producer=producer)
    return {"published": count}


def drain(count, limit):
    """Wait until `count` results are stored; the rate from the first to the last by their own `date_done`."""
    store = redis.Redis.from_url(BACKEND)
    deadline = time.monotonic() + limit
    while store.dbsize() < count:
        if time.monotonic() > deadline:
            raise SystemExit(f"{store.dbsize()} of {count} results after {limit} s")
        time.sleep(GLANCE_SECONDS)
    records = stored_records(store)
    if len(records) != count:
        raise SystemExit(f"{len(records)} results, not {count}")
    wrong = [record for record in records if record["status"] != "SUCCESS" or record["result"] != 4]
    if wrong:
        raise SystemExit(f"{len(wrong)} wrong results, such as {wrong[0]}")
    done = sorted(datetime.fromisoformat(record["date_done"]) for record in records)
    return {"tasks_per_second": (count - 1) / (done[-1] - done[0]).total_seconds()}


def stored_records(store):
    keys = list(store.scan_iter("celery-task-meta-*", count=CHUNK))
    chunks = (store.mget(keys[start : start + CHUNK]) for start in range(0, len(keys), CHUNK))
    return [json.loads(record) for chunk in chunks for record in chunk]


def latency(count):
    """One task at a time: from `send_task` to the return of `get`."""
    times = []
    for _ in range(WARM_UP + count):
        started = time.perf_counter()
        app.send_task("hello.add", args=(2, 2)).get(timeout=30)
        times.append((time.perf_counter() - started) * 1e3)
    times = sorted(times[WARM_UP:])
    return {"p50_ms": quantile(times, 0.50), "p99_ms": quantile(times, 0.99)}


def quantile(ordered, part):
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)]


ACTIONS = {"publish": publish, "drain": drain, "latency": latency}

if __name__ == "__main__":
    print(json.dumps(ACTIONS[sys.argv[1]](*map(int, sys.argv[2:]))))
