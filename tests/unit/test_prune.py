"""When an old wait queue is known to be empty."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from otp_stream.broker.census import Holding
from otp_stream.broker.topology import Topology
from otp_stream.checks import prune
from otp_stream.checks.prune import Ended, OldRung, Pruning
from otp_stream.core.backoff import Backoff

RUNG = OldRung("otp.retry.77", 77, 0, 0)


class Figures:
    """A management API that tells these figures, one after another; the last stays."""

    def __init__(self, *told: Holding) -> None:
        self.told = list(told)

    async def verify(self, connection: object) -> None: ...

    async def bindings(self, queue: str) -> set[tuple[str, str]]:
        return set()

    async def holding(self, queue: str) -> Holding:
        return self.told.pop(0) if len(self.told) > 1 else self.told[0]


async def ends(monkeypatch: pytest.MonkeyPatch, *told: Holding) -> tuple[list[str], Sequence[Ended]]:
    """Prune one queue that AMQP takes for empty; returns what was deleted, and the verdicts."""
    deleted: list[str] = []

    async def delete(_: Pruning, __: object, rung: OldRung) -> bool:
        deleted.append(rung.name)
        return True

    monkeypatch.setattr(prune, "_POLL_S", 0)
    monkeypatch.setattr(Pruning, "_deleted", delete)
    pruning = Pruning(Topology("jobs", "otp", Backoff(1000, 30_000, 3)), cast("Any", Figures(*told)))
    found = await pruning.prune(cast("Any", SimpleNamespace()), [RUNG], patience_s=0.05, told=lambda _: None)
    return deleted, found


async def test_figures_of_before_it_was_cut_off_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    old = Holding(0, 0, 7)
    deleted, found = await ends(monkeypatch, old, old, Holding(0, 0, 8), Holding(1, 0, 9))
    assert (deleted, [it.verdict for it in found]) == ([], ["holds"])


async def test_figures_that_never_change_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for mark in (7, None):
        deleted, found = await ends(monkeypatch, Holding(0, 0, mark))
        assert (deleted, [it.verdict for it in found]) == ([], ["unseen"])


async def test_fresh_figures_that_say_nothing_is_there_are_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    deleted, found = await ends(monkeypatch, Holding(0, 0, 7), Holding(0, 0, 8), Holding(0, 0, 9))
    assert (deleted, [it.verdict for it in found]) == ([RUNG.name], ["deleted"])
