"""Finds wait queues of earlier retry settings and queues of removed tenants, and deletes them once they are empty.

AMQP does not report when a quorum queue is empty. It counts ready messages, but not those in transfer to the target
queue, which remain while that is full or unavailable; and quorum queues support neither `if-empty` nor `if-unused`
(RabbitMQ 3.10 closes the connection with 540). So only the management API's statistics count, and only those from after
the queue was unbound.
"""

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from aio_pika.abc import AbstractConnection

from otp_stream.broker.queue_inspect import temporary_channel
from otp_stream.broker.topology import Depth, Topology
from otp_stream.core.backoff import Backoff

from .management import ManagementQueries, QueueStatistics

_POLL_S = 0.5
_FRESH = 2
"""How often the statistics must change. The first change may still be from before the queue was unbound."""
_NO_STATISTICS_S = 15.0
"""After this time without statistics, RabbitMQ collects none. By default, there are new ones every 5 s."""
_DECLARABLE = re.compile(r"[A-Za-z0-9_.:@#,/+ -]+")
"""The names that our AMQP library accepts, and with them the names of all our queues."""
_MANY_RETRIES = 100
"""The maximum of MAX_RETRIES. With fewer retries, there are only fewer wait queues."""

Verdict = Literal["deleted", "gone", "in use", "not empty", "has jobs", "unknown"]
"""`in use`: bound again, or consumed from. `has jobs`: the queue of a removed tenant, whose jobs may wait for minutes.
`unknown`: RabbitMQ reported no new statistics in time."""


@dataclass(frozen=True, slots=True)
class OldWaitQueue:
    """A queue that is not part of the current topology. `messages` is `None` if unknown."""

    name: str
    wait_ms: int
    """How long messages stay in it; 0 for the queue of a removed tenant."""
    messages: int | None
    consumers: int


@dataclass(frozen=True, slots=True)
class PruneResult:
    """The result for one old wait queue."""

    queue: OldWaitQueue
    verdict: Verdict
    messages: int = 0


async def find_old_wait_queues(topology: Topology, management: ManagementQueries) -> list[OldWaitQueue]:
    """Return all other queues with our prefix and the arguments of a wait queue. Raises `ManagementError`."""
    pattern = re.compile(re.escape(f"{topology.prefix}.retry.") + "([1-9][0-9]*)")
    found: list[OldWaitQueue] = []
    for name, arguments in (await management.queue_arguments()).items():
        match = pattern.fullmatch(name)
        if match is None or name in topology.arguments:
            continue
        ours = (arguments.get("x-message-ttl"), arguments.get("x-dead-letter-routing-key"))
        statistics = await management.statistics(name)
        if ours == (int(match[1]), topology.due) and statistics is not None:
            found.append(OldWaitQueue(name, int(match[1]), statistics.messages, statistics.consumers))
    return sorted(found, key=lambda it: it.wait_ms)


async def find_old_tenant_queues(topology: Topology, management: ManagementQueries) -> list[OldWaitQueue]:
    """Return all queues of tenants that are not in the topology. Raises `ManagementError`."""
    found: list[OldWaitQueue] = []
    for name, arguments in sorted((await management.queue_arguments()).items()):
        if not name.startswith(topology.tenant_prefix) or name in topology.tenant_queues:
            continue
        if not _DECLARABLE.fullmatch(name):
            continue
        ours = arguments.get("x-dead-letter-routing-key") == topology.due and "x-delivery-limit" in arguments
        statistics = await management.statistics(name) if ours else None
        if statistics is not None:
            found.append(OldWaitQueue(name, 0, statistics.messages, statistics.consumers))
    return found


