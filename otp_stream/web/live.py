"""What changes in a page, as server-sent events: every second the parts that are not as they were."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

_EVERY_S = 1.0
_LOOK_S = 0.25
"""How soon a worker that stops lets its viewers go: they would hold its shutdown up."""
_LIFE_S = 600.0
"""A browser comes again by itself; what something in between holds open for nobody ends."""
MOST = 40
"""Viewers at once; each costs a connection and about two kilobytes a second."""


class Picture(NamedTuple):
    """A page at one moment."""

    title: str
    parts: Mapping[str, str]
    """HTML by the id of its place."""


@dataclass(slots=True)
class Live:
    """Tells every viewer what has changed since it was last told. However many look, a picture is made once."""

    make: Callable[[], Awaitable[Picture]]
    stopping: Callable[[], bool]
    viewers: int = 0
    _picture: Picture | None = None
    _made_at: float = 0.0
    _making: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def stream(self) -> AsyncGenerator[bytes]:
        """Return events until the worker stops: the first with the whole, the others with what is new."""
        told: dict[str, str] = {}
        ends = time.monotonic() + _LIFE_S
        self.viewers += 1
        try:
            yield b"retry: 1000\n\n"
            while not self.stopping() and time.monotonic() < ends:
                picture = await self._newest()
                changed = {name: html for name, html in picture.parts.items() if told.get(name) != html}
                told |= changed
                # without a change, too: silence means that nobody is there
                yield b"data: " + json.dumps({"title": picture.title, "parts": changed}).encode() + b"\n\n"
                await self._pause()
        finally:
            self.viewers -= 1

    async def _newest(self) -> Picture:
        async with self._making:
            now = time.monotonic()
            if self._picture is None or now - self._made_at >= _EVERY_S / 2:
                self._picture, self._made_at = await self.make(), now
            return self._picture

    async def _pause(self) -> None:
        ends = time.monotonic() + _EVERY_S
        while time.monotonic() < ends and not self.stopping():  # noqa: ASYNC110 - nobody announces a stop here
            await asyncio.sleep(_LOOK_S)
