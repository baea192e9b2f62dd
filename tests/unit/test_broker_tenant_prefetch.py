"""The jobs of all tenants' queues in a worker: one may have many, all together may not."""

from dataclasses import dataclass

import pytest

from otp_stream.broker.tenant_prefetch import TenantPrefetch


@dataclass
class Queue:
    """A queue of a tenant with many jobs, unless it is `empty`. Consumers before a change keep their unacked jobs."""

    prefetch: int
    unacked: int = 0
    empty: bool = False

    def fill(self) -> None:
        self.unacked += 0 if self.empty else self.prefetch


def run(count: int, *, prefetch: int = 200, busy: int | None = None, rounds: int = 500) -> list[Queue]:
    """Return the queues of tenants of which so many have many jobs, at a relay that accepts none."""
    share = TenantPrefetch(prefetch)
    queues = [Queue(share.equal(count), empty=at >= (count if busy is None else busy)) for at in range(count)]
    for queue in queues:
        queue.fill()
    for _ in range(rounds):
        for queue, new in share.changes(queues):
            assert queue.prefetch != new
            queue.prefetch = new
            queue.fill()
    return queues


@pytest.mark.parametrize("count", [1, 4, 20, 200, 1000])
def test_tenants_with_a_backlog_each_do_not_fill_the_memory(count: int) -> None:
    queues = run(count)
    assert sum(it.unacked for it in queues) <= max(4 * 200, count)
    assert min(it.unacked for it in queues) >= 1


@pytest.mark.parametrize("count", [1, 20, 1000])
def test_a_single_tenant_with_a_backlog_may_have_half_of_a_prefetch_at_once(count: int) -> None:
    assert run(count, busy=1, rounds=1)[0].prefetch == 100


def test_backlogs_of_tenants_whose_relay_hangs_leave_jobs_to_others() -> None:
    queues = run(100, busy=10)
    late = queues[-1]
    late.unacked = late.prefetch
    assert [(it is late, new > 10) for it, new in TenantPrefetch(200).changes(queues)] == [(True, True)]


def test_counts_that_have_grown_shrink_again() -> None:
    share = TenantPrefetch(200)
    queues = [Queue(share.equal(100)) for _ in range(100)]
    for queue in queues:  # one after another has many jobs
        queue.unacked = queue.prefetch
        for changed, new in share.changes(queues):
            changed.prefetch = new
        queue.unacked = 0
        assert queue.prefetch == 100
    assert sum(it.prefetch for it in queues) <= 4 * 200 + 100


@pytest.mark.parametrize("prefetch", [1, 2, 3])
def test_every_queue_may_have_one_job(prefetch: int) -> None:
    assert {it.prefetch for it in run(10, prefetch=prefetch)} == {1}
