"""A consumer that stands here, and of which the broker knows nothing, is started again."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from otp_stream.broker import intake
from otp_stream.broker.intake import Intake


class Channel:
    def __init__(self) -> None:
        self.consumers = {"tag": None}
        self.is_closed = False
        self.did: list[str] = []

    async def close(self) -> None:
        self.did.append("close")
        self.is_closed = True

    async def basic_cancel(self, tag: str) -> None:
        self.did.append(f"cancel {tag}")
        del self.consumers[tag]


@pytest.mark.parametrize(("held", "did"), [(0, ["close"]), (3, ["cancel tag"])])
async def test_it_is_ended_once_it_was_unknown_for_long(
    monkeypatch: pytest.MonkeyPatch, held: int, did: list[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(intake, "monotonic", lambda: now)
    it, channel = Intake(cast("Any", None), lambda: None, lambda _: None), Channel()
    it._consumers["q"] = cast("Any", intake._Consumer(cast("Any", channel), cast("Any", None), "tag"))
    lane = SimpleNamespace(queue="q", depth=SimpleNamespace(consumers=0), state=SimpleNamespace(held=held))
    looks = [0, 0, 1, 0, 0]  # consumers by the broker's word, three seconds apart: seen once, it counts anew
    for consumers in looks:
        lane.depth.consumers = consumers
        await it.compare([cast("Any", lane)])
        now += 3
    assert channel.did == []
    await it.compare([cast("Any", lane)])
    assert channel.did == did
    assert not it._stands("q")
    await it.compare([cast("Any", lane)])  # already gone
    assert channel.did == did
