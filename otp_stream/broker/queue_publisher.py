"""Confirmed publishes to queues, of which those of one iteration of the event loop go in one packet.

A tenant's backlog is moved at this rate, and other tenants' jobs wait behind it. FastStream's publisher, aio-pika and
aiormq together take most of the time of a move: each publish waits until the one before it is written, and each confirm
is compared with all messages in flight.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from time import perf_counter
from typing import Any, cast

from aio_pika import Message
from aiormq import Channel
from aiormq.abc import ChannelFrame
from aiormq.exceptions import DeliveryError, PublishError
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from otp_stream.tasks import lost_connection_as_error
from otp_stream.telemetry_errors import observe

from . import frames
from .confirmed_publish import ConfirmedPublisher
from .headers import MAC
from .telemetry import BrokerTelemetry
from .topology_admin import quietly

_CONFIRM_TIMEOUT_S = 10.0
_TRY_AGAIN_S = 0.005

Published = Callable[[float, Exception | None], None]
"""Counts a publish that took so many seconds, and its error."""
Confirm = asyncio.Future[None]
"""Ends with the confirm of a message."""


class QueuePublisher:
    """Publishes signed messages through the default exchange.

    A message goes through `other` instead if `uses_other` returns true.
    """

    def __init__(
        self, other: ConfirmedPublisher, telemetry: BrokerTelemetry, *, uses_other: Callable[[], bool]
    ) -> None:
        self._other = other
        self._published = partial(telemetry.published, other.to_tenant)
        self._uses_other = uses_other
        self._packets: _Packets | None = None
        self._opening = asyncio.Lock()

    async def __call__(self, message: Message, *, exchange: str, routing_key: str, new_channel: bool = False) -> None:
        """Publish and wait for the confirm. Raises if the broker returns the message, refuses it or does not answer."""
        if exchange or new_channel or self._uses_other():
            await self._other(message, exchange=exchange, routing_key=routing_key, new_channel=new_channel)
            return
        packets = await self._open_packets()
        header = ContentHeader(properties=message.properties, body_size=len(message.body)).marshal()
        await packets.add(routing_key, header, message.body, str(message.headers[MAC]))

    def start(self, queue: str, header: bytes, body: bytes, mac: str) -> Confirm | None:
        """Publish a message whose content header has this payload and `mac`. Returns `None` if that takes longer."""
        packets = self._packets
        if packets is None or not packets.usable or self._uses_other():
            return None
        return packets.add(queue, header, body, mac)

    async def _open_packets(self) -> "_Packets":
        packets = self._packets
        if packets is None or not packets.usable:
            async with self._opening:
                packets = self._packets
                if packets is None or not packets.usable:
                    packets = self._packets = _Packets(
                        await self._open_channel(), self._other.is_blocked, self._published
                    )
        return packets

    async def _open_channel(self) -> Channel:
        transport = self._other.transport
        if transport is None or transport.is_closed:
            raise ConnectionError("not connected")
        with lost_connection_as_error():
            async with asyncio.timeout(_CONFIRM_TIMEOUT_S):
                return cast("Channel", await transport.channel(publisher_confirms=True))


class _Packets:
    """The messages of one channel, and their confirms, which aiormq reads and passes to this class.

    After an error it takes no more messages, because a queue that has refused one may refuse its channel forever. The
    channel is closed once no message is in flight.
    """

    def __init__(self, channel: Channel, is_blocked: Callable[[], Awaitable[bool]], published: Published) -> None:
        self.channel = channel
        self.usable = True
        self._published = published
        self._is_blocked = is_blocked
        self._loop = asyncio.get_running_loop()
        self._outgoing = cast("asyncio.Queue[ChannelFrame]", cast("Any", channel.connection).write_queue)
        self._pending: list[bytes] = []
        self._scheduled = False
        self._last = 0
        self._in_flight: dict[int, tuple[str, Confirm, float]] = {}
        """MAC, confirm and time of each message in flight, by its number, in the order in which they were published."""
        self._watching: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        # aiormq looks up both in its channel; no other class can be given to it
        vars(channel).update(_on_confirm_frame=self._on_confirm, _on_return_frame=self._on_return)
        cast("asyncio.Future[object]", cast("Any", channel).closing).add_done_callback(self._closed)

    def add(self, queue: str, header: bytes, body: bytes, mac: str) -> Confirm:
        """Publish a message."""
        channel = self.channel
        self._pending.append(frames.publish(channel.number, queue, header, body, channel.max_content_size))
        self._last += 1
        confirm: Confirm = self._loop.create_future()
        self._in_flight[self._last] = (mac, confirm, perf_counter())
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._send)
        if self._watching is None:
            self._watching = self._loop.create_task(self._watch())
        return confirm

    def _send(self) -> None:
        if self._outgoing.full() and not self.channel.is_closed:
            self._loop.call_later(_TRY_AGAIN_S, self._send)
            return
        self._scheduled = False
        packet, self._pending = b"".join(self._pending), []
        if not self.channel.is_closed:
            self._outgoing.put_nowait(frames.packet(packet))

    async def _on_confirm(self, frame: Basic.Ack | Basic.Nack) -> None:
        tag = frame.delivery_tag or 0
        error = None if isinstance(frame, Basic.Ack) else DeliveryError(None, frame)
        if not frame.multiple:
            self._end(tag, error)
            return
        for number in list(self._in_flight):
            if number > tag:
                break
            self._end(number, error)

    async def _on_return(self, frame: Basic.Return) -> None:
        # a returned message is confirmed as well, but afterwards
        channel = cast("Any", self.channel)
        message = await channel._read_content(frame, await channel._get_frame())  # noqa: SLF001 - as above
        mac = cast("dict[str, object]", message.header.properties.headers or {}).get(MAC)
        number = next((it for it, (known, *_) in self._in_flight.items() if known == mac), None)
        error = PublishError(message, frame)
        if number is None:
            self._fail(error)  # which one is unknown
        else:
            self._end(number, error)

    def _end(self, number: int, error: Exception | None) -> None:
        found = self._in_flight.pop(number, None)
        if found is None:
            return
        _, confirm, since = found
        observe(self._published, perf_counter() - since, error)
        if error is not None:
            self.usable = False
        if not confirm.done():
            if error is None:
                confirm.set_result(None)
            else:
                confirm.set_exception(error)
        if not self.usable and not self._in_flight and self._ending is None:
            self._ending = self._loop.create_task(quietly(self.channel.close(), _CONFIRM_TIMEOUT_S))

    def _fail(self, error: Exception) -> None:
        self.usable = False
        for number in list(self._in_flight):
            self._end(number, error)

    def _closed(self, _: object) -> None:
        self._fail(ConnectionError("the connection was lost"))
        if self._watching is not None:
            self._watching.cancel()

    async def _watch(self) -> None:
        while True:
            oldest = next(iter(self._in_flight), None)
            await asyncio.sleep(_CONFIRM_TIMEOUT_S)
            if oldest in self._in_flight and not await self._is_blocked():
                self._fail(TimeoutError())
