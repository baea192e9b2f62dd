"""The tables in Redis, which all workers share."""

import re

from otp_stream.core.rate import Grant
from otp_stream.core.tables_state import WorkerSeen

from .keys import JobKeys
from .memory import Answer
from .redis_script import Busy, read_admission, read_grant, read_throttled, read_workers
from .redis_session import RedisSession

_TEXT = re.compile(rb"ok:([\w-]{1,64})")
"""The reply with an id that a worker has generated, or with a ranked value."""


class RedisTables:
    """Does the same as `MemoryTables`, for all workers with the same Redis, queue and prefix.

    Every coroutine raises `RedisUnavailableError`.
    """

    def __init__(self, session: RedisSession) -> None:
        self.session = session
        self._pipeline = session.pipeline

    async def admit(self, keys: JobKeys, *, counted: bool = False) -> Answer | Busy:
        """Claim a job, or return why it may not be sent. A `counted` job does not count towards its limits again."""
        await self.session.ensure_lease()
        reply = await self.session.claim(keys, counted=counted)
        with self._pipeline.reading():
            return read_admission(reply, self.session.limits)

    def keep(self, content: str, job_id: str) -> None:
        """Store the id generated for a job with this content."""
        self._pipeline.send("keep", content, job_id, self.session.sent.ttl_ms)

    async def recall(self, content: str) -> str | None:
        """Return the id generated for a job with this content; `None` for anything else, which no worker wrote."""
        return _text(await self._pipeline.request("recall", content, f"{self.session.config.names}made:{content}"))

    def put_ranked(self, name: str, value: str) -> None:
        """Store a value, unless there is one of a higher rank."""
        self._pipeline.send("put_ranked", name, value, self.session.sent.ttl_ms, 1)

    async def put_ranked_first(self, name: str, value: str) -> str | None:
        """Store a value, unless there is one of the same or a higher rank. Returns the previous value."""
        return _text(await self._pipeline.request("put_ranked", name, value, self.session.sent.ttl_ms, 0))

    async def get_ranked(self, name: str) -> str | None:
        """Return a ranked value."""
        return _text(await self._pipeline.request("get_ranked", name))

    async def reserve(self, relay: str, count: int, ceiling: float, *, slowed: bool) -> Grant:
        """Reserve slots in the schedule of a relay."""
        reply = await self._pipeline.request("reserve", relay, count, f"{ceiling:.6f}", int(slowed))
        with self._pipeline.reading():
            return read_grant(reply, count)

    async def most_throttled(self, count: int) -> dict[str, int]:
        """Return the keys that exceeded a limit most often, as limit and hashed key."""
        reply = await self._pipeline.request("top", count)
        with self._pipeline.reading():
            return read_throttled(reply)

    async def set_flag(self, name: str, ttl_ms: int) -> None:
        """Set a flag for all workers."""
        await self._pipeline.request("flag", name, ttl_ms)

    async def has_flag(self, name: str) -> bool:
        """Return whether a worker has set a flag."""
        return await self._pipeline.request("flagged", name) == b"ok:1"

    async def seen(self) -> list[WorkerSeen]:
        """Return the live workers, sorted by name."""
        reply = await self._pipeline.request("seen")
        with self._pipeline.reading():
            return read_workers(reply)


def _text(reply: bytes) -> str | None:
    found = _TEXT.fullmatch(reply)
    return found[1].decode() if found else None
