"""The rule for a relay's rate, which all workers share: a throttle halves it, then it rises steadily to the ceiling."""

from dataclasses import dataclass

RECOVERY_S = 20.0
"""Time from half the full rate back to the full rate."""
CHUNK_S = 0.05
"""How long a part of the schedule is granted at a time: timers are too coarse for single slots of a high rate."""
APART_S = 1.0
"""Minimum time between decreases: one throttle affects all connections at once."""


@dataclass(frozen=True, slots=True)
class Grant:
    """`count` slots (at least one), in each of which one mail may be sent."""

    first_in_s: float
    """Seconds from now to the first slot."""
    every_s: float
    """Seconds between slots."""
    count: int
    allowed: float
    """Mails per second to this relay at present, by all workers together."""


def floor(ceiling: float) -> float:
    """Return the rate below which throttles do not reduce it, in mails per second."""
    return min(max(ceiling / 100, 0.1), ceiling)


def slope(ceiling: float, recovery_s: float = RECOVERY_S) -> float:
    """Return by how much the rate rises in each second after a throttle."""
    return ceiling / (2 * recovery_s)
