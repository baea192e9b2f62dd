"""Times and durations in a form that people read."""

from datetime import UTC, datetime

LAST_MS = 253_402_300_799_000
"""The end of the year 9999, the last date that Python supports."""
_UNITS = (("days", 86_400_000, 2), ("h", 3_600_000, 2), ("min", 60_000, 2), ("s", 1000, 1))
"""Name, milliseconds, and the count from which a unit is used: `90 s` is more precise than `1 min`."""


def in_words(span_ms: float) -> str:
    """Format 4240 as `4.2 s`, rounded down. A negative duration is `0 ms`."""
    span_ms = max(int(span_ms), 0)
    for unit, size_ms, least in _UNITS:
        if span_ms >= least * size_ms:
            tenths = span_ms * 10 // size_ms
            return f"{tenths / 10:g} {unit}" if tenths < 100 else f"{tenths // 10} {unit}"
    return f"{span_ms} ms"


def iso(at_ms: int) -> str:
    """Format a time (milliseconds since 1970) as `2026-01-31T12:00:00Z`."""
    at_ms = min(max(at_ms, 0), LAST_MS)
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
