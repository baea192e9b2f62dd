"""Claims jobs in Redis or in memory, and waits for Redis or for another worker."""

import asyncio
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager

from otp_stream.core.admission import SentBefore, Unknown
from otp_stream.core.tables_state import Fail

from .claim import Claim
from .keys import JobKeys
from .memory import Answer, MemoryTables
from .redis_pipeline import RedisUnavailableError
from .redis_script import Busy
from .redis_tables import RedisTables

_BUSY_PAUSE_S = 0.1


class Admission:
    """Claims jobs in Redis, or in memory if Redis is not used, or unavailable with `fail` `open`."""

    def __init__(self, memory: MemoryTables, redis: RedisTables | None, fail: Fail, now_ms: Callable[[], int]) -> None:
        self._memory, self._redis, self._now_ms = memory, redis, now_ms
        self._fail: Fail = fail
        self._finished = False
        self._waiting_tasks: set[asyncio.Task[object]] = set()
        """Tasks that wait for Redis or for another worker."""
        self.answers: Counter[str] = Counter()
        self.unshared = 0
        """Jobs admitted without Redis while it was unavailable."""

    def finish(self) -> None:
        """Cancel the tasks that wait for Redis or for another worker, now and from now on."""
        self._finished = True
        for task in self._waiting_tasks:
            task.cancel()

    async def claim(
        self, claim: Claim, deadline_ms: int, *, counted: bool, waited: bool
    ) -> tuple[JobKeys, Answer | Unknown]:
        """Return the keys that were claimed, and the answer. `waited`: whether the job has waited before."""
        while (redis := self._redis) is not None:
            now_ms, session = self._now_ms(), redis.session
            if session.connected:
                if self._memory.sent.contains(claim.keys.key, now_ms):
                    return claim.keys, SentBefore()
                keys = self._current_keys(claim, waited=waited)
                answer = await _claim_in_redis(redis, claim, keys, counted=counted)
                if answer is None:
                    continue
                if not isinstance(answer, Busy):
                    return keys, answer
                self.answers["busy"] += 1
                if now_ms >= deadline_ms:
                    return keys, Unknown()
                with self._waiting():
                    await asyncio.sleep(_BUSY_PAUSE_S)
                waited = True
            elif self._fail == "open":
                await session.first_answer()
                if session.connected:
                    continue
                self.unshared += not claim.unshared
                claim.unshared = True
                break
            elif now_ms >= deadline_ms:
                return claim.keys, Unknown()
            else:
                with self._waiting():
                    await session.reconnected((deadline_ms - now_ms) / 1000)
                waited = True
        keys = self._current_keys(claim, waited=waited)
        return keys, self._memory.admit(keys, self._now_ms(), counted=counted)

    def _current_keys(self, claim: Claim, *, waited: bool) -> JobKeys:
        """Return the keys to claim: a code that expired while its job waited supersedes no other and is not counted."""
        return claim.keys.job_only if waited and self._now_ms() >= claim.keys.expires_ms else claim.keys

    @contextmanager
    def _waiting(self) -> Generator[None]:
        task = asyncio.current_task()
        if self._finished or task is None:
            raise asyncio.CancelledError
        self._waiting_tasks.add(task)
        try:
            yield
        finally:
            self._waiting_tasks.discard(task)


async def _claim_in_redis(redis: RedisTables, claim: Claim, keys: JobKeys, *, counted: bool) -> Answer | Busy | None:
    """Return the answer of Redis, or `None` if it has become unavailable."""
    before, claim.shared = claim.shared, True
    try:
        answer = await redis.admit(keys, counted=counted)
    except RedisUnavailableError:
        return None
    claim.shared = before or isinstance(answer, int)
    return answer
