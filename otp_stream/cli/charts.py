"""Times and rates as percentiles, a histogram and a time line, drawn in a terminal or as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_BLOCKS = " ▁▂▃▄▅▆▇█"
_PARTS = "▏▎▍▌▋▊▉█"
_STEPS = (1, 2, 5)
_PUBLISHED, _ACCEPTED, _INK, _PALE = "#9ca3af", "#2563eb", "#374151", "#e5e7eb"
_FONT = f'font-family="system-ui, sans-serif" font-size="11" fill="{_INK}"'
_WIDTH, _HEIGHT, _LEFT, _PANEL = 720, 420, 64, 130


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return the smallest value that at least this share of all does not exceed; `None` if there is none."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else None


def ms(seconds: float | None) -> float | None:
    """Return milliseconds, rounded for output."""
    return None if seconds is None else round(seconds * 1000, 1)


@dataclass(frozen=True, slots=True)
class Bar:
    """Values of a histogram above the bar before and up to `upto_ms`."""

    upto_ms: float
    count: int


def histogram(ordered: Sequence[float]) -> list[Bar]:
    """Return bars 1, 2, 5, 10, … milliseconds wide for ordered seconds, without empty ones at both ends."""
    if not ordered:
        return []
    bars: list[Bar] = []
    at, number = 0, 0
    while at < len(ordered):
        upto_ms = _STEPS[number % 3] * 10.0 ** (number // 3)
        number, before = number + 1, at
        while at < len(ordered) and ordered[at] * 1000 <= upto_ms:
            at += 1
        if at > before or bars:
            bars.append(Bar(upto_ms, at - before))
    return bars


@dataclass(frozen=True, slots=True)
class Timeline:
    """Jobs per second in each step of time."""

    step_s: float
    published: list[float]
    accepted: list[float]


def timeline(published: Sequence[float], accepted: Sequence[float], *, most: int = 60) -> Timeline:
    """Return rates over time; moments in seconds from the beginning, at most so many steps."""
    end = max(max(published, default=0), max(accepted, default=0))
    # at least half a second: in a shorter step, a rate is mostly noise
    step_s = max(0.5, math.ceil(end / most * 2) / 2)
    steps = max(1, round(end / step_s))
    last_s = max(end - (steps - 1) * step_s, step_s / 2)  # the last step takes the rest, which may be shorter or longer

    def rates(moments: Sequence[float]) -> list[float]:
        counts = [0] * steps
        for moment in moments:
            counts[min(int(moment / step_s), steps - 1)] += 1
        return [*(count / step_s for count in counts[:-1]), counts[-1] / last_s]

    return Timeline(step_s, rates(published), rates(accepted))


def blocks(values: Sequence[float]) -> str:
    """Return one character for each value; its height is the value."""
    top = max(values, default=0)
    return "".join(_BLOCKS[math.ceil(value / top * 8) if top else 0] for value in values)


def bar(value: float, top: float, width: int) -> str:
    """Return a bar in eighths of a character."""
    eighths = math.ceil(value / top * width * 8)
    return "█" * (eighths // 8) + (_PARTS[eighths % 8 - 1] if eighths % 8 else "")


def span(milliseconds: float) -> str:
    """Return `20 ms` or `2 s`."""
    return f"{milliseconds / 1000:g} s" if milliseconds >= 1000 else f"{milliseconds:g} ms"


def svg(title: str, bars: Sequence[Bar], line: Timeline) -> str:
    """Return a chart of both: time to accept above, jobs per second below."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" {_FONT}>',
            f"<title>{escape(title)}</title>",
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
            _text(_LEFT, 22, title, size=14),
            *_histogram(bars, 56),
            *_lines(line, 248),
            "</svg>\n",
        ]
    )


def _histogram(bars: Sequence[Bar], top: int) -> list[str]:
    most = max((it.count for it in bars), default=0)
    shapes = [_text(_LEFT, top - 10, "jobs by time to accept"), *_frame(top, f"{most:,}")]
    wide = (_WIDTH - _LEFT - 20) / max(len(bars), 1)
    for at, it in enumerate(bars):
        high = it.count / most * _PANEL if most else 0
        x = _LEFT + at * wide
        shapes.append(
            f'<rect x="{x + 1:.1f}" y="{top + _PANEL - high:.1f}" width="{wide - 2:.1f}" height="{high:.1f}" '
            f'fill="{_ACCEPTED}"><title>up to {span(it.upto_ms)}: {it.count:,}</title></rect>'
        )
        shapes.append(_text(x + wide / 2, top + _PANEL + 15, f"≤ {span(it.upto_ms)}", anchor="middle"))
    return shapes


def _lines(line: Timeline, top: int) -> list[str]:
    most = max((*line.published, *line.accepted), default=0)
    shapes = [_text(_LEFT, top - 10, "jobs per second:"), *_frame(top, f"{most:,.0f}")]
    wide = (_WIDTH - _LEFT - 20) / len(line.published)
    for at, (name, colour, rates) in enumerate(
        (("published", _PUBLISHED, line.published), ("accepted", _ACCEPTED, line.accepted))
    ):
        shapes.append(_text(_LEFT + 90 + 70 * at, top - 10, name, colour=colour))
        points: list[str] = []
        for step, rate in enumerate(rates):
            y = top + _PANEL - (rate / most * _PANEL if most else 0)
            points += [f"{_LEFT + step * wide:.1f},{y:.1f}", f"{_LEFT + (step + 1) * wide:.1f},{y:.1f}"]
        shapes.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>')
    shapes.append(_text(_LEFT, top + _PANEL + 15, "0 s"))
    end = f"{len(line.published) * line.step_s:g} s"
    return [*shapes, _text(_WIDTH - 20, top + _PANEL + 15, end, anchor="end")]


def _frame(top: int, most: str) -> list[str]:
    base = top + _PANEL
    return [
        *(f'<line x1="{_LEFT}" x2="{_WIDTH - 20}" y1="{y}" y2="{y}" stroke="{_PALE}"/>' for y in (top, base)),
        _text(_LEFT - 6, top + 4, most, anchor="end"),
        _text(_LEFT - 6, base + 4, "0", anchor="end"),
    ]


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = _INK, size: int = 11) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{escape(text)}</text>'
    )
