"""Checks RabbitMQ: connection, permissions, queues, exchanges, policies. Nothing is declared, sent or consumed."""

import asyncio
import shlex
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import aio_pika
import aiormq
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPError
from aiormq.exceptions import ChannelAccessRefused

from otp_stream.broker.declares import QueueAwayError
from otp_stream.broker.management_api import ManagementApi
from otp_stream.broker.queue_inspect import InspectedQueue, inspect_exchange, inspect_queue
from otp_stream.broker.topology import Depth, Topology
from otp_stream.connection_errors import broker_text, user, virtual_host
from otp_stream.core.check_result import CheckResult, Report
from otp_stream.core.retention import Retention
from otp_stream.tasks import lost_connection_as_error

from .connect_check import check_connection, version
from .depth_reader import DepthReader
from .management import ManagementQueries, ManagementStatus
from .permissions import for_jobs_exchange, listed, missing_permissions, needed_permissions
from .policies import cluster_risks, policy_results, queue_risks
from .roles import roles_of

_BLOCKED_S = 2.0
"""A broker that has not answered for this long may have blocked the connection."""
_CLOSE_S = 2.0
_DEPLOYMENTS, _DESCRIPTORS = 3, 3
"""Number of deployments for which descriptors should be free; descriptors per queue (1,024 are enough for 335)."""
_START_WORKER = "start a worker with WORKER=true"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Found:
    """Names of queues and exchanges, by what is known of them."""

    good: list[str] = field(default_factory=list[str])
    undeclarable: list[str] = field(default_factory=list[str])
    """Those that exist, and that the user may not declare."""
    hidden: list[str] = field(default_factory=list[str])
    """Those of which RabbitMQ does not report whether they exist, because the user has no permission for them."""
    missing: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, slots=True)
