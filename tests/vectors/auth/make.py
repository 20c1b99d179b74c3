"""Makes what is beside it: keys, certificates, and what Celery 5.7.0 publishes when it signs with them.

    python make.py    (with celery[auth,yaml,msgpack] installed)

The keys are for tests alone: they are public. All certificates but `expired.pem` are valid until 2126.
"""

import base64
import datetime
import json

import kombu
from celery import Celery
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from kombu.serialization import registry

FROM, UNTIL = datetime.datetime(2026, 1, 1), datetime.datetime(2126, 1, 1)
PASSWORD = "open sesame"


def write(name, data):
    with open(name, "wb") as file:
        file.write(data)


def new_key(name):
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    write(f"{name}.key", private(key, serialization.PrivateFormat.PKCS8))
    return key


def private(key, form, encryption=None):
    return key.private_bytes(serialization.Encoding.PEM, form, encryption or serialization.NoEncryption())


def certify(file, name, key, serial, start=FROM, end=UNTIL):
    parts = [(NameOID.COUNTRY_NAME, "AT"), (NameOID.ORGANIZATION_NAME, "rtask tests, Übung"), (NameOID.COMMON_NAME, name)]
    name = x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(serial).not_valid_before(start).not_valid_after(end)
    write(file, builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def capture(digest, serializer, **options):
    """The messages of a task and of a broadcast."""
    app = Celery("client", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(
        task_serializer="auth", accept_content=["auth"], security_key="signer.key",
        security_certificate="signer.pem", security_cert_store="signer.pem")
    # It passes over `security_digest`.
    app.setup_security(serializer=serializer, digest=digest)
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        for queue, exchange in [("celery", kombu.Exchange("celery", "direct")),
                                ("pidbox", kombu.Exchange("celery.pidbox", "fanout", durable=False))]:
            kombu.Queue(queue, exchange, queue, channel=channel).declare()
        app.send_task("tasks.echo", args=[1, "é", None], kwargs={"k": [1, 2]}, task_id="signed", ignore_result=True,
                      connection=connection, **options)
        app.control.broadcast("rate_limit", {"task_name": "tasks.echo", "rate_limit": "1/m"}, connection=connection)
        return [told(channel, queue) for queue in ("celery", "pidbox")]


def told(channel, queue):
    message = channel._get(queue)
    properties = {name: value for name, value in message["properties"].items()
                  if name in ("delivery_mode", "priority", "correlation_id")}
    properties |= {"content_type": message["content-type"], "content_encoding": message["content-encoding"]}
    headers = {name: "gen<PID>@<HOST>" if name == "origin" else value for name, value in message["headers"].items()}
    # Which the transport packs in base64 whatever it is.
    body = base64.b64decode(message["body"])
    as_body = {"body_base64": message["body"]} if "compression" in headers else {"body": body.decode()}
    return {"properties": properties, "headers": headers, **as_body}


def scenario(name, what, digest, serializer, **options):
    with open(f"{name}.json", "w") as file:
        messages = capture(digest, serializer, **options)
        json.dump({"what": what, "messages": messages}, file, indent=2, ensure_ascii=False)
        file.write("\n")


def main():
    signer, stranger = new_key("signer"), new_key("stranger")
    encryption = serialization.BestAvailableEncryption(PASSWORD.encode())
    write("signer.locked.key", private(signer, serialization.PrivateFormat.PKCS8, encryption))
    write("signer.pkcs1.key", private(signer, serialization.PrivateFormat.TraditionalOpenSSL))
    # Beyond what a machine's integer holds, as certificates' numbers are.
    serial = 0x7A_0123456789ABCDEF_0123456789ABCDEF
    certify("signer.pem", "signer", signer, serial)
    certify("stranger.pem", "stranger", stranger, 2)
    # The signer's name and number, but not its key.
    certify("impostor.pem", "signer", stranger, serial)
    certify("expired.pem", "expired", signer, 3, datetime.datetime(2000, 1, 1), datetime.datetime(2001, 1, 1))
    scenario("json", "setup_security(), as it is by default", "sha256", "json")
    scenario("yaml", "setup_security(serializer='yaml', digest='sha384'), gzip", "sha384", "yaml", compression="gzip")
    scenario("msgpack", "setup_security(serializer='msgpack', digest='sha512')", "sha512", "msgpack")
    scenario("pickle", "setup_security(serializer='pickle')", "sha256", "pickle")


if __name__ == "__main__":
    main()
