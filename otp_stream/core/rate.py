"""The rule for a relay's rate, which workers share: halved by a throttle, then raised steadily up to the ceiling."""

from dataclasses import dataclass

RECOVERY_S = 20.0
"""Time from half the full rate back to all of it."""
CHUNK_S = 0.05
"""So much of a schedule is handed out at a time: timers are too coarse for every slot of a high rate."""
APART_S = 1.0
"""Between decreases: all connections meet the same throttle at once."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Moments at which one mail each may leave: `count` of them, at least one."""

    first_in_s: float
    """The first one, seconds from now."""
    every_s: float
    """Seconds between them."""
    count: int
    allowed: float
    """Mails per second to this relay at present, from all workers."""


def floor(ceiling: float) -> float:
    """Return the slowest that throttles may make it, mails per second."""
    return min(max(ceiling / 100, 0.1), ceiling)


def slope(ceiling: float, recovery_s: float = RECOVERY_S) -> float:
    """Return what is added to the rate in each second after a throttle."""
    return ceiling / (2 * recovery_s)
