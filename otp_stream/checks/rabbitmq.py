"""Looks whether RabbitMQ is as the worker needs it. Nothing is made, sent or consumed."""

import asyncio
import shlex
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import aio_pika
import aiormq
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPError

from otp_stream.broker import queue_inspect as standing
from otp_stream.broker.management_api import Seen, vhost
from otp_stream.broker.queue_inspect import Standing
from otp_stream.broker.topology import QueueAwayError, Topology
from otp_stream.core.check_result import Finding, Tell
from otp_stream.core.masking import scrub
from otp_stream.tasks import lost_connection_as_error

from otp_stream.broker.refusal import user

from . import permissions, policies
from .connect_check import reach, version

_QUIET_S = 2.0
_CLOSE_S = 2.0
_DEPLOYMENTS, _DESCRIPTORS = 3, 3
"""Deployments for which descriptors should be free, and descriptors of each queue (1,024 suffice for 335 queues)."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Checkup:
    """One look at the broker; `tell` hears of each finding at once, whatever becomes of the rest."""

    url: str = field(repr=False)
    shown_url: str
    topology: Topology
    tell: Tell
    shared: bool
    """Whether workers share their state."""

    async def connect(self) -> AbstractConnection | None:
        """Connect and tell how that went; `None` where it cannot be done."""
        return await reach(self.url, self.shown_url, self._allow(), self.tell)

    async def permissions(self) -> None:
        """Tell which permissions are lacking.

        Over a connection of its own: from one that publishes, a broker in need reads nothing more.
        """
        connection = await aio_pika.connect(self.url)
        try:
            with lost_connection_as_error():
                lacking = await _unless_blocked(connection, permissions.lacking(connection, self.topology))
        finally:
            await asyncio.wait({asyncio.create_task(connection.close())}, timeout=_CLOSE_S)
        if lacking is None:
            text = "nothing that is published is taken: RabbitMQ is short of memory or disk"
            self.tell(Finding("problem", text, "rabbitmq-diagnostics alarms says which, and where: make room"))
            return
        if not lacking:
            self.tell(Finding("ok", f"{user(self.url)} may configure, write and read all that the worker needs"))
            return
        listed = "; ".join(f"{act} {', '.join(names)}" for act, names in lacking.items())
        self.tell(Finding("problem", f"{user(self.url)} lacks permissions: {listed}", self._allow()))

    async def queues(self, connection: AbstractConnection, seen: Seen) -> None:
        """Tell of every queue and exchange."""
        wished = {self.topology.jobs: {}, self.topology.high: {}, **self.topology.arguments}
        missing: list[str] = []
        good: list[str] = []
        for name, arguments in wished.items():
            try:
                with lost_connection_as_error():
                    queue = await standing.queue(connection, name, arguments)
            except (AMQPError, QueueAwayError) as error:
                self.tell(self._unlearnt(name, error))
                continue
            if queue is None:
                missing.append(name)
            elif name in {self.topology.jobs, self.topology.high}:
                self._producers(name, queue, seen, version(connection))
            else:
                self._own(name, queue, arguments, good)
        exchanges = {it.name: it.type.value for it in (self.topology.retry, self.topology.events)}
        for name, kind in exchanges.items():
            with lost_connection_as_error():
                await self._exchange(connection, name, kind, missing, good)
        if good:
            self.tell(Finding("ok", f"as they should be: {self._listed(good)}"))
        if missing:
            self.tell(Finding("note", f"the worker makes at its first start: {self._listed(missing)}"))
        for finding in policies.findings(seen, self.topology, vhost(self.url)):
            self.tell(finding)
        self._tell_size(len(wished), seen)

    def _tell_size(self, queues: int, seen: Seen) -> None:
        """Report how many queues these settings make, and whether RabbitMQ has file descriptors for more."""
        text = f"{queues} queues with these settings, {len(self.topology.backoff.waits_ms)} of them wait queues"
        fds = seen.descriptors
        if fds is None:
            self.tell(Finding("note", text))
            return
        text += f"; {fds.node} has {fds.free} of {fds.total} file descriptors free"
        if fds.free >= _DEPLOYMENTS * queues * _DESCRIPTORS:
            self.tell(Finding("ok", text))
            return
        cure = "raise the limit of open files (LimitNOFILE, --ulimit nofile), delete unused queues: "
        cure += "otp-stream topology prune"
        text += ": at the limit RabbitMQ accepts no connections and raises no alarm"
        self.tell(Finding("warning", text, cure))

    def _producers(self, name: str, queue: Standing, seen: Seen, version: tuple[int, ...]) -> None:
        text = f"{name}: {queue.kind} queue, {_counted(queue.messages, 'job')} waiting, "
        text += _counted(queue.consumers, "worker" if name == self.topology.jobs else "consumer")
        if queue.messages and not queue.consumers:
            self.tell(Finding("warning", f"{text}: nobody takes them", "start a worker with WORKER=true"))
        elif queue.consumers > 1 and not self.shared and name == self.topology.jobs:
            self.tell(Finding("warning", f"{text}, which do not share their state", "set REDIS_URL"))
        else:
            self.tell(Finding("ok", text))
        policy = seen.policies.get(name)
        host = vhost(self.url)
        for finding in policies.risks(name, queue, policy, self.topology, host, version=version):
            self.tell(finding)
        if seen.nodes > 1:
            for finding in policies.cluster_risks(name, queue, policy, host, version=version):
                self.tell(finding)

    def _own(self, name: str, queue: Standing, wished: dict[str, Any], good: list[str]) -> None:
        if differences := queue.differences(wished):
            keep = " (otp-stream dead export --raw)" if name == self.topology.dead else ""
            drain = f"stop the workers, move {_counted(queue.messages, 'message')} elsewhere{keep}; "
            drain *= bool(queue.messages)
            # quorum queues have no --if-empty
            guard = ["--if-empty"] if queue.kind == "classic" else []
            command = shlex.join(["rabbitmqctl", "delete_queue", "-p", vhost(self.url), name, *guard])
            cure = f"{drain}{command}; the worker makes it anew. Or set another RABBITMQ_PREFIX"
            self.tell(Finding("problem", f"{name} is not as it must be: {'; '.join(differences)}", cure))
            return
        good.append(name)
        if name == self.topology.dead and queue.messages:
            text = f"{name} holds {_counted(queue.messages, 'dead letter')}"
            self.tell(Finding("warning", text, "otp-stream dead list"))
        elif name == self.topology.due and queue.messages and not queue.consumers:
            text = f"{name}: {_counted(queue.messages, 'retry', 'retries')} due, nobody takes them"
            self.tell(Finding("warning", text, "start a worker with WORKER=true"))

    async def _exchange(
        self, connection: AbstractConnection, name: str, kind: str, missing: list[str], good: list[str]
    ) -> None:
        try:
            difference = await standing.exchange(connection, name, kind)
        except AMQPError as error:
            self.tell(self._unlearnt(name, error))
            return
        if difference:
            command = shlex.join(["rabbitmqadmin", f"--vhost={vhost(self.url)}", "delete", "exchange", f"name={name}"])
            cure = f"{command}; the worker makes it anew. Or set another RABBITMQ_PREFIX"
            self.tell(Finding("problem", f"exchange {name} is not as it must be: {difference}", cure))
        else:
            (missing if difference is None else good).append(name)

    def _allow(self) -> str:
        return permissions.command(vhost(self.url), user(self.url), self.topology)

    def _listed(self, names: list[str]) -> str:
        """Return names, with wait queues as a number: there may be many."""
        rungs = {self.topology.rung(ms) for ms in self.topology.backoff.waits_ms}
        waits = [name for name in names if name in rungs]
        shown = [name for name in names if name not in rungs]
        if waits:
            shown.append(waits[0] if len(waits) == 1 else f"{len(waits)} wait queues {self.topology.rung(0)[:-1]}*")
        return ", ".join(shown)

    def _unlearnt(self, name: str, error: BaseException) -> Finding:
        if isinstance(error, QueueAwayError):
            return Finding("problem", f"{name} is away: the node that holds it is down", "start that node")
        return Finding("problem", f"{name} cannot be looked at: {scrub(str(error))}")


async def _unless_blocked(connection: AbstractConnection, work: Coroutine[Any, Any, T]) -> T | None:
    """Return what the work comes to; `None` where the broker refuses what it publishes."""
    working = asyncio.create_task(work)
    underlay = cast("aiormq.Connection", connection.transport and connection.transport.connection)
    try:
        while not (await asyncio.wait({working}, timeout=_QUIET_S))[0]:
            try:
                await asyncio.wait_for(underlay.ready(), _QUIET_S)
            except TimeoutError:
                return None
        return await working
    finally:
        working.cancel()


def _counted(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or f'{one}s'}"
