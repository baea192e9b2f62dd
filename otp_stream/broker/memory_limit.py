"""Limits the memory of a connection for large parts of messages that are not settled yet."""

from dataclasses import dataclass, field

_MAX_BODIES = 16 * 1024 * 1024
"""Bytes of all bodies in memory that are too large for a job."""
_MAX_HEADERS = 8 * 1024 * 1024
"""Bytes of memory for all other content headers. Of those for which there is no more room, only the headers that a
worker needs are kept: there may be a thousand unacked messages in all lanes, which come again after a restart."""


class MemoryLimit:
    """Limits the memory for one kind of large parts of messages."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.bytes = 0

    def reserve(self, size: int) -> object | None:
        """Return a reservation, which ends when it is garbage-collected, or `None` if there is no room."""
        return None if self.bytes + size > self.most else _Reservation(self, size)


class _Reservation:
    __slots__ = ("_limit", "_size")

    def __init__(self, limit: MemoryLimit, size: int) -> None:
        self._limit, self._size = limit, size
        limit.bytes += size

    def __del__(self) -> None:
        # not an explicit release, because a message can end in many ways, for example with its connection
        self._limit.bytes -= self._size


@dataclass(frozen=True, slots=True)
class LargeParts:
    """The limits of a connection. `bodies`: those too large for a job, which are kept only for their dead letters."""

    bodies: MemoryLimit = field(default_factory=lambda: MemoryLimit(_MAX_BODIES))
    headers: MemoryLimit = field(default_factory=lambda: MemoryLimit(_MAX_HEADERS))
