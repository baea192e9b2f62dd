"""The connection to RabbitMQ: waited for, repaired, watched, and left in good order."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import structlog
from aio_pika import Message
from aio_pika.abc import AbstractConnection
from faststream.rabbit import Channel, RabbitBroker
from faststream.rabbit.subscriber import RabbitSubscriber
from yarl import URL

from otp_stream.core.state import BrokerState
from otp_stream.tasks import forever

from .arrival import now_ms
from .control import TROUBLES, Control
from .events import Events
from .lane import LaneConsumer
from .topology import Topology

HEARTBEAT_S = 10
"""A half-open connection is noticed after three heartbeats."""
_PAUSES_S = (0.5, 1.0, 2.0, 5.0)
_CANCEL_TIMEOUT_S = 3.0
_READY_S = 0.05

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class OtpBroker(RabbitBroker):
    """FastStream's broker, which waits for RabbitMQ at start, and stops intake before it drains at the end."""

    def __init__(self, url: str, *, shown_url: str, topology: Topology, enabled: bool) -> None:
        url = _with_heartbeat(url)
        super().__init__(
            url,
            apply_types=False,
            default_channel=Channel(on_return_raises=True),
            graceful_timeout=_CANCEL_TIMEOUT_S,
            reconnect_interval=1.0,
            timeout=10.0,
            on_close=[self._lost],
            on_reconnected=[self._back],
            logger=logging.getLogger("otp_stream.rabbit"),
            log_level=logging.DEBUG,
            specification_url=shown_url,
            description="The producers' RabbitMQ.",
        )
        self.topology = topology
        self.lanes: list[LaneConsumer] = []
        self.events = Events()
        self._enabled = enabled
        self._control = Control(url, topology)
        self._state = BrokerState(url=shown_url, since_ms=now_ms(), error=None)
        self._repair = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    def look(self) -> BrokerState:
        """Return the broker as this worker sees it."""
        lanes = tuple(lane.state for lane in self.lanes)
        return replace(self._state, lanes=lanes, events_dropped=self.events.dropped)

    async def start(self) -> None:
        """Wait until RabbitMQ answers and all queues stand, then consume. With `WORKER=false`, do nothing."""
        if not self._enabled:
            return
        tries = 0
        while not await self._try_to_start():
            await asyncio.sleep(_PAUSES_S[min(tries, len(_PAUSES_S) - 1)])
            tries += 1
        self._note(connected=True)
        _log.info("consuming", broker=self._state.url, queues=[lane.queue for lane in self.lanes])
        self._tasks = [
            asyncio.create_task(forever(self._keep_topology, "topology")),
            asyncio.create_task(forever(self._publish_events, "events")),
        ]

    async def _try_to_start(self) -> bool:
        try:
            await self._control.apply(self.lanes)
            await super().start()
        except TROUBLES as error:
            self._note(connected=False, error=_told(error))
            _log.warning("waiting for RabbitMQ", broker=self._state.url, error=_told(error))
            with contextlib.suppress(*TROUBLES):
                await super().stop()
            return False
        return True

    async def refresh(self) -> None:
        """Ask the broker for depths and consumers; what is missing is mended."""
        if not self._enabled:
            return
        try:
            dead, waiting, missing = await self._control.ask(self.lanes)
        except TROUBLES as error:
            self._note(error=_told(error))
            return
        self._note(dead=dead, waiting=waiting, looked_ms=now_ms(), blocked=await self._is_blocked())
        if missing:
            self.repair(f"missing at the broker: {', '.join(missing)}")

    async def _is_blocked(self) -> bool:
        # the broker said `connection.blocked`: it is short of memory or disk, and reads no more publishes
        transport = self._connection.transport if self._connection else None
        if transport is None:
            return False
        try:
            async with asyncio.timeout(_READY_S):
                await transport.connection.ready()
        except TimeoutError:
            return True
        return False

    def repair(self, why: str) -> None:
        """Have the topology applied again soon."""
        if not self._repair.is_set():
            _log.warning("topology is checked again", reason=why)
            self._repair.set()

    async def confirmed(self, message: Message, *, exchange: str, routing_key: str) -> None:
        """Publish, mandatory and confirmed; raises when the broker returns it, refuses it or is away."""
        where = self.topology.retry if exchange == self.topology.retry.name else None
        await self.publish(message, routing_key=routing_key, exchange=where, mandatory=True, persist=True)

    async def stop_intake(self) -> None:
        """Cancel the consumers; what was delivered stays in hand."""
        self._stopping = True
        for subscriber in self.subscribers:
            if isinstance(subscriber, RabbitSubscriber):
                with contextlib.suppress(*TROUBLES):
                    await asyncio.wait_for(_cancel(subscriber), _CANCEL_TIMEOUT_S)

    async def drain(self, give_up: Callable[[], bool]) -> int:
        """Let the jobs in hand come to their end until `give_up`; return the rest, and say how many."""
        returned = sum(await asyncio.gather(*(lane.drain(give_up) for lane in self.lanes)))
        await self.events.flush(1.0)
        return returned

    async def stop(self, *args: Any, **kwargs: Any) -> None:
        """Close everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await self._control.close()
        with contextlib.suppress(*TROUBLES):
            await super().stop(*args, **kwargs)

    async def _keep_topology(self) -> None:
        while True:
            await self._repair.wait()
            try:
                await self._control.apply(self.lanes)
                self._repair.clear()
            except TROUBLES as error:
                self._note(error=_told(error))
            await asyncio.sleep(1.0)  # however often it is asked for, once a second is enough

    async def _publish_events(self) -> None:
        channels = self.config.channel_manager
        channel = await channels.get_channel(Channel(publisher_confirms=False))
        await self.events.publish_to(await channel.get_exchange(self.topology.events.name, ensure=False))

    def _lost(self, _: AbstractConnection | None, error: BaseException | None) -> None:
        if self._stopping:
            return
        told = _told(error) if error else "connection closed"
        if self._state.connected or told != self._state.error:  # it is tried every second, and told when it is news
            _log.warning("RabbitMQ is away, connecting again", broker=self._state.url, error=told)
        self._note(connected=False, error=told)
        self._repair.set()

    def _back(self, _: AbstractConnection | None) -> None:
        self._note(connected=True, error=None)
        _log.info("RabbitMQ is back", broker=self._state.url)

    def _note(self, **changes: Any) -> None:
        if changes.get("connected", self._state.connected) != self._state.connected:
            changes["since_ms"] = now_ms()
        if changes.get("connected") or "looked_ms" in changes:
            changes.setdefault("error", None)
        self._state = replace(self._state, **changes)


async def _cancel(subscriber: RabbitSubscriber) -> None:
    # FastStream cancels a consumer only after its drain: by then a second window has been delivered, dropped and
    # given back. So the consumer is cancelled here, first; there is no public way to it.
    private = cast("Any", subscriber)
    queue, tag = private._queue_obj, private._consumer_tag  # noqa: SLF001
    if queue is not None and tag is not None:
        await queue.cancel(tag)
        private._consumer_tag = None  # noqa: SLF001


def _with_heartbeat(url: str) -> str:
    parsed = URL(url)
    return url if "heartbeat" in parsed.query else str(parsed.update_query(heartbeat=HEARTBEAT_S))


def _told(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
