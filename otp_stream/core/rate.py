"""The rule for a relay's rate, which workers share: halved by a throttle, then raised steadily up to the ceiling."""

from dataclasses import dataclass

RECOVERY_S = 20.0
"""Time from half the full rate back to all of it."""
CHUNK_S = 0.05
"""How much of a schedule is granted at a time: timers are too coarse for every slot of a high rate."""
APART_S = 1.0
"""Minimum time between decreases: one throttle affects all connections at once."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Slots, in each of which one mail may be sent: `count` of them, at least one."""

    first_in_s: float
    """The first one, seconds from now."""
    every_s: float
    """Seconds between them."""
    count: int
    allowed: float
    """Mails per second to this relay at present, from all workers."""


def floor(ceiling: float) -> float:
    """Return the lowest rate to which throttles reduce it, mails per second."""
    return min(max(ceiling / 100, 0.1), ceiling)


def slope(ceiling: float, recovery_s: float = RECOVERY_S) -> float:
    """Return what is added to the rate in each second after a throttle."""
    return ceiling / (2 * recovery_s)
