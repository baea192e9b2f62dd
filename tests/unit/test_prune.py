"""When an old wait queue is known to be empty."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from otp_stream.broker.topology import Topology
from otp_stream.checks import prune
from otp_stream.checks.management import QueueStatistics
from otp_stream.checks.prune import OldWaitQueue, Pruner, PruneResult
from otp_stream.core.backoff import Backoff

QUEUE = OldWaitQueue("otp.retry.77", 77, 0, 0)


class FakeManagement:
    """A management API that reports these statistics, one after another, then the last one always."""

    def __init__(self, *reported: QueueStatistics) -> None:
        self.reported = list(reported)

    async def verify(self, connection: object) -> None: ...

    async def queue_bindings(self, queue: str) -> set[tuple[str, str]]:
        return set()

    async def statistics(self, queue: str) -> QueueStatistics:
        return self.reported.pop(0) if len(self.reported) > 1 else self.reported[0]


async def prune_one(
    monkeypatch: pytest.MonkeyPatch, *reported: QueueStatistics
) -> tuple[list[str], Sequence[PruneResult]]:
    """Prune one queue that looks empty in AMQP; return the deleted queues and the results."""
    deleted: list[str] = []

    async def delete(_: Pruner, __: object, queue: OldWaitQueue) -> bool:
        deleted.append(queue.name)
        return True

    monkeypatch.setattr(prune, "_POLL_S", 0)
    monkeypatch.setattr(Pruner, "_delete_if_empty", delete)
    pruner = Pruner(Topology("jobs", "otp", Backoff(1000, 30_000, 3)), cast("Any", FakeManagement(*reported)))
    found = await pruner.prune(cast("Any", SimpleNamespace()), [QUEUE], timeout_s=0.05, report=lambda _: None)
    return deleted, found


async def test_statistics_from_before_the_unbind_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    old = QueueStatistics(0, 0, 7)
    deleted, found = await prune_one(monkeypatch, old, old, QueueStatistics(0, 0, 8), QueueStatistics(1, 0, 9))
    assert (deleted, [it.verdict for it in found]) == ([], ["not empty"])


async def test_statistics_that_never_change_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for revision in (7, None):
        deleted, found = await prune_one(monkeypatch, QueueStatistics(0, 0, revision))
        assert (deleted, [it.verdict for it in found]) == ([], ["unknown"])


async def test_new_statistics_without_messages_prove_that_the_queue_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    deleted, found = await prune_one(
        monkeypatch, QueueStatistics(0, 0, 7), QueueStatistics(0, 0, 8), QueueStatistics(0, 0, 9)
    )
    assert (deleted, [it.verdict for it in found]) == ([QUEUE.name], ["deleted"])
