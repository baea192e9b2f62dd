"""Charts as paths of an SVG that is stretched to its place: one unit wide for each step, a hundred high.

What is written beside them is HTML, which is not stretched.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from otp_stream.core.state import Step

HEIGHT = 100
_LATELY = 12
"""Steps after which a figure says nothing of now."""
_LEAST = 2.0
"""So high stands what is there at all: one dead letter beside a thousand mails a second must be seen."""


@dataclass(frozen=True, slots=True)
class Series:
    """One row of figures."""

    name: str
    path: str
    """SVG path data."""
    now: float | None
    """The newest figure; of what is counted, the newest that is not still growing; `None` where it is a minute old."""


@dataclass(frozen=True, slots=True)
class Chart:
    """Some rows of figures over one time."""

    width: int
    series: tuple[Series, ...]
    scale: tuple[float, ...]
    """What the grid's lines mean, from the top down; evenly spaced."""
    most: float | None
    """The highest figure of all."""


def rates(steps: Sequence[Step], step_s: float) -> Chart:
    """Return jobs a second, by what became of them: bars, one on the other."""
    rows = {
        "sent": [step.sent / step_s for step in steps],
        "retried": [step.retried / step_s for step in steps],
        "dead": [step.dead / step_s for step in steps],
    }
    most = max(map(sum, zip(*rows.values(), strict=True)), default=0)
    top = _ceiling(most)
    floors = [0.0] * len(steps)
    series: list[Series] = []
    for name, row in rows.items():
        path = ""
        for place, value in enumerate(row):
            if value:
                height = max(value / top * HEIGHT, _LEAST)
                path += f"M{place} {HEIGHT - floors[place]:.4g}v-{height:.4g}h.8v{height:.4g}z"
                floors[place] += height
        series.append(Series(name, path, row[-2] if len(row) > 1 else None))
    return Chart(len(steps), tuple(series), (top, top / 2, 0), most)


def times(steps: Sequence[Step]) -> Chart:
    """Return times to acceptance in milliseconds, by percentile: lines on a logarithmic scale."""
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
    """Return a line with gaps where nothing is known; a figure alone is a dot, for its ends are round."""
    path, on = "", False
    for place, value in enumerate(row):
        if value is not None:
            path += f"{'L' if on else 'M'}{place + 0.5} {height(value):.4g}"
            path += "" if on else "h.01"
        on = value is not None
    return path


def _newest(row: Sequence[int | None]) -> float | None:
    return next((value for value in row[: -_LATELY - 1 : -1] if value is not None), None)


def _ceiling(value: float) -> float:
    """Return the next of 1, 2, 5, 10, …, which a reader can halve."""
    if value <= 1:
        return 1
    unit = 10.0 ** math.floor(math.log10(value))
    return next(unit * step for step in (1, 2, 5, 10) if unit * step >= value)
