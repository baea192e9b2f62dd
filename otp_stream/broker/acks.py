"""Acknowledgements of one channel, gathered: all that fall due in one turn of the loop leave in one packet."""

import asyncio
from typing import Any, cast

from aiormq import Channel
from aiormq.abc import ChannelFrame

from . import frames

_TRY_AGAIN_S = 0.005


class Acks:
    """Acknowledges at once, but one `multiple` stands for all deliveries up to the last one before a gap."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._outgoing = cast("asyncio.Queue[ChannelFrame]", cast("Any", channel.connection).write_queue)
        self._loop = asyncio.get_running_loop()
        self._floor = 0
        """Up to here, all deliveries are settled."""
        self._above: set[int] = set()
        """Settled ones above it."""
        self._owed: list[int] = []
        self._due = False

    def ack(self, tag: int) -> None:
        """Acknowledge a delivery."""
        self._owed.append(tag)
        self._fall_due()

    def settled_otherwise(self, tag: int) -> None:
        """Take note of a delivery that was given back."""
        self._above.add(tag)

    def _fall_due(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._due = False
        if self.channel.is_closed:
            self._owed.clear()
            return
        if self._outgoing.full():
            self._due = True
            self._loop.call_later(_TRY_AGAIN_S, self._send)
            return
        self._outgoing.put_nowait(frames.packet(self._frames()))

    def _frames(self) -> bytes:
        owed, self._owed = self._owed, []
        above = self._above
        above.update(owed)
        floor = self._floor
        while floor + 1 in above:
            floor += 1
            above.discard(floor)
        self._floor = floor
        under = [tag for tag in owed if tag <= floor]
        number = self.channel.number
        parts = [frames.ack(number, max(under), multiple=len(under) > 1)] if under else []
        parts += [frames.ack(number, tag, multiple=False) for tag in owed if tag > floor]
        return b"".join(parts)
