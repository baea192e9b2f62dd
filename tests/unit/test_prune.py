"""When an old wait queue is known to be empty."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from otp_stream.broker.topology import Topology
from otp_stream.checks import prune
from otp_stream.checks.management import QueueStatistics
from otp_stream.checks.prune import OldWaitQueue, Pruner, PruneResult, find_old_tenant_queues
from otp_stream.core.backoff import Backoff

QUEUE = OldWaitQueue("otp.retry.77", 77, 0, 0)


class FakeManagement:
    """A management API that reports these statistics, one after another, then the last one always."""

    def __init__(self, *reported: QueueStatistics) -> None:
        self.reported = list(reported)

    async def verify(self, connection: object) -> None: ...

    async def queue_arguments(self) -> dict[str, dict[str, Any]]:
        ours = Topology("jobs", "otp", Backoff(1000, 30_000, 3)).tenant_arguments
        names = ("otp.tenant.default", "otp.tenant.a", "otp.tenant.b", "otp.retry.due", "other.tenant.c")
        odd = ("otp.tenant.[/bold]\x1b[31m", "otp.tenant.%2e\n")
        return {"otp.tenant.foreign": {"x-queue-type": "quorum"}, **dict.fromkeys((*names, *odd), ours)}

    async def queue_bindings(self, queue: str) -> set[tuple[str, str]]:
        return set()

    async def statistics(self, queue: str) -> QueueStatistics:
        return self.reported.pop(0) if len(self.reported) > 1 else self.reported[0]


async def prune_one(
    monkeypatch: pytest.MonkeyPatch, *reported: QueueStatistics, queue: OldWaitQueue = QUEUE
) -> tuple[list[str], Sequence[PruneResult]]:
    """Prune one queue that looks empty in AMQP; return the deleted queues and the results."""
    deleted: list[str] = []

    async def delete(_: Pruner, __: object, queue: OldWaitQueue) -> bool:
        deleted.append(queue.name)
        return True

    monkeypatch.setattr(prune, "_POLL_S", 0)
    monkeypatch.setattr(Pruner, "_delete_if_empty", delete)
    pruner = Pruner(Topology("jobs", "otp", Backoff(1000, 30_000, 3)), cast("Any", FakeManagement(*reported)))
    found = await pruner.prune(cast("Any", SimpleNamespace()), [queue], timeout_s=0.05, report=lambda _: None)
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


@pytest.mark.parametrize(("tenants", "old"), [(("a",), ["b"]), (("a", "b"), []), ((), ["a", "b", "default"])])
async def test_queues_of_tenants_that_are_not_configured_are_found(tenants: tuple[str, ...], old: list[str]) -> None:
    topology = Topology("jobs", "otp", Backoff(1000, 30_000, 3), tenants)
    found = await find_old_tenant_queues(topology, cast("Any", FakeManagement(QueueStatistics(3, 1, 7))))
    assert [(it.name, it.wait_ms, it.messages, it.consumers) for it in found] == [
        (f"otp.tenant.{name}", 0, 3, 1) for name in old
    ]


async def test_queues_whose_names_no_worker_could_have_given_are_left_alone() -> None:
    topology = Topology("jobs", "otp", Backoff(1000, 30_000, 3))
    found = await find_old_tenant_queues(topology, cast("Any", FakeManagement(QueueStatistics(3, 1, 7))))
    assert all(it.name.isprintable() and "[" not in it.name and "%" not in it.name for it in found)
    assert len(found) == 3


async def test_a_queue_of_a_removed_tenant_that_has_jobs_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    tenant = OldWaitQueue("otp.tenant.a", 0, 2, 0)
    statistics = [QueueStatistics(2, 0, revision) for revision in (7, 8, 9)]
    deleted, found = await prune_one(monkeypatch, *statistics, queue=tenant)
    assert (deleted, [(it.verdict, it.messages) for it in found]) == ([], [("has jobs", 2)])
    statistics = [QueueStatistics(0, 0, revision) for revision in (7, 8, 9)]
    assert (await prune_one(monkeypatch, *statistics, queue=tenant))[0] == ["otp.tenant.a"]
    consumed = await prune_one(monkeypatch, QueueStatistics(0, 1, 7), queue=tenant)
    assert (consumed[0], [it.verdict for it in consumed[1]]) == ([], ["in use"])
