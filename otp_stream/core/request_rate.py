"""Limits the requests of each sender to an even rate with bursts (GCRA, ITU-T I.371)."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class RequestRate:
    """Permits each name `per_second` requests a second, and as many at once after a pause. There must be few names."""

    per_second: float
    _full_until: dict[str, float] = field(default_factory=dict[str, float])
    """When all requests so far would have ended, had they been evenly spaced, in seconds."""

    def wait_s(self, name: str, now_s: float) -> float:
        """Count a request, and return 0; or return how long to wait for the next one, in seconds."""
        interval_s, burst_s = 1 / self.per_second, max(1.0, 1 / self.per_second)
        until = max(self._full_until.get(name, now_s), now_s) + interval_s
        if until > now_s + burst_s + 1e-9:  # the sum of many intervals is not exact
            return until - now_s - burst_s
        self._full_until[name] = until
        return 0.0
