"""Tables in this process's memory: right for one worker, forgotten at its end."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from hashlib import blake2b

SENT_TTL_S = 24 * 3600.0
SENT_LIMIT = 500_000
"""Sent marks kept at most; about 150 bytes each."""


class SentInMemory:
    """Which jobs were sent in the last 24 hours, and which are being sent now.

    A claim is never given to two tasks: the second waits until the first has marked or released it. So the copy of a
    job that comes again after a lost connection cannot pass the send that is still under way.
    """

    def __init__(
        self, *, ttl_s: float = SENT_TTL_S, limit: int = SENT_LIMIT, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ttl_s, self._limit, self._clock = ttl_s, limit, clock
        self._sent: dict[bytes, float] = {}
        # in the order of marking; asking a dict for its oldest key costs as much as was deleted before it
        self._order: deque[bytes] = deque()
        self._claims: dict[str, asyncio.Future[None] | None] = {}
        """With what others wait for, where any do."""

    async def claim(self, job_id: str) -> bool:
        """Take the job; `False` if it was sent before. Waits while another attempt is at it."""
        while job_id in self._claims:
            busy = self._claims[job_id] = self._claims[job_id] or asyncio.get_running_loop().create_future()
            await asyncio.shield(busy)
        self._forget_old()
        if _key(job_id) in self._sent:
            return False
        self._claims[job_id] = None
        return True

    async def mark(self, job_id: str) -> None:
        """Remember that it was sent, and end the claim."""
        key = _key(job_id)
        if key not in self._sent:
            self._order.append(key)
        self._sent[key] = self._clock() + self._ttl_s
        await self.release(job_id)

    async def release(self, job_id: str) -> None:
        """End the claim."""
        busy = self._claims.pop(job_id, None)
        if busy is not None:
            busy.set_result(None)

    def _forget_old(self) -> None:
        now = self._clock()
        while self._order and (self._sent[self._order[0]] <= now or len(self._order) > self._limit):
            del self._sent[self._order.popleft()]


def _key(job_id: str) -> bytes:
    return blake2b(job_id.encode(errors="surrogatepass"), digest_size=16).digest()
