"""Charts as SVG paths, one unit wide for each step and 100 units high.

The page stretches the SVG to its box. Labels are HTML, so that they are not stretched.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from otp_stream.core.stats import Step

HEIGHT = 100
_CURRENT_STEPS = 12
"""A value that is older than this number of steps is not shown as current."""
_MIN_HEIGHT = 2.0
"""Minimum height of a bar: one dead letter must be visible next to a thousand mails a second."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line, or one colour of bars."""

    name: str
    path: str
    """SVG path data."""
    now: float | None
    """The current value; of counts, that of the last complete step; `None` if there is none of the last minute."""


@dataclass(frozen=True, slots=True)
class Chart:
    """Several series over the same steps."""

    width: int
    series: tuple[Series, ...]
    scale: tuple[float, ...]
    """The values of the evenly spaced grid lines, from top to bottom."""
    maximum: float | None
    """The highest value of all series."""


def rates(steps: Sequence[Step], step_s: float) -> Chart:
    """Return jobs per second by how they ended, as stacked bars."""
    rows = {
        "sent": [step.sent / step_s for step in steps],
        "retried": [step.retried / step_s for step in steps],
        "dead": [step.dead / step_s for step in steps],
    }
    maximum = max(map(sum, zip(*rows.values(), strict=True)), default=0)
    top = _ceiling(maximum)
    floors = [0.0] * len(steps)
    series: list[Series] = []
    for name, row in rows.items():
        path = ""
        for place, value in enumerate(row):
            if value:
                height = max(value / top * HEIGHT, _MIN_HEIGHT)
                path += f"M{place} {HEIGHT - floors[place]:.4g}v-{height:.4g}h.8v{height:.4g}z"
                floors[place] += height
        series.append(Series(name, path, row[-2] if len(row) > 1 else None))
    return Chart(len(steps), tuple(series), (top, top / 2, 0), maximum)


def times(steps: Sequence[Step]) -> Chart:
    """Return times to acceptance in milliseconds by percentile, as lines on a logarithmic scale."""
    rows: dict[str, list[int | None]] = {
        "p50": [step.p50_ms for step in steps],
        "p95": [step.p95_ms for step in steps],
        "p99": [step.p99_ms for step in steps],
    }
    known = [max(value, 1) for row in rows.values() for value in row if value is not None]
    low = math.floor(math.log10(min(known, default=10)))
    high = max(math.ceil(math.log10(max(known, default=1000))), low + 1)

    def height(value: int) -> float:
        return HEIGHT - (math.log10(max(value, 1)) - low) / (high - low) * HEIGHT

    series = tuple(Series(name, _line(row, height), _newest(row)) for name, row in rows.items())
    scale = tuple(10.0**power for power in range(high, low - 1, -1))
    return Chart(len(steps), series, scale, max(known, default=None))


def _line(row: Sequence[int | None], height: Callable[[int], float]) -> str:
    """Return a line with gaps where there is no value; a single value is a dot, because line ends are round."""
    path, connected = "", False
    for place, value in enumerate(row):
        if value is not None:
            path += f"{'L' if connected else 'M'}{place + 0.5} {height(value):.4g}"
            path += "" if connected else "h.01"
        connected = value is not None
    return path


def _newest(row: Sequence[int | None]) -> float | None:
    return next((value for value in row[: -_CURRENT_STEPS - 1 : -1] if value is not None), None)


def _ceiling(value: float) -> float:
    """Return the next higher of 1, 2, 5, 10, …, so that the label at half of it is short."""
    if value <= 1:
        return 1
    unit = 10.0 ** math.floor(math.log10(value))
    return next(unit * step for step in (1, 2, 5, 10) if unit * step >= value)
