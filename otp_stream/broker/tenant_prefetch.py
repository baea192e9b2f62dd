"""How many jobs of each tenant's queue may be unacked in a worker. All of these queues share a limit. Pure."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

_TOTAL = 2
"""Jobs of all tenants' queues, in multiples of the prefetch. Each takes 17 KiB of memory, and up to 180 KiB if a
producer wants that: with as many for each of 1,000 tenants as for one, the worker would be killed for its memory."""
_MAX_CHANGES = 20
"""Consumers that are changed at the same time, so that other requests to the broker do not wait."""


class Queue(Protocol):
    """The consumer of one tenant's queue."""

    prefetch: int

    @property
    def unacked(self) -> int:
        """Unacked jobs now."""
        ...


Q = TypeVar("Q", bound=Queue)


class TenantPrefetch:
    """Shares `_TOTAL` times the `prefetch` of a lane. One queue may have half of a prefetch, and at least one job."""

    def __init__(self, prefetch: int) -> None:
        self._most = max(1, prefetch // 2)
        self._total = _TOTAL * prefetch

    def equal(self, queues: int) -> int:
        """Return the prefetch count of each of so many queues before any has more jobs than others."""
        return max(1, min(self._most, self._total // max(queues, 1)))

    def changes(self, queues: Sequence[Q]) -> list[tuple[Q, int]]:
        """Return the queues that need another prefetch count, and that count.

        Queues with as many unacked jobs as they may have share what the others do not use. If the counts have grown to
        twice the limit, those of queues without many jobs become equal again.
        """
        equal = self.equal(len(queues))
        changes: list[tuple[Q, int]] = []
        if sum(it.prefetch for it in queues) > 2 * self._total:
            changes = [(it, equal) for it in queues if it.prefetch > equal and it.unacked <= equal]
        free = self._total - sum(it.unacked for it in queues)
        # some stay free, as in a lane, because unacked jobs of a tenant whose relay hangs stay in addition to new ones
        full = [it for it in queues if it.prefetch < min(self._most, free // 2) and it.unacked >= it.prefetch]
        share = min(self._most, free // (len(full) + 1))
        changes += [(it, share) for it in full if share > it.prefetch]
        return changes[:_MAX_CHANGES]
