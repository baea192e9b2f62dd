"""Values of which a higher rank replaces a lower one: the statuses of jobs, and the uses of idempotency keys."""

from collections.abc import Callable
from contextlib import suppress

from otp_stream import clock

from .memory import ExpiringText, text_table
from .redis_pipeline import RedisUnavailableError
from .redis_tables import RedisTables

_LIMIT = 50_000
"""Values in memory, about 250 bytes each."""


class RankedValues:
    """Short texts by name, kept for `ttl_ms` milliseconds. The first character of a value, a digit, is its rank.

    With `shared`, all workers with the same Redis share them; while it is unavailable, this worker's own apply.
    """

    def __init__(self, shared: RedisTables | None, ttl_ms: int, now_ms: Callable[[], int] = clock.now_ms) -> None:
        self._shared, self._ttl_ms, self._now_ms = shared, ttl_ms, now_ms
        self._own = text_table(_LIMIT)

    def put(self, name: str, value: str) -> None:
        """Store a value, unless there is one of a higher rank."""
        self._keep(name, value, replaces=True)
        if self._shared is not None:
            self._shared.put_ranked(name, value)

    async def put_first(self, name: str, value: str) -> str | None:
        """Store a value, unless there is one of the same or a higher rank. Returns the previous value."""
        if self._shared is not None and self._shared.session.connected:
            with suppress(RedisUnavailableError):
                before = await self._shared.put_ranked_first(name, value)
                own = self._keep(name, value if before is None else max(before, value, key=_rank), replaces=False)
                return before or own
        return self._keep(name, value, replaces=False)

    async def get(self, name: str) -> str | None:
        """Return the value of the highest rank."""
        own = self._own_text(name)
        if self._shared is not None and self._shared.session.connected:
            with suppress(RedisUnavailableError):
                return max(filter(None, (await self._shared.get_ranked(name), own)), key=_rank, default=None)
        return own

    def _keep(self, name: str, value: str, *, replaces: bool) -> str | None:
        before, now_ms = self._own_text(name), self._now_ms()
        if before is None or _rank(value) > _rank(before) or (replaces and _rank(value) == _rank(before)):
            self._own.put(name, ExpiringText(value, now_ms + self._ttl_ms), now_ms)
        return before

    def _own_text(self, name: str) -> str | None:
        found = self._own.get(name, self._now_ms())
        return found and found.text


def _rank(value: str) -> str:
    return value[0]
