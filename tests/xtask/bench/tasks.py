"""The Celery side of the bench: the function of examples/hello, in a prefork worker."""

import os

from celery import Celery

app = Celery("bench", broker=os.environ["BENCH_BROKER"], backend=os.environ["BENCH_BACKEND"])
app.conf.worker_prefetch_multiplier = int(os.environ["BENCH_PREFETCH_MULTIPLIER"])


@app.task(name="hello.add")
def add(x, y):
    return x + y
