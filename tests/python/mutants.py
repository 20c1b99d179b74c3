"""Messages that no client would send: captured ones (tests/vectors), each changed in one to three places by a seeded chance.

`publish_mutants` sends a batch, and `unaccounted` finds out what became of it. Both are told the same seed, so nothing
has to be kept in between.
"""

import base64
import copy
import json
import os
import random
import re
import reprlib
import sys
import zlib
from datetime import datetime, timezone
from decimal import Decimal

import amqp

from stage import BROKER, app, kombu, own, store

QUEUE, DEAD = "celery", "celery.dead"
PRIORITIES = ("", "\x06\x163", "\x06\x166", "\x06\x169")
# For what is nested deeper than Python likes.
sys.setrecursionlimit(6_000)
ON_REDIS = BROKER.startswith("redis")
READY = {"SUCCESS", "FAILURE", "REVOKED"}

with open(os.path.join(os.path.dirname(__file__), "..", "vectors", "task_messages.json")) as vectors:
    # Of a task that takes any arguments, so that what is still good runs.
    VECTORS = json.loads(re.sub(r"tasks\.\w+", "probe.echo_all", vectors.read()))


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def nested_objects(depth):
    value = {}
    for _ in range(depth):
        value = {"a": value}
    return value


# What stands where something else should.
EVIL = [
    None, True, False, 0, -1, 2**31, 2**63 - 1, -(2**63), 1.5, 1e300, "", " ", "x" * 300, "x" * 20_000, "\x00\x1b[31m", "\u202e",
    "NaN", "None", "-1", "2026-13-45T99:99:99", "9" * 400, [], [[]], [None, None, None], ["x", {}], {}, {"a": {"b": []}},
    {"task": "probe.echo_all"}, {"": None}, nested(50), nested_objects(90),
]  # fmt: skip
EVIL_IN_AMQP = [b"\xff\xfe", Decimal("1.5"), datetime(1970, 1, 1, tzinfo=timezone.utc), float("nan"), nested(2_000)]
EVIL_IN_JSON = [float("inf"), float("nan"), 2**200, nested(500)]
EVIL_NAMES = ["", "x" * 255, "\x00", "x-death", "x-rtask-death-code", "x-rtask-death-queue", "__proto__", "é" * 100]
EVIL_NAMES_IN_AMQP = [b"\xff\xfe"]

CONTENT_TYPES = [
    "application/x-python-serialize", "application/x-yaml", "application/x-msgpack", "application/data", "text/plain",
    "application/json; charset=klingon", "APPLICATION/JSON", "", "x" * 255, "\x00", None,
]  # fmt: skip
ENCODINGS = ["utf-16", "latin-1", "us-ascii", "binary", "base64", "klingon", "", "x" * 255, None]
COMPRESSIONS = ["application/x-gzip", "application/x-bz2", "application/zstd", "application/x-lzma", "gzip", "", 5, None]

