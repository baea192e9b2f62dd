"""Wait queues of retry settings that nobody has any more: found, and deleted once they hold nothing.

AMQP cannot tell when that is. Of a quorum queue it counts what is ready, but not what is being handed over, which stays
where it is as long as the queue behind it is full or away; and quorum queues know neither `if-empty` nor `if-unused`
(RabbitMQ 3.10 ends the connection with 540). So only the management API's word counts, and only figures that were
taken after the queue was cut off from new messages.
"""

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from aio_pika.abc import AbstractConnection

from otp_stream.broker.census import Census, Holding
from otp_stream.broker.queue_inspect import on_channel
from otp_stream.broker.topology import Depth, Topology
from otp_stream.core.backoff import Backoff

_POLL_S = 0.5
_FRESH = 2
"""How often figures must have changed. The first that are new may have been taken before the queue was cut off."""
_NO_FIGURES_S = 15.0
"""After so long without any figures RabbitMQ collects none: by default there are new ones every 5 s."""
_MANY_RETRIES = 100
"""As many as a setting can ask for: fewer retries only have fewer rungs."""

Verdict = Literal["deleted", "gone", "in use", "holds", "unseen"]
"""`in use`: bound again, or consumed from; `unseen`: RabbitMQ reported no fresh statistics in time."""


@dataclass(frozen=True, slots=True)
class OldRung:
    """A wait queue that is no rung of today's ladder; `messages` is what is known of them, `None` for nothing."""

    name: str
    wait_ms: int
    messages: int | None
    consumers: int


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of an old wait queue."""

    rung: OldRung
    verdict: Verdict
    messages: int = 0


async def every_old_rung(topology: Topology, census: Census) -> list[OldRung]:
    """Return all there are, with the arguments of ours. Raises `ManagementError`."""
    pattern = re.compile(re.escape(f"{topology.prefix}.retry.") + "([1-9][0-9]*)")
    found: list[OldRung] = []
    for name, arguments in (await census.queues()).items():
        match = pattern.fullmatch(name)
        if match is None or name in topology.arguments:
            continue
        ours = (arguments.get("x-message-ttl"), arguments.get("x-dead-letter-routing-key"))
        holding = await census.holding(name)
        if ours == (int(match[1]), topology.due) and holding is not None:
            found.append(OldRung(name, int(match[1]), holding.messages, holding.consumers))
    return sorted(found, key=lambda it: it.wait_ms)


async def guessed_old_rungs(
    topology: Topology, connection: AbstractConnection, settings: Iterable[tuple[int, int]]
) -> list[OldRung]:
    """Return those that stand and that some base and longest delay (milliseconds) would make, or would have made."""
    backoffs = [Backoff(base_ms, cap_ms, _MANY_RETRIES) for base_ms, cap_ms in settings]
    waits = {ms for it in backoffs for ms in (*it.rungs_ms, *it.earlier_rungs_ms)}
    found: list[OldRung] = []
    for wait_ms in sorted(waits - set(topology.backoff.waits_ms)):
        name = topology.rung(wait_ms)
        depth = await topology.depth(connection, name)
        if depth is not None:
            found.append(OldRung(name, wait_ms, None, depth.consumers))
    return found


@dataclass(slots=True)
class _Watch:
    """How fresh the figures of one queue are."""

    mark: int | None = None
    changes: int = -1
    began: float = field(default_factory=time.monotonic)

    def note(self, holding: Holding) -> bool:
        """Return whether these figures were taken after the first that were noted."""
        if holding.mark is not None and holding.mark != self.mark:
            self.mark = holding.mark
            self.changes += 1
        return self.changes >= _FRESH


@dataclass(frozen=True)
class Pruning:
    """Cuts old wait queues off and deletes those that hold nothing; what is in them goes on when its wait is over."""

    topology: Topology
    census: Census

    async def prune(
        self,
        connection: AbstractConnection,
        rungs: Sequence[OldRung],
        *,
        patience_s: float,
        told: Callable[[Ended], object],
    ) -> list[Ended]:
        """Return what became of each, and tell it at once. Raises `ManagementError` and what a lost connection does."""
        await self.census.verify(connection)
        for rung in rungs:
            await self._cut_off(connection, rung)
        watched = {rung: _Watch() for rung in rungs}
        ended: list[Ended] = []
        ends = time.monotonic() + patience_s
        while watched:
            left_s = ends - time.monotonic()
            for rung, watch in list(watched.items()):
                if end := await self._judge(connection, rung, watch, left_s):
                    del watched[rung]
                    ended.append(end)
                    told(end)
            await asyncio.sleep(_POLL_S if watched else 0)
        return ended

    async def _cut_off(self, connection: AbstractConnection, rung: OldRung) -> None:
        for exchange, key in await self.census.bindings(rung.name):
            if exchange == self.topology.retry.name:
                async with on_channel(connection) as channel:
                    await (await channel.get_queue(rung.name, ensure=False)).unbind(exchange, key)

    async def _judge(self, connection: AbstractConnection, rung: OldRung, watch: _Watch, left_s: float) -> Ended | None:
        holding = await self.census.holding(rung.name)
        if holding is None:
            return Ended(rung, "gone")
        if holding.consumers or await self.census.bindings(rung.name):
            return Ended(rung, "in use")
        fresh = watch.note(holding) and holding.messages is not None
        if fresh and not holding.messages and await self._deleted(connection, rung):
            return Ended(rung, "deleted")
        if watch.mark is None and time.monotonic() - watch.began > _NO_FIGURES_S:
            return Ended(rung, "unseen")
        if left_s <= 0 or (fresh and holding.messages and left_s < rung.wait_ms / 1000):
            return Ended(rung, "holds", holding.messages) if holding.messages else Ended(rung, "unseen")
        return None

    async def _deleted(self, connection: AbstractConnection, rung: OldRung) -> bool:
        # The last look is AMQP's, at this moment: a job may have come by another way than the exchange.
        if await self.topology.depth(connection, rung.name) != Depth(messages=0, consumers=0):
            return False
        async with on_channel(connection) as channel:
            await channel.queue_delete(rung.name)
        return True
