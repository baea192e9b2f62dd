"""The wall clock. `core` never reads it: there, the time is an argument."""

import time


def now_ms() -> int:
    """Return milliseconds since 1970."""
    return time.time_ns() // 1_000_000
