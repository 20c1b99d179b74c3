"""A worker of Celery's own for the tests' stage: `celery -A peer worker`.

Its tasks have the names, and do the work, of some in tests/guests/probe, so that workers of both kinds can share a queue.
"""

import time

from stage import app

app.conf.task_acks_late = True


@app.task(name="probe.echo")
def echo(value):
    return value


@app.task(name="probe.tracked", bind=True, track_started=True)
def tracked(self, seconds, stuck_on=None):
    time.sleep(seconds)
    while self.request.hostname == stuck_on:
        time.sleep(1)
    return self.request.hostname


@app.task(name="probe.flaky", bind=True, max_retries=None)
def flaky(self, fails):
    if self.request.retries < fails:
        raise self.retry(exc=ValueError(f"{self.request.retries + 1} of {fails}"), countdown=0)
    return self.request.retries


@app.task(name="probe.always", bind=True, max_retries=2, default_retry_delay=0)
def always(self, cause=None, max_retries=None):
    raise self.retry(exc=ValueError(cause) if cause else None, max_retries=max_retries)


@app.task(name="probe.send")
def send(name, args=(), options=None, kwargs=None):
    return app.send_task(name, args=args, kwargs=kwargs, **(options or {})).id