class RabbitmqCheck:
    """One check of the broker. Each result is reported immediately, so that a later failure does not hide it."""

    url: str = field(repr=False)
    shown_url: str
    topology: Topology
    report: Report
    shared: bool
    """Whether the workers share their state."""
    retention: Retention = field(default_factory=Retention)

    async def connect(self) -> AbstractConnection | None:
        """Connect, and report the result. Returns `None` on failure."""
        return await check_connection(self.url, self.shown_url, self._grant_command(), self.report)

    async def permissions(self) -> None:
        """Report missing permissions.

        Uses a second connection, because a broker in alarm stops reading from a connection that publishes.
        """
        connection = await aio_pika.connect(self.url)
        try:
            with lost_connection_as_error():
                missing = await _unless_blocked(connection, missing_permissions(connection, self.topology))
        finally:
            await asyncio.wait({asyncio.create_task(connection.close())}, timeout=_CLOSE_S)
        if missing is None:
            fix = "run rabbitmq-diagnostics alarms to see which, and on which node; free memory or disk space there"
            text = "RabbitMQ accepts no publishes: it is short of memory or disk"
            self.report(CheckResult("problem", text, fix))
            return
        name = user(self.url)
        optional = [it for it in missing if it in for_jobs_exchange(self.topology)]
        required = [it for it in missing if it not in optional]
        needed, roles = needed_permissions(self.topology), roles_of(self.topology)
        role = next((it for it in (roles["operator"], roles["deployer"]) if missing == it.refused(needed)), None)
        if not missing:
            self.report(CheckResult("ok", f"{name} has all permissions that the worker needs"))
        elif role:
            text = f"{name} has the permissions of the role {role.name}: enough for its commands, not for a worker"
            self.report(CheckResult("note", text))
        elif required:
            text = f"{name} lacks permissions: {listed(missing)}"
            self.report(CheckResult("problem", text, self._grant_command()))
        else:
            text = f"{name} lacks permissions for the exchange {self.topology.jobs_exchange.name}, so that producers "
            text += f"can use the default exchange only: {listed(optional)}"
            self.report(CheckResult("warning", text, self._grant_command()))

    async def queues(self, connection: AbstractConnection, status: ManagementStatus) -> None:
        """Report on every queue, every exchange, and the policies."""
        expected = {self.topology.jobs: {}, self.topology.high: {}, **self.topology.arguments}
        depths = DepthReader(self.topology, connection, ManagementQueries(ManagementApi.of_broker(self.url)))
        found = _Found()
        for name, arguments in expected.items():
            try:
                with lost_connection_as_error():
                    queue = await inspect_queue(connection, name, arguments)
            except ChannelAccessRefused:
                with lost_connection_as_error():
                    await self._undeclarable(name, depths, found)
                continue
            except (AMQPError, QueueAwayError) as error:
                self.report(_not_inspected(name, error))
                continue
            if queue is None:
                found.missing.append(name)
            elif name in {self.topology.jobs, self.topology.high}:
                self._producers_queue(name, queue, status, version(connection))
            else:
                self._own_queue(name, queue, arguments, found.good)
        exchanges = {it.name: it.type.value for it in self.topology.exchanges}
        for name, kind in exchanges.items():
            with lost_connection_as_error():
                await self._exchange(connection, name, kind, found)
        self._report_found(found)
        for result in policy_results(status, self.topology, virtual_host(self.url), self.retention):
            self.report(result)
        self._report_size(len(expected) + 1, status)  # the audit queue, without which a worker works

    def _report_found(self, found: _Found) -> None:
        name, fix = user(self.url), "run this command as the user of a worker or a deployer"
        if found.good:
            self.report(CheckResult("ok", f"exist with the right properties: {self._listed(found.good)}"))
        if found.undeclarable:
            text = f"exist, but {name} may not declare them, so that their properties were not checked: "
            self.report(CheckResult("note", text + self._listed(found.undeclarable), fix))
        if found.hidden:
            text = f"not checked, because RabbitMQ does not report to {name} whether they exist: "
            self.report(CheckResult("note", text + self._listed(found.hidden), fix))
        if found.missing:
            text = f"missing, and declared at a worker's first start: {self._listed(found.missing)}"
            self.report(CheckResult("note", text))

    def _report_size(self, queues: int, status: ManagementStatus) -> None:
        """Report the number of queues with these settings, and whether RabbitMQ has file descriptors for more."""
        text = f"{queues} queues with these settings, {len(self.topology.backoff.waits_ms)} of them wait queues"
        fds = status.descriptors
        if fds is None:
            self.report(CheckResult("note", text))
            return
        text += f"; {fds.node} has {fds.free} of {fds.total} file descriptors free"
        if fds.free >= _DEPLOYMENTS * queues * _DESCRIPTORS:
            self.report(CheckResult("ok", text))
            return
        fix = "raise the limit of open files (LimitNOFILE, --ulimit nofile), or delete unused queues: "
        fix += "otp-stream topology prune"
        text += ": at the limit RabbitMQ accepts no connections and raises no alarm"
        self.report(CheckResult("warning", text, fix))

    def _producers_queue(
        self, name: str, queue: InspectedQueue, status: ManagementStatus, version: tuple[int, ...]
    ) -> None:
        self._jobs_waiting(name, f"{queue.kind} queue", queue)
        policy = status.policies.get(name)
        host = virtual_host(self.url)
        for result in queue_risks(name, queue, policy, self.topology, host, version=version):
            self.report(result)
        if status.nodes > 1:
            for result in cluster_risks(name, queue, policy, host, version=version):
                self.report(result)

    def _jobs_waiting(self, name: str, kind: str, queue: InspectedQueue | Depth) -> None:
        text = f"{name}: {kind}, {_counted(queue.messages, 'job')} waiting, "
        text += _counted(queue.consumers, "worker" if name == self.topology.jobs else "consumer")
        if queue.messages and not queue.consumers:
            self.report(CheckResult("warning", f"{text}: no worker consumes them", _START_WORKER))
        elif queue.consumers > 1 and not self.shared and name == self.topology.jobs:
            self.report(CheckResult("warning", f"{text}, which do not share their state", "set REDIS_URL"))
        else:
            self.report(CheckResult("ok", text))

    async def _undeclarable(self, name: str, depths: DepthReader, found: _Found) -> None:
        """Report on the messages of a queue that the user may not declare."""
        try:
            depth = await depths.read(name)
        except ChannelAccessRefused:
            found.hidden.append(name)
            return
        if depth is None:
            found.missing.append(name)
            return
        found.undeclarable.append(name)
        if name in {self.topology.jobs, self.topology.high}:
            self._jobs_waiting(name, "queue", depth)
        else:
            self._dead_or_due(name, depth)

    def _own_queue(self, name: str, queue: InspectedQueue, expected: dict[str, Any], good: list[str]) -> None:
        if differences := queue.differences(expected):
            keep = " (otp-stream dead export --raw)" if name == self.topology.dead else ""
            drain = f"stop the workers, move {_counted(queue.messages, 'message')} elsewhere{keep}; "
            drain *= bool(queue.messages)
            # quorum queues do not support --if-empty
            guard = ["--if-empty"] if queue.kind == "classic" else []
            command = shlex.join(["rabbitmqctl", "delete_queue", "-p", virtual_host(self.url), name, *guard])
            text = f"{name} has the wrong properties: {'; '.join(differences)}"
            self.report(CheckResult("problem", text, drain + _redeclare(command)))
            return
        good.append(name)
        self._dead_or_due(name, queue)

    def _dead_or_due(self, name: str, queue: InspectedQueue | Depth) -> None:
        if name == self.topology.dead and queue.messages:
            text = f"{name} contains {_counted(queue.messages, 'dead letter')}"
            self.report(CheckResult("warning", text, "otp-stream dead list"))
        elif name == self.topology.due and queue.messages and not queue.consumers:
            text = f"{name}: {_counted(queue.messages, 'retry', 'retries')} due, no worker consumes them"
            self.report(CheckResult("warning", text, _START_WORKER))

    async def _exchange(self, connection: AbstractConnection, name: str, kind: str, found: _Found) -> None:
        try:
            difference = await inspect_exchange(connection, name, kind)
        except ChannelAccessRefused:
            await self._undeclarable_exchange(connection, name, found)
            return
        except AMQPError as error:
            self.report(_not_inspected(name, error))
            return
        if difference:
            host = virtual_host(self.url)
            command = shlex.join(["rabbitmqadmin", f"--vhost={host}", "delete", "exchange", f"name={name}"])
            text = f"exchange {name} has the wrong properties: {difference}"
            self.report(CheckResult("problem", text, _redeclare(command)))
        else:
            (found.missing if difference is None else found.good).append(name)

    async def _undeclarable_exchange(self, connection: AbstractConnection, name: str, found: _Found) -> None:
        try:
            exists = await self.topology.has_exchange(connection, name)
        except ChannelAccessRefused:
            found.hidden.append(name)
        else:
            (found.undeclarable if exists else found.missing).append(name)

    def _grant_command(self) -> str:
        return roles_of(self.topology)["worker"].grant_command(virtual_host(self.url), user(self.url))

    def _listed(self, names: list[str]) -> str:
        """Return names as a text, with only the number of wait queues, because there may be many."""
        wait_queues = {self.topology.wait_queue(ms) for ms in self.topology.backoff.waits_ms}
        waits = [name for name in names if name in wait_queues]
        shown = [name for name in names if name not in wait_queues]
        if waits:
            shown.append(
                waits[0] if len(waits) == 1 else f"{len(waits)} wait queues {self.topology.wait_queue(0)[:-1]}*"
            )
        return ", ".join(shown)


def _redeclare(command: str) -> str:
    return f"{command}; the worker declares it again. Or set another RABBITMQ_PREFIX"


def _not_inspected(name: str, error: BaseException) -> CheckResult:
    if isinstance(error, QueueAwayError):
        return CheckResult("problem", f"{name} is unavailable: its node is down", "start that node")
    return CheckResult("problem", f"{name} could not be checked: {broker_text(error)}")


async def _unless_blocked(connection: AbstractConnection, work: Coroutine[Any, Any, T]) -> T | None:
    """Return the result of `work`, or `None` if the broker blocks the connection because it publishes."""
    working = asyncio.create_task(work)
    underlay = cast("aiormq.Connection", connection.transport and connection.transport.connection)
    try:
        while not (await asyncio.wait({working}, timeout=_BLOCKED_S))[0]:
            try:
                await asyncio.wait_for(underlay.ready(), _BLOCKED_S)
            except TimeoutError:
                return None
        return await working
    finally:
        working.cancel()


def _counted(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or f'{one}s'}"
