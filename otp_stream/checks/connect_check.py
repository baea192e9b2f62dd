"""Checks the connection to RabbitMQ: address, TLS, login, virtual host, version."""

import asyncio
import re
import ssl
import time
from typing import Any, cast
from urllib.parse import urlsplit

import aio_pika
import aiormq
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPError
from aiormq.connection import SSLContextProvider
from aiormq.exceptions import ConnectionNotAllowed

from otp_stream.connection_errors import error_text, no_connection, refusal, user, virtual_host
from otp_stream.core.check_result import CheckResult, Report, check_tls
from otp_stream.sockets import certificate_name

OLDEST = (3, 10)
"""The first version with TTL and at-least-once dead-lettering for quorum queues."""
_CONNECT_S = 5.0


async def check_connection(url: str, shown_url: str, grant: str, report: Report) -> AbstractConnection | None:
    """Connect, and report the result. Returns `None` on failure. `grant` is the command that grants permissions."""
    try:
        async with asyncio.timeout(_CONNECT_S):
            connection = await aio_pika.connect(url)
    except (AMQPError, OSError, TimeoutError) as error:
        report(_failure(error, url, shown_url, grant))
        return None
    underlay = cast("aiormq.Connection", connection.transport and connection.transport.connection)
    properties = _properties(connection)
    product, version = str(properties.get("product", "a broker")), str(properties.get("version", "?"))
    text = f"{product} {version} at {shown_url}: login as {user(url)}, virtual host {virtual_host(url)}"
    report(_check_version(product, version, text))
    if urlsplit(url).scheme == "amqps":
        try:
            report(await _check_tls(underlay))
        except (OSError, TimeoutError, ssl.SSLError):
            report(CheckResult("note", "RabbitMQ's certificate was not checked: a second connection failed"))
    return connection


def version(connection: AbstractConnection) -> tuple[int, ...]:
    """Return the first two numbers of the broker's version."""
    return _version(str(_properties(connection).get("version", "")))


def _failure(error: Exception, url: str, where: str, grant: str) -> CheckResult:
    text = error_text(error, url)
    if found := refusal(error, url):
        refused, fix = found
        if isinstance(error, ConnectionNotAllowed):
            fix = f"{fix}: {grant}"
        return CheckResult("problem", f"{where} {refused}", fix)
    match error:
        case _ if "SSL" in text:
            fix = "use amqps:// with the broker's TLS port, usually 5671, and amqp:// with the other, usually 5672"
            return CheckResult("problem", f"{where}: TLS fails at this port ({text})", fix)
        case TimeoutError():
            fix = "check the port in RABBITMQ_URL, and whether a firewall drops the packets"
            return CheckResult("problem", f"{where} does not answer within {_CONNECT_S:g} s", fix)
        case _:
            fix = "check that it is running (rabbitmqctl status), and the address in RABBITMQ_URL"
            return CheckResult("problem", f"{where} {no_connection(error, url)}", fix)


def _check_version(product: str, version: str, text: str) -> CheckResult:
    if product != "RabbitMQ":
        return CheckResult("warning", f"{text}: the worker is tested with RabbitMQ only")
    if _version(version) < OLDEST:
        return CheckResult("problem", f"{text}: too old", "upgrade to RabbitMQ 3.10 or newer: see docs/rabbitmq.md")
    return CheckResult("ok", text)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(it) for it in re.findall(r"\d+", text)[:2])


def _properties(connection: AbstractConnection) -> dict[str, Any]:
    underlay = cast("aiormq.Connection", connection.transport and connection.transport.connection)
    return dict(underlay.server_properties or {})


async def _check_tls(connection: aiormq.Connection) -> CheckResult:
    """Report on the TLS of the broker's port, over a second connection, because aiormq does not expose it."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(_CONNECT_S):
        context = await SSLContextProvider(ssl_context=None, ssl_certs=connection.ssl_certs, loop=loop).get_context()
        host, port = str(connection.url.host), connection.url.port
        name = certificate_name(host)
        _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=name)
    found = check_tls(writer.get_extra_info("ssl_object"), "RabbitMQ's TLS port", time.time())
    writer.close()
    return found
