"""Audit records of commands: a command publishes its record to a queue, and one of the workers logs it.

A command may run anywhere, where nothing collects what it prints. All workers' logs are collected.
"""

import asyncio
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast

import structlog
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelClosed, DeliveryError
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelInvalidStateError
from pydantic_core import from_json

from otp_stream.audit_log import write_audit_fields
from otp_stream.connection_errors import broker_text
from otp_stream.core.audit import MAX_TEXT, printable
from otp_stream.core.line_limit import LineLimit
from otp_stream.tasks import lost_connection_as_error

from .amqp_stream import ConsumingConnection
from .headers import OURS, sign, verified
from .message import Delivered
from .topology_admin import BROKER_ERRORS, quietly

ARGUMENTS: dict[str, Any] = {
    "x-queue-type": "quorum",
    # a record that RabbitMQ has confirmed is logged, and one more than these is refused: the command shows it
    "x-max-length": 10_000,
    "x-overflow": "reject-publish",
}
_MARK = f"{OURS}audit"
"""The header that keeps the MAC of a job's message from being valid for a record."""
_CHECK_S = 30.0
_CLOSE_S = 1.0
_PREFETCH = 20
_MOST_UNVERIFIED = 50
"""Unverified records that are logged in a minute. Anyone who may publish to the queue can write them."""
_MAX_FIELDS = 30
_MAX_BODY = 16 * 1024
"""Bytes of a record. Of a larger one, nothing is read."""
_OF_THE_LINE = {"event", "level", "timestamp", "logger", "self", "method_name", "exc_info", "stack_info", "exception"}
"""Names that have another meaning in a log line, or for the library that writes it."""
_KNOWN = {
    "action", "result", "by", "source", "count", "target", "via", "at", "id", "error", "dry_run", "fresh", "expired",
    "raw", "file", "claimed_ssh_client", "claimed_sudo_user",
}  # fmt: skip
"""The fields of our commands. An unverified record has no others, because `Verified` or `role` could mislead readers.
A verified one may have those of a later version."""
_LARGEST = 2**53
"""A larger number is written as a text, because other programs read it as another number."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def publish_record(
    connection: AbstractConnection, queue: str, fields: dict[str, Any], user: str | None, key: bytes
) -> None:
    """Publish a record, and declare the queue if it is missing. Raises `AMQPError` if RabbitMQ does not confirm it.

    `user` is the connection's, which RabbitMQ checks; `None` if it is not known.
    """
    body, headers = json.dumps(fields).encode(), dict[str, Any]({_MARK: "1"})
    sign(headers, body, key)
    message = Message(
        body, headers=headers, user_id=user, delivery_mode=DeliveryMode.PERSISTENT, content_type="application/json"
    )
    channel = await connection.channel(on_return_raises=True)
    try:
        await channel.default_exchange.publish(message, queue, mandatory=True)
    except DeliveryError:  # no worker has declared it yet
        await channel.declare_queue(queue, durable=True, arguments=ARGUMENTS)
        await channel.default_exchange.publish(message, queue, mandatory=True)


class AuditCollector:
    """Logs the records of commands. Several workers share them, so that each is logged once."""

    def __init__(self, queue: str, keys: Sequence[bytes]) -> None:
        self._queue = queue
        self._keys = keys
        self._problem: str | None = None
        """Why no records are received, if that is logged."""
        self._unverified = LineLimit(_MOST_UNVERIFIED)

    async def run(self, connection: Callable[[], ConsumingConnection | None]) -> None:
        """Receive records until the connection is lost. The worker sends codes also if RabbitMQ refuses this."""
        try:
            with lost_connection_as_error():
                await self._receive(connection())
        except ChannelClosed as error:
            if (text := broker_text(error)) != self._problem:
                self._problem = text
                fix = "otp-stream check shows missing permissions"
                _log.warning("audit records of commands are not logged here", error=self._problem, fix=fix)
        except BROKER_ERRORS:  # others log that the connection is lost
            pass
        await asyncio.sleep(_CHECK_S)

    async def _receive(self, connection: ConsumingConnection | None) -> None:
        if connection is None:
            return
        channel = await connection.take(self._handle, _PREFETCH)
        try:
            await channel.basic_qos(prefetch_count=_PREFETCH)
            while not channel.is_closed:
                declared = await channel.queue_declare(self._queue, durable=True, arguments=ARGUMENTS)
                if not declared.consumer_count:
                    await channel.basic_consume(self._queue, _ignore)
                self._problem = None
                await asyncio.sleep(_CHECK_S)
                if left_out := self._unverified.take_left_out():
                    _log.warning("unverified audit records were not logged: someone floods the queue", count=left_out)
        finally:
            await quietly(channel.close(), _CLOSE_S)

    def _handle(self, message: Delivered) -> None:
        fields = self.fields(message.body, message.headers, message.user_id)
        if fields["verified"] or self._unverified.admits(time.monotonic()):
            write_audit_fields(fields)
        with suppress(ChannelInvalidStateError):  # another worker gets it
            message.ack_now()

    def fields(self, body: bytes, headers: dict[str, Any], user: str | None) -> dict[str, Any]:
        """Return the fields of the log line. Anyone who may publish to the queue can write anything into a record."""
        ours = verified(headers, body, self._keys)
        signed = ours is not None and _MARK in ours
        about = {"verified": signed, "rabbitmq_user": user or None}
        try:
            content: Any = from_json(body, allow_inf_nan=False) if len(body) <= _MAX_BODY else None
        except ValueError:
            content = None
        if not isinstance(content, dict):
            return {"action": "unreadable", **about}
        items = list(cast("dict[str, Any]", content).items())[:_MAX_FIELDS]
        known = {name: value for name, value in items if (_is_field(name) if signed else name in _KNOWN)}
        return {name: _safe(value) for name, value in known.items()} | about


def _is_field(name: str) -> bool:
    return name.isascii() and name.isidentifier() and len(name) < MAX_TEXT and name not in _OF_THE_LINE


def _safe(value: Any) -> str | int | float | None:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)  # 1e999 is read as infinity, which JSON does not have
    if value is None or (isinstance(value, int) and abs(value) < _LARGEST):
        return value
    return printable(str(value))


async def _ignore(message: DeliveredMessage) -> None:
    """Callback that aiormq requires and never calls."""
