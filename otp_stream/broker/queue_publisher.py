"""Confirmed publishes to queues, of which those of one iteration of the event loop go in one packet.

A tenant's backlog is moved at this rate, and other tenants' jobs wait behind it. FastStream's publisher, aio-pika and
aiormq together take most of the time of a move: each publish waits until the one before it is written.
"""

import asyncio
from collections.abc import Callable
from typing import Any, cast
from uuid import uuid4

from aio_pika import Message
from aiormq import Channel
from aiormq.abc import ChannelFrame
from pamqp.header import ContentHeader

from otp_stream.tasks import lost_connection_as_error

from . import frames
from .confirmed_publish import ConfirmedPublisher
from .topology_admin import quietly

_CONFIRM_TIMEOUT_S = 10.0
_TRY_AGAIN_S = 0.005


class QueuePublisher:
    """Publishes through the default exchange.

    A message goes through `other` instead if `uses_other` returns true, and if another one with the same id is in
    flight, because aiormq matches a returned message by its id alone.
    """

    def __init__(self, other: ConfirmedPublisher, *, uses_other: Callable[[], bool]) -> None:
        self._other = other
        self._uses_other = uses_other
        self._packets: _Packets | None = None
        self._retired: list[_Packets] = []
        """Channels that are no longer used, and have messages in flight."""
        self._opening = asyncio.Lock()

    async def __call__(self, message: Message, *, exchange: str, routing_key: str, new_channel: bool = False) -> None:
        """Publish and wait for the confirm. Raises if the broker returns the message, refuses it or does not answer."""
        packets = None if exchange or new_channel or self._uses_other() else await self._open_packets()
        message_id = message.message_id or uuid4().hex
        if packets is None or packets.has(message_id):
            await self._other(message, exchange=exchange, routing_key=routing_key, new_channel=new_channel)
            return
        confirm = packets.add(message, message_id, routing_key)
        try:
            with lost_connection_as_error():
                await self._confirmed(confirm)
        except Exception:
            await self._retire(packets)
            raise
        finally:
            confirm.cancel()

    async def _confirmed(self, confirm: asyncio.Future[object]) -> None:
        while not (await asyncio.wait({confirm}, timeout=_CONFIRM_TIMEOUT_S))[0]:
            if not await self._other.is_blocked():
                raise TimeoutError
        await confirm

    async def _retire(self, packets: "_Packets") -> None:
        """Use another channel from now on: a queue that has refused a message may refuse this channel forever."""
        if self._packets is packets:
            self._packets = None
            self._retired.append(packets)
        done = [it for it in self._retired if it.idle]
        self._retired = [it for it in self._retired if it not in done]
        for it in done:
            await quietly(it.channel.close(), _CONFIRM_TIMEOUT_S)

    async def _open_packets(self) -> "_Packets":
        packets = self._packets
        if packets is None or packets.channel.is_closed:
            async with self._opening:
                packets = self._packets
                if packets is None or packets.channel.is_closed:
                    packets = self._packets = _Packets(await self._open_channel())
        return packets

    async def _open_channel(self) -> Channel:
        transport = self._other.transport
        if transport is None or transport.is_closed:
            raise ConnectionError("not connected")
        with lost_connection_as_error():
            async with asyncio.timeout(_CONFIRM_TIMEOUT_S):
                return cast("Channel", await transport.channel(publisher_confirms=True, on_return_raises=True))


class _Packets:
    """The messages of one channel. aiormq matches the confirms."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._confirms = cast("dict[int, object]", cast("Any", channel).confirmations)
        self._loop = asyncio.get_running_loop()
        self._outgoing = cast("asyncio.Queue[ChannelFrame]", cast("Any", channel.connection).write_queue)
        self._pending: list[bytes] = []
        self._scheduled = False

    @property
    def idle(self) -> bool:
        """Whether no message is in flight."""
        return not self._confirms

    def has(self, message_id: str) -> bool:
        """Return whether a message with this id is in flight."""
        return message_id in self.channel.message_id_delivery_tag

    def add(self, message: Message, message_id: str, queue: str) -> asyncio.Future[object]:
        """Publish a message. Returns a future that ends with its confirm."""
        channel = self.channel
        properties = message.properties
        properties.message_id = message_id
        header = ContentHeader(properties=properties, body_size=len(message.body)).marshal()
        packet = frames.publish(channel.number, queue, header, message.body, channel.max_content_size)
        # from here on nothing may fail, because the broker counts the messages
        channel.delivery_tag += 1
        confirm = cast("asyncio.Future[object]", cast("Any", channel).create_future())
        self._confirms[channel.delivery_tag] = confirm
        channel.message_id_delivery_tag[message_id] = channel.delivery_tag
        confirm.add_done_callback(lambda _: channel.message_id_delivery_tag.pop(message_id, None))
        self._pending.append(packet)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._send)
        return confirm

    def _send(self) -> None:
        if self._outgoing.full() and not self.channel.is_closed:
            self._loop.call_later(_TRY_AGAIN_S, self._send)
            return
        self._scheduled = False
        packet, self._pending = b"".join(self._pending), []
        if not self.channel.is_closed:  # else aiormq has ended the futures
            self._outgoing.put_nowait(frames.packet(packet))
