"""The names of exclusive queues that serve as locks."""

from typing import NamedTuple


class Locks(NamedTuple):
    """The exclusive queues of a queue that one connection at a time reads."""

    read: str
    wait: str
    """Exists while another connection waits for it."""
    sweep: str
    """That of the worker that sweeps the queue."""


def locks_of(queue: str) -> Locks:
    """Return the locks of a queue. The first is that of earlier versions, so that they respect it."""
    return Locks(f"{queue}.hands", f"{queue}.hands.wait", f"{queue}.hands.sweep")
