"""Audit records of commands: who did what, from where, and how many. A worker logs them.

If RabbitMQ cannot store a record, the command says so, prints it and continues. Only the first signal interrupts a
command that is recorded, and none keeps its record from being stored.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import aio_pika
import typer

from otp_stream import clock
from otp_stream.broker.audit_queue import publish_record
from otp_stream.client import CONNECTION_ERRORS
from otp_stream.core.audit import Action, AuditRecord, Result, new_id, printable
from otp_stream.core.times import iso
from otp_stream.dead_letters import current_user
from otp_stream.settings import Settings
from otp_stream.tasks import lost_connection_as_error

from . import interrupts, output
from .amqp import topology_of

_TIMEOUT_S = 3.0


@dataclass(slots=True)
class Act:
    """An action of a command, whose record is stored when it ends."""

    settings: Settings
    action: Action
    target: str | None = None
    count: int | None = None
    """How many so far."""
    result: Result | None = None
    """`None`: as the command ends."""
    details: dict[str, Any] = field(default_factory=dict[str, Any])

    def start(self) -> None:
        """Store a record before anything is changed or shown, because `kill -9` leaves none at the end."""
        self.details["id"] = new_id()
        fields = self.fields("started")
        try:
            interrupts.run(_publish(self.settings, fields))
        except CONNECTION_ERRORS as error:
            _print(fields, error)

    def fields(self, result: Result) -> dict[str, Any]:
        """Return the fields of a record."""
        count = None if result == "started" else self.count
        record = AuditRecord(self.action, result, current_user(), _source(), count, self.target, _details(self))
        return {**record.fields(), "via": "command", "at": iso(clock.now_ms())}


@contextmanager
def audited(settings: Settings, action: Action, target: str | None = None) -> Generator[Act]:
    """Record an action when it ends, however that is. `target` must contain no address and no code.

    An action that changes or writes something calls `Act.start` first.
    """
    act = Act(settings, action, target)
    with interrupts.interruptible() as signals:
        try:
            try:
                yield act
            finally:
                signals.ignored = True
        except (output.Declined, typer.Abort):
            act.result = "cancelled"
            raise
        except typer.Exit as ended:
            act.result = act.result or ("failed" if ended.exit_code else "done")
            raise
        except BaseException:
            act.result = act.result or ("interrupted" if signals.interrupted else "failed")
            raise
        finally:
            _store(act)


def _store(act: Act) -> None:
    fields = act.fields(act.result or "done")
    try:
        asyncio.run(_publish(act.settings, fields))
    except CONNECTION_ERRORS as error:
        if act.result == "failed" and not act.count and "id" not in act.details:
            return  # nothing was done, and the command has said why
        _print(fields, error)


def _print(fields: dict[str, Any], error: BaseException) -> None:
    output.console.print(
        f"RabbitMQ has not stored the audit record ({type(error).__name__}). Keep this line:",
        style="yellow",
        markup=False,
        soft_wrap=True,
    )
    output.console.print(output.plain(output.as_json(fields)), soft_wrap=True)


async def _publish(settings: Settings, fields: dict[str, Any]) -> None:
    with lost_connection_as_error():
        async with asyncio.timeout(_TIMEOUT_S), await aio_pika.connect(settings.amqp_url) as connection:
            queue = topology_of(settings).audit
            await publish_record(connection, queue, fields, _rabbitmq_user(settings.amqp_url), settings.hash_key)


def _rabbitmq_user(url: str) -> str | None:
    """Return the user of the connection; `None` if the server takes it from the client certificate."""
    parts = urlsplit(url)
    external = parse_qs(parts.query.lower()).get("auth") == ["external"]
    return None if external else unquote(parts.username or "guest")


def _source() -> str:
    try:
        terminal = os.ttyname(sys.stdin.fileno())
    except (OSError, ValueError):  # none, such as in a cron job
        terminal = "no terminal"
    return f"{socket.gethostname()}, {terminal}"


def _details(act: Act) -> dict[str, Any]:
    """Return the other fields. What the user's environment says can be forged, so its names say so."""
    claims = {"claimed_ssh_client": os.environ.get("SSH_CONNECTION", "").partition(" ")[0],
              "claimed_sudo_user": os.environ.get("SUDO_USER", "")}  # fmt: skip
    return {**act.details, **{name: printable(value) for name, value in claims.items() if value}}