BOMB = zlib.compress(zlib.compress(b"[" + b" " * (64 << 20) + b"]"))
YAML_BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 8)}]\n" for before, name in zip("abcdefgh", "bcdefghi")
)
BODIES = [
    b"", b" ", b"null", b"5", b'"x"', b"[]", b"{}", b"[[], {}]", b"[[], {}, {}, {}]", b"[{}, [], {}]", b"[[1], {}, []]",
    b"[[1], {}, null]", b"[[NaN], {}, {}]", b"[[1e400], {}, {}]", b"[[" + b"9" * 5_000 + b"], {}, {}]",
    b'[["\\ud800"], {}, {}]', b"[[\xff], {}, {}]", b'[[1], {"a": 1, "a": 2}, {}]', b'[[1], {"1": 2}, {"callbacks": 5}]',
    b"[" * 200_000, b"[" * 900 + b"]" * 900, b'{"a":' * 5_000, b"[[" + b"1," * 200_000 + b"1], {}, {}]",
    b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x93\x91\x01\x80\x80",
    b"- " * 50_000 + b"x", b"? " * 5_000, b"!!python/object/apply:os.system ['true']", b"- &a [*a]\n- {}\n- {}", b"--- x\n--- y",
    YAML_BOMB.encode(), zlib.compress(b"[" + b" " * (64 << 20) + b"]"), BOMB, BOMB[: len(BOMB) // 2],
    b'[["' + b"x" * (2 << 20) + b'"], {}, {}]', b"\x80\x04N.", b"\x00" * 1_000,
]  # fmt: skip


class Mutant:
    """One message with its mark. `what` tells how it was changed; `ids` are those under which its end may be stored."""

    def __init__(self, chance, token):
        self.chance, self.token = chance, token
        self.vector = copy.deepcopy(chance.choice(VECTORS))
        self.what = [token, self.vector["name"]]
        self.ids = {own(token)}
        self.headers, self.properties = self.vector["headers"], self.vector["properties"]
        body = self.vector.get("body")
        self.body = body.encode() if body is not None else base64.b64decode(self.vector["body_b64"])
        if "id" in self.headers:
            self.headers.update(id=own(token), root_id=own(token))
        elif self.body.startswith(b"{"):
            self.body = json.dumps({**json.loads(self.body), "id": own(token)}).encode()
        self.properties["correlation_id"] = own(token)
        for _ in range(chance.randint(1, 3)):
            mutate = chance.choice([self.header, self.header, self.content, self.damage, self.damage, self.tree, self.tree])
            mutate()
        self.mark()
        self.ids |= set(self.readable_ids())

    def mark(self):
        """Last of all, so that nothing changes it."""
        self.headers["x-mutant"] = self.token

    def readable_ids(self):
        """What a damaged id has become, where it is one still."""
        yield from id_in(self.headers)
        yield from id_in(parsed(self.body))

    def evil(self):
        return self.chance.choice(EVIL + (EVIL_IN_JSON if ON_REDIS else EVIL_IN_AMQP))

    def header(self):
        names = sorted(self.headers, key=repr)
        how = self.chance.choice(["drop", "swap", "swap", "swap", "add", "all"])
        if how == "all" or not names:
            self.headers.clear()
        elif how == "drop":
            self.told(how, name := self.chance.choice(names))
            del self.headers[name]
        elif how == "swap":
            name, value = self.chance.choice(names), self.evil()
            # What asks for no result would rightly leave none.
            if name != "ignore_result":
                self.told(how, name, value)
                self.headers[name] = value
        else:
            name = self.chance.choice(EVIL_NAMES if ON_REDIS else EVIL_NAMES + EVIL_NAMES_IN_AMQP)
            self.headers[name] = value = self.evil()
            self.told(how, name, value)

    def content(self):
        name, values = self.chance.choice([
            ("content_type", CONTENT_TYPES), ("content_encoding", ENCODINGS), ("compression", COMPRESSIONS),
        ])  # fmt: skip
        value = self.chance.choice(values)
        self.told(name, value)
        (self.headers if name == "compression" else self.properties)[name] = value

    def damage(self):
        """The body, without regard for what it means."""
        how = self.chance.choice(["cut", "flip", "insert", "twice", "other", "other"])
        body, at = bytearray(self.body), self.chance.randrange(len(self.body) + 1)
        if how == "cut":
            del body[at:]
        elif how == "flip" and body:
            body[at % len(body)] ^= 1 << self.chance.randrange(8)
        elif how == "insert":
            body[at:at] = self.chance.randbytes(self.chance.randint(1, 8))
        elif how == "twice":
            body = body * 2
        else:
            at = self.chance.randrange(len(BODIES))
            body = BODIES[at]
        self.told(how, at)
        self.body = bytes(body)

    def tree(self):
        """One value in a JSON body."""
        try:
            tree = json.loads(self.body)
            places = list(containers(tree))
            place = self.chance.choice(places)
            key = self.chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        except (ValueError, IndexError, RecursionError):
            return
        evil = self.chance.choice(EVIL + EVIL_IN_JSON)
        if key == "ignore_result":
            return
        place[key] = evil
        self.told("tree", key, evil)
        self.body = json.dumps(tree).encode()

    def told(self, *what):
        self.what.append(" ".join(reprlib.repr(part) for part in what))


class Entry(Mutant):
    """The same as an element of a Redis list: a kombu envelope, which can be damaged, too."""

    def mark(self):
        super().mark()
        properties = {
            **self.properties,
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "body_encoding": "base64",
            "delivery_tag": self.token,
        }
        self.envelope = {
            "mutant": self.token,
            "body": base64.b64encode(self.body).decode(),
            "content-encoding": properties.pop("content_encoding", None),
            "content-type": properties.pop("content_type", None),
            "headers": self.headers,
            "properties": properties,
        }
        self.raw = None
        if self.chance.random() < 0.5:
            self.chance.choice([self.envelope_part, self.envelope_part, self.envelope_bytes])()
        if self.raw is None:
            self.raw = json.dumps(self.envelope).encode()

    def readable_ids(self):
        envelope = parsed(self.raw)
        if isinstance(envelope, dict):
            yield from id_in(envelope.get("headers"))
            body = envelope.get("body")
            yield from id_in(parsed(decoded(body)) if isinstance(body, str) else body)

    def envelope_part(self):
        place = self.chance.choice([self.envelope, self.envelope["properties"], self.envelope["properties"]])
        key = self.chance.choice([key for key in place if key != "mutant"])
        if self.chance.random() < 0.3:
            del place[key]
            self.told("drop from the envelope", key)
        else:
            place[key] = evil = self.evil()
            self.told("swap in the envelope", key, evil)

    def envelope_bytes(self):
        raw = bytearray(json.dumps(self.envelope).encode())
        # Behind the mark.
        at = self.chance.randrange(raw.index(self.token.encode()) + len(self.token), len(raw))
        how = self.chance.choice(["cut", "flip", "insert", "text", "garbage", "nested"])
        if how == "cut":
            del raw[at:]
        elif how == "flip":
            raw[at] ^= 1 << self.chance.randrange(8)
        elif how == "insert":
            raw[at:at] = self.chance.randbytes(4)
        elif how == "text":
            raw = json.dumps(self.token).encode()
        elif how == "garbage":
            raw = self.token.encode() + self.chance.randbytes(200)
        else:
            raw = b'["' + self.token.encode() + b'",' + b"[" * 100_000
        self.told("envelope", how, at)
        self.raw = bytes(raw)


def parsed(text):
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def decoded(body):
    try:
        return base64.b64decode(body)
    except ValueError:
        return body


def id_in(fields):
    if isinstance(fields, dict) and isinstance(fields.get("id"), str):
        yield fields["id"]


def containers(tree):
    if isinstance(tree, (dict, list)):
        if tree:
            yield tree
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from containers(value)


def mutants(seed, count):
    chance = random.Random(seed)
    kind = Entry if ON_REDIS else Mutant
    return [kind(chance, f"mutant-{seed}-{number}-end") for number in range(count)]


def publish_mutants(seed, count):
    if ON_REDIS:
        for mutant in mutants(seed, count):
            store().lpush(QUEUE + mutant.chance.choice(PRIORITIES), mutant.raw)
        return
    with kombu.Connection(BROKER) as connection:
        kombu.Queue(QUEUE, kombu.Exchange(QUEUE), QUEUE, channel=connection.default_channel).declare()
    for mutant in mutants(seed, count):
        try:
            publish_mutant(mutant)
        except (amqp.exceptions.AMQPError, OSError) as error:
            # The server knows some of this itself, and takes no such message.
            print("refused by the server", mutant.what, error)
            store().sadd(f"refused-{seed}", mutant.token)


def publish_mutant(mutant):
    with kombu.Connection(BROKER, transport_options={"confirm_publish": True}) as connection:
        properties = {name: value for name, value in mutant.properties.items() if value is not None}
        message = amqp.Message(mutant.body, application_headers=mutant.headers, **properties)
        connection.channel().basic_publish(message, routing_key=QUEUE)


def letters():
    """Take all dead letters: their headers, and everything that is in them as text."""
    if ON_REDIS:
        client = app.connection_for_read().default_channel.client
        for priority in PRIORITIES:
            while raw := client.rpop(DEAD + priority):
                envelope = json.loads(raw)
                text = raw + base64.b64decode(envelope["body"])
                yield envelope["headers"], text.decode(errors="replace")
        return
    with kombu.Connection(BROKER) as connection:
        channel = connection.channel()
        kombu.Queue(DEAD, kombu.Exchange(DEAD), DEAD, channel=channel).declare()
        while message := channel.basic_get(DEAD, no_ack=True):
            body = message.body if isinstance(message.body, bytes) else message.body.encode(errors="replace")
            yield message.headers, repr((message.headers, message.properties)) + body.decode(errors="replace")


def unaccounted(seed, count):
    """What neither became a dead letter with a reason nor has a final state."""
    dead = list(letters())
    refused = store().smembers(f"refused-{seed}")
    reasonless = [text[:500] for headers, text in dead if not headers.get("x-rtask-death-reason")]
    lost = [
        mutant.what
        for mutant in mutants(seed, count)
        if mutant.token not in refused
        and not any(mutant.token in text for _, text in dead)
        and not any(map(has_ended, mutant.ids))
    ]
    return {"lost": lost, "reasonless": reasonless, "dead": len(dead), "refused": len(refused)}


def has_ended(task_id):
    key = task_id.encode("utf-8", "surrogatepass")
    record = store().get(b"celery-task-meta-" + key)
    return record is not None and json.loads(record)["status"] in READY
