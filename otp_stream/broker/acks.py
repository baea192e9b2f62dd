"""Acknowledgements of one channel, batched: those of one iteration of the event loop are sent in one packet."""

import asyncio
from typing import Any, cast

from aiormq import Channel
from aiormq.abc import ChannelFrame

from . import frames

_TRY_AGAIN_S = 0.005


class Acks:
    """Acknowledges without delay, with one `multiple` for all deliveries up to the last one before a gap."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._outgoing = cast("asyncio.Queue[ChannelFrame]", cast("Any", channel.connection).write_queue)
        self._loop = asyncio.get_running_loop()
        self._floor = 0
        """All deliveries up to this tag are settled."""
        self._above: set[int] = set()
        """Settled deliveries above it."""
        self._pending: list[int] = []
        self._scheduled = False

    def ack(self, tag: int) -> None:
        """Acknowledge a delivery."""
        self._pending.append(tag)
        self._schedule()

    def settled_otherwise(self, tag: int) -> None:
        """Record a delivery that was rejected or requeued."""
        self._above.add(tag)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._scheduled = False
        if self.channel.is_closed:
            self._pending.clear()
            return
        if self._outgoing.full():
            self._scheduled = True
            self._loop.call_later(_TRY_AGAIN_S, self._send)
            return
        self._outgoing.put_nowait(frames.packet(self._frames()))

    def _frames(self) -> bytes:
        tags, self._pending = self._pending, []
        above = self._above
        above.update(tags)
        floor = self._floor
        while floor + 1 in above:
            floor += 1
            above.discard(floor)
        self._floor = floor
        under = [tag for tag in tags if tag <= floor]
        number = self.channel.number
        parts = [frames.ack(number, max(under), multiple=len(under) > 1)] if under else []
        parts += [frames.ack(number, tag, multiple=False) for tag in tags if tag > floor]
        return b"".join(parts)
