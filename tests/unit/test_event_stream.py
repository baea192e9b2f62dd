"""The stream of events shows recent jobs to those who may see them."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from starlette.requests import Request

from otp_stream.web import stream
from otp_stream.web.stream import EventStream, Snapshot

REQUEST = Request({"type": "http", "headers": []})


async def _snapshot(with_jobs: bool) -> Snapshot:  # noqa: FBT001 - a callback
    return Snapshot("title", {"recent": "jobs" if with_jobs else "log in"})


async def _shown(it: EventStream) -> AsyncGenerator[str]:
    async with aclosing(it.events(REQUEST)) as events:
        async for event in events:
            if event.startswith(b"data: "):
                yield json.loads(event.removeprefix(b"data: "))["parts"].get("recent", "as before")


async def test_a_viewer_whose_token_is_removed_sees_no_more_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_INTERVAL_S", 0)
    may_see = [True, True, True, False]

    async def may_see_jobs(_: Request) -> bool:
        await asyncio.sleep(0)
        return may_see.pop(0)  # not asked again

    stopping = iter([False] * 5 + [True])
    async with aclosing(_shown(EventStream(_snapshot, may_see_jobs, lambda: next(stopping)))) as events:
        shown = [it async for it in events]
    assert shown == ["jobs", "as before", "log in", "as before", "as before"]


@pytest.mark.parametrize(
    ("viewers", "is_user", "room"),
    [(31, False, True), (32, False, False), (32, True, True), (39, True, True), (40, True, False)],
)
async def test_the_last_places_are_for_users(viewers: int, *, is_user: bool, room: bool) -> None:
    async def may_see_jobs(_: Request) -> bool:
        await asyncio.sleep(0)
        return is_user

    it = EventStream(_snapshot, may_see_jobs, lambda: False, viewers)
    assert await it.has_room(REQUEST) is room