async def guess_old_wait_queues(
    topology: Topology, connection: AbstractConnection, settings: Iterable[tuple[int, int]]
) -> list[OldWaitQueue]:
    """Return the existing wait queues of earlier settings, pairs of base and maximum delay (milliseconds)."""
    backoffs = [Backoff(base_ms, cap_ms, _MANY_RETRIES) for base_ms, cap_ms in settings]
    waits = {ms for it in backoffs for ms in (*it.retry_delays_ms, *it.earlier_retry_delays_ms)}
    found: list[OldWaitQueue] = []
    for wait_ms in sorted(waits - set(topology.backoff.waits_ms)):
        name = topology.wait_queue(wait_ms)
        depth = await topology.depth(connection, name)
        if depth is not None:
            found.append(OldWaitQueue(name, wait_ms, None, depth.consumers))
    return found


@dataclass(slots=True)
class _Freshness:
    """Decides whether the statistics of one queue are from after its last unbind."""

    revision: int | None = None
    changes: int = -1
    began: float = field(default_factory=time.monotonic)

    def note(self, statistics: QueueStatistics) -> bool:
        """Return whether these statistics are from after the first call."""
        if statistics.revision is not None and statistics.revision != self.revision:
            self.revision = statistics.revision
            self.changes += 1
        return self.changes >= _FRESH


@dataclass(frozen=True)
class Pruner:
    """Unbinds old queues, and deletes them when they are empty. Messages move on when their wait ends."""

    topology: Topology
    management: ManagementQueries

    async def prune(
        self,
        connection: AbstractConnection,
        queues: Sequence[OldWaitQueue],
        *,
        timeout_s: float,
        report: Callable[[PruneResult], object],
    ) -> list[PruneResult]:
        """Return the result for each queue. Each result is also reported immediately.

        Raises `ManagementError`, and the errors of a lost connection.
        """
        await self.management.verify(connection)
        for queue in queues:
            await self._unbind(connection, queue)
        pending = {queue: _Freshness() for queue in queues}
        results: list[PruneResult] = []
        ends = time.monotonic() + timeout_s
        while pending:
            left_s = ends - time.monotonic()
            for queue, freshness in list(pending.items()):
                if result := await self._judge(connection, queue, freshness, left_s):
                    del pending[queue]
                    results.append(result)
                    report(result)
            await asyncio.sleep(_POLL_S if pending else 0)
        return results

    async def _unbind(self, connection: AbstractConnection, queue: OldWaitQueue) -> None:
        for exchange, key in await self.management.queue_bindings(queue.name):
            if exchange == self.topology.retry.name:
                async with temporary_channel(connection) as channel:
                    await (await channel.get_queue(queue.name, ensure=False)).unbind(exchange, key)

    async def _judge(
        self, connection: AbstractConnection, queue: OldWaitQueue, freshness: _Freshness, left_s: float
    ) -> PruneResult | None:
        statistics = await self.management.statistics(queue.name)
        if statistics is None:
            return PruneResult(queue, "gone")
        if statistics.consumers or await self.management.queue_bindings(queue.name):
            return PruneResult(queue, "in use")
        messages = statistics.messages
        fresh = freshness.note(statistics) and messages is not None
        if fresh and not messages and await self._delete_if_empty(connection, queue):
            return PruneResult(queue, "deleted")
        if fresh and messages and not queue.wait_ms:
            return PruneResult(queue, "has jobs", messages)
        if freshness.revision is None and time.monotonic() - freshness.began > _NO_STATISTICS_S:
            return PruneResult(queue, "unknown")
        if left_s <= 0 or (fresh and messages and left_s < queue.wait_ms / 1000):
            return PruneResult(queue, "not empty", messages) if messages else PruneResult(queue, "unknown")
        return None

    async def _delete_if_empty(self, connection: AbstractConnection, queue: OldWaitQueue) -> bool:
        # AMQP's count is newer, and a job may have been published directly to the queue
        if await self.topology.depth(connection, queue.name) != Depth(messages=0, consumers=0):
            return False
        async with temporary_channel(connection) as channel:
            await channel.queue_delete(queue.name)
        return True
