"""The way to RabbitMQ, step by step: what stands in it, in words that say what to mend."""

import asyncio
import re
import ssl
import time
from typing import Any, cast
from urllib.parse import urlsplit

import aio_pika
import aiormq
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPError, ProbableAuthenticationError
from aiormq.connection import SSLContextProvider

from otp_stream.broker.management_api import vhost
from otp_stream.broker.refusal import error_text, no_connection, refusal, user
from otp_stream.core.check_result import Finding, Tell, certificate
from otp_stream.sockets import certificate_name

OLDEST = (3, 10)
"""Quorum queues with a time to live and at-least-once dead-lettering."""
_CONNECT_S = 5.0


async def reach(url: str, shown_url: str, allow: str, tell: Tell) -> AbstractConnection | None:
    """Connect and tell how that went; `None` where it cannot be done. `allow` is the command that gives permissions."""
    try:
        async with asyncio.timeout(_CONNECT_S):
            connection = await aio_pika.connect(url)
    except (AMQPError, OSError, TimeoutError) as error:
        tell(_trouble(error, url, shown_url, allow))
        return None
    underlay = cast("aiormq.Connection", connection.transport and connection.transport.connection)
    properties = _properties(connection)
    product, version = str(properties.get("product", "a broker")), str(properties.get("version", "?"))
    tell(
        _judged(
            product, version, f"{product} {version} at {shown_url}: login as {user(url)}, virtual host {vhost(url)}"
        )
    )
    if urlsplit(url).scheme == "amqps":
        try:
            tell(certificate(await _peer_certificate(underlay), "RabbitMQ's TLS port", time.time()))
        except (OSError, TimeoutError, ssl.SSLError):
            tell(Finding("note", "RabbitMQ's certificate was not looked at: a second connection was not answered"))
    return connection


def version(connection: AbstractConnection) -> tuple[int, ...]:
    """Return the first two numbers of the broker's version."""
    return _version(str(_properties(connection).get("version", "")))


def _trouble(error: Exception, url: str, where: str, allow: str) -> Finding:
    text = error_text(error, url)
    if found := refusal(error, url):
        refused, fix = found
        if not isinstance(error, ProbableAuthenticationError):
            fix = f"{fix}: {allow}"
        return Finding("problem", f"{where} {refused}", fix)
    match error:
        case _ if "CERTIFICATE_VERIFY_FAILED" in text:
            why = re.sub(r"^.*verify failed: | \(_ssl.*$", "", text)
            cure = "name the authority that signed it: RABBITMQ_URL=amqps://…?cafile=/path/to/ca.pem"
            return Finding("problem", f"{where}: its certificate is not accepted: {why}", cure)
        case _ if "SSL" in text:
            cure = "amqps:// is for the broker's TLS port, mostly 5671; amqp:// for the other, mostly 5672"
            return Finding("problem", f"{where}: TLS fails at this port ({text})", cure)
        case TimeoutError():
            cure = "is the port right, does a firewall drop it?"
            return Finding("problem", f"{where} does not answer within {_CONNECT_S:g} s", cure)
        case _:
            cure = "is it up (rabbitmqctl status)? mend RABBITMQ_URL"
            return Finding("problem", f"{where} {no_connection(error, url)}", cure)


def _judged(product: str, version: str, text: str) -> Finding:
    if product != "RabbitMQ":
        return Finding("warning", f"{text}: the worker is tested with RabbitMQ only")
    if _version(version) < OLDEST:
        return Finding("problem", f"{text}: too old", "RabbitMQ 3.10 or newer is needed: see docs/rabbitmq.md")
    return Finding("ok", text)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(it) for it in re.findall(r"\d+", text)[:2])


def _properties(connection: AbstractConnection) -> dict[str, Any]:
    underlay = cast("aiormq.Connection", connection.transport and connection.transport.connection)
    return dict(underlay.server_properties or {})


async def _peer_certificate(connection: aiormq.Connection) -> dict[str, Any] | None:
    """Return the certificate of the broker's port, over a connection of its own: the client does not show its."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(_CONNECT_S):
        context = await SSLContextProvider(ssl_context=None, ssl_certs=connection.ssl_certs, loop=loop).get_context()
        host, port = str(connection.url.host), connection.url.port
        name = certificate_name(host)
        _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=name)
    found: dict[str, Any] | None = writer.get_extra_info("peercert")
    writer.close()
    return found
