"""Server-sent events: the parts of a page that have changed, once a second."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

_INTERVAL_S = 1.0
_STOP_CHECK_S = 0.25
"""How often a stream checks whether the worker is stopping: open streams delay its shutdown."""
_LIFETIME_S = 600.0
"""A browser reconnects automatically; a connection that a proxy keeps open without a browser ends."""
MAX_VIEWERS = 40
"""Streams at once; each costs a connection and about two kilobytes a second."""


class Snapshot(NamedTuple):
    """The parts of a page at one moment."""

    title: str
    parts: Mapping[str, str]
    """HTML by the id of its element."""


@dataclass(slots=True)
class EventStream:
    """Sends each viewer the parts that have changed since the last event. All viewers share one snapshot."""

    make_snapshot: Callable[[], Awaitable[Snapshot]]
    is_stopping: Callable[[], bool]
    viewers: int = 0
    _snapshot: Snapshot | None = None
    _made_at: float = 0.0
    _making: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def events(self) -> AsyncGenerator[bytes]:
        """Yield events until the worker stops: the first has all parts, the others those that have changed."""
        sent: dict[str, str] = {}
        ends = time.monotonic() + _LIFETIME_S
        self.viewers += 1
        try:
            yield b"retry: 1000\n\n"
            while not self.is_stopping() and time.monotonic() < ends:
                snapshot = await self._latest()
                changed = {name: html for name, html in snapshot.parts.items() if sent.get(name) != html}
                sent |= changed
                # sent even if nothing has changed: the page shows "No answer" when no event arrives
                yield b"data: " + json.dumps({"title": snapshot.title, "parts": changed}).encode() + b"\n\n"
                await self._pause()
        finally:
            self.viewers -= 1

    async def _latest(self) -> Snapshot:
        async with self._making:
            now = time.monotonic()
            if self._snapshot is None or now - self._made_at >= _INTERVAL_S / 2:
                self._snapshot, self._made_at = await self.make_snapshot(), now
            return self._snapshot

    async def _pause(self) -> None:
        ends = time.monotonic() + _INTERVAL_S
        while time.monotonic() < ends and not self.is_stopping():  # noqa: ASYNC110 - the stop is not an event
            await asyncio.sleep(_STOP_CHECK_S)
