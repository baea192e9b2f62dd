"""Server-sent events: the parts of a page that have changed, once a second."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from starlette.requests import Request

_INTERVAL_S = 1.0
_STOP_CHECK_S = 0.25
"""How often a stream checks whether the worker is stopping: open streams delay its shutdown."""
_LIFETIME_S = 600.0
"""A browser reconnects automatically; a connection that a proxy keeps open without a browser ends."""
MAX_VIEWERS = 40
"""Streams at once; each costs a connection and about two kilobytes a second."""
RESERVED_FOR_USERS = 8
"""Of these, those that only users get, where there are tokens: visitors cannot keep users out."""


class Snapshot(NamedTuple):
    """The parts of a page at one moment."""

    title: str
    parts: Mapping[str, str]
    """HTML by the id of its element."""


@dataclass(slots=True)
class EventStream:
    """Sends each viewer the parts that have changed since the last event. The viewers share snapshots."""

    snapshot: Callable[[bool], Awaitable[Snapshot]]
    """Returns a snapshot with or without the recent jobs."""
    may_see_jobs: Callable[[Request], Awaitable[bool]]
    is_stopping: Callable[[], bool]
    viewers: int = 0

    async def has_room(self, request: Request) -> bool:
        """Return whether there is room for one more stream: the last ones are for users."""
        if self.viewers < MAX_VIEWERS - RESERVED_FOR_USERS:
            return True
        return await self.may_see_jobs(request) and self.viewers < MAX_VIEWERS

    async def events(self, request: Request) -> AsyncGenerator[bytes]:
        """Yield events until the worker stops: the first has all parts, the others those that have changed."""
        sent: dict[str, str] = {}
        ends = time.monotonic() + _LIFETIME_S
        self.viewers += 1
        try:
            yield b"retry: 1000\n\n"
            with_jobs = await self.may_see_jobs(request)
            while not self.is_stopping() and time.monotonic() < ends:
                # until the token is removed; not asked again without one, because each wrong token is recorded
                with_jobs = with_jobs and await self.may_see_jobs(request)
                snapshot = await self.snapshot(with_jobs)
                changed = {name: html for name, html in snapshot.parts.items() if sent.get(name) != html}
                sent |= changed
                # sent even if nothing has changed: the page shows "No answer" when no event arrives
                yield b"data: " + json.dumps({"title": snapshot.title, "parts": changed}).encode() + b"\n\n"
                await self._pause()
        finally:
            self.viewers -= 1

    async def _pause(self) -> None:
        ends = time.monotonic() + _INTERVAL_S
        while time.monotonic() < ends and not self.is_stopping():  # noqa: ASYNC110 - the stop is not an event
            await asyncio.sleep(_STOP_CHECK_S)
