"""The consumers. Each lane's is watched by itself, so that a queue which is away stops no other lane."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast

import structlog
from aio_pika.abc import AbstractConnection
from faststream.rabbit.subscriber import RabbitSubscriber

from .control import TROUBLES, leave

_CANCEL_TIMEOUT_S = 3.0
_START_TIMEOUT_S = 10.0
_RESTORE_TIMEOUT_S = 10.0
"""A broker that is about to go may take a request for a channel and never answer it."""
_LOOK_S = 0.25
_TRY_AGAIN_S = 1.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Intake:
    """Starts the subscribers, and starts each again whose consumer is gone.

    aio-pika would do so itself, but as one: where one queue cannot be consumed (its node is down), it gives the whole
    connection up, and with it every other lane. `exists` asks the broker for a queue, because the attempt to consume
    one that is away costs the channel. `connection` is the one that consumes.
    """

    def __init__(
        self, exists: Callable[[str], Awaitable[bool]], connection: Callable[[], AbstractConnection | None]
    ) -> None:
        self._exists = exists
        self._connection = connection
        self._away: set[str] = set()
        self._standing: set[str] = set()

    async def start(self, subscribers: Iterable[RabbitSubscriber]) -> None:
        """Consume from every queue that is there. Raises what the broker says of one that is there and refuses."""
        for subscriber in subscribers:
            await self._consume(subscriber)

    async def keep(self, subscribers: Iterable[RabbitSubscriber]) -> None:
        """Look after the consumers until cancelled."""
        await asyncio.gather(*map(self._keep, subscribers))

    async def _keep(self, subscriber: RabbitSubscriber) -> None:
        well = True
        while True:
            await asyncio.sleep(_LOOK_S if well else _TRY_AGAIN_S)
            well = await _stands(subscriber)
            if not well:
                self._standing.discard(subscriber.queue.name)
                well = await self._try_to_consume(subscriber)

    async def stop(self, subscribers: Iterable[RabbitSubscriber]) -> None:
        """Cancel the consumers; what was delivered stays in hand."""
        for subscriber in subscribers:
            await leave(_cancel(subscriber), _CANCEL_TIMEOUT_S)

    async def _try_to_consume(self, subscriber: RabbitSubscriber) -> bool:
        name = subscriber.queue.name
        try:
            came = await self._consume(subscriber)
        except TROUBLES as error:
            _log.debug("consumer not started", queue=name, error=type(error).__name__)
            return False
        if came:
            _log.info("consuming again", queue=name)
        return came

    async def _consume(self, subscriber: RabbitSubscriber) -> bool:
        name = subscriber.queue.name
        if not await self._exists(name):
            if name not in self._away:
                self._away.add(name)
                _log.warning("queue is away, nothing is consumed from it", queue=name)
            return False
        connection = self._connection()
        transport = connection.transport if connection else None
        try:
            await asyncio.wait_for(subscriber.start(), _START_TIMEOUT_S)
        except TimeoutError:
            if transport is not None and not self._standing:
                # It lives and gives no answer: what hangs in it would hang for ever. Closed, it is opened again.
                told = ConnectionError(f"no answer to the request to consume from {name}")
                await leave(transport.connection.close(told), _CANCEL_TIMEOUT_S)
            raise
        self._away.discard(name)
        self._standing.add(name)
        return True


# FastStream keeps queue and tag of a consumer to itself, and cancels it only after its drain: by then a second window
# has been delivered, dropped and given back.


async def _stands(subscriber: RabbitSubscriber) -> bool:
    private = cast("Any", subscriber)
    queue, tag = private._queue_obj, private._consumer_tag  # noqa: SLF001
    if queue is None:
        return False
    try:
        async with asyncio.timeout(_RESTORE_TIMEOUT_S):
            await queue.channel.restore()  # does nothing, unless the channel was closed and could not be opened again
            channel = await queue.channel.get_underlay_channel()
    except TROUBLES:
        return False
    return tag in channel.consumers and not channel.is_closed


async def _cancel(subscriber: RabbitSubscriber) -> None:
    private = cast("Any", subscriber)
    queue, tag = private._queue_obj, private._consumer_tag  # noqa: SLF001
    if queue is not None and tag is not None:
        await queue.cancel(tag)
        private._consumer_tag = None  # noqa: SLF001
