"""Admission of jobs: whether a job may be sent now, and if not, why."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TypeVar

import structlog

from otp_stream import clock
from otp_stream.core.admission import Refusal, Unknown, answer_name
from otp_stream.core.job import Job
from otp_stream.core.rate import Grant
from otp_stream.core.state import Fail, TablesState, WorkerSeen

from .admission import Admission
from .claim import Claim, Claims
from .keys import KeyBuilder
from .memory import Answer, MemoryTables
from .redis_config import RedisConfig
from .redis_pipeline import RedisUnavailableError
from .redis_session import RedisSession
from .redis_tables import RedisTables

T = TypeVar("T")

_COPIES_LIMIT = 8
"""Copies of a job that wait here for its claim to end. More would fill the prefetch; they wait in the broker."""
_WARN_EVERY_MS = 60_000
_TOP = 10
"""How many of the most throttled keys to report."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Tables:
    """Sent records, claims, newest codes and limits, in this worker's memory and in Redis.

    Two tasks of this worker never hold a claim on the same job: the second waits until the first has marked it as sent
    or released it. So a copy that is delivered again after a lost connection cannot pass the send still under way.
    `share` extends this to all workers; without it, and while Redis is unavailable, this worker's memory answers.
    """

    def __init__(
        self,
        key_builder: KeyBuilder,
        memory: MemoryTables,
        *,
        fail: Fail = "open",
        now_ms: Callable[[], int] = clock.now_ms,
    ) -> None:
        self._key_builder, self._memory, self._now_ms = key_builder, memory, now_ms
        self._fail: Fail = fail
        self.on_lost: Callable[[], object] = lambda: None
        """Called when claims are lost: their jobs may be waiting for the relay."""
        self.shared: RedisTables | None = None
        self._url: str | None = None
        self._admission = Admission(memory, fail, now_ms)
        self._claims = Claims()
        self._warned_of_eviction = False
        self._reused = 0
        self._reuse_logged_ms = 0
        self._since_ms = now_ms()

    def share(
        self,
        url: str,
        *,
        shown_url: str,
        prefix: str,
        about: Callable[[], WorkerSeen] | None = None,
        observe: Callable[[float], object] = lambda _: None,
        server_ms: Callable[[], int] | None = None,
        names: str | None = None,
        broker: str = "",
    ) -> RedisSession:
        """Share the tables with every worker that uses this Redis and prefix; `run` the session that is returned.

        `about` returns what other workers may know of this one. See `RedisConfig` for `names` and `broker`.
        """
        self._url = shown_url
        limits, names = self._key_builder.limits, prefix if names is None else names
        session = RedisSession(
            RedisConfig(url, prefix, limits, names, broker),
            self._memory.sent,
            self._now_ms,
            held=self._claims.admitted,
            renews_claims=self._key_builder.supersede,
            on_unavailable=self._log_unavailable,
            describe=about,
            observe=observe,
            server_ms=server_ms,
        )
        self.shared = RedisTables(session)
        return session

    def state(self) -> TablesState:
        """Return the present state."""
        session = self.shared.session if self.shared else None
        return TablesState(
            url=self._url,
            connected=session.connected if session else None,
            error=session.pipeline.error if session else None,
            since_ms=session.since_ms if session else self._since_ms,
            fail=self._fail,
            workers=session.workers if session and session.connected else None,
            claims=len(self._claims),
            sizes=self._memory.sizes,
            evicted=self._memory.evicted,
            asked=dict(self._admission.answers),
            unshared=self._admission.unshared,
            reused=self._reused,
            owed=session.replica.missing if session else 0,
            throttled={f"{name} {key}": times for (name, key), times in self._memory.throttled.most_common(_TOP)},
        )

    async def most_throttled(self) -> Mapping[str, int]:
        """Return the keys over a limit most often, of all workers; of this worker alone if Redis is unavailable."""
        found = await self._from_redis(lambda it: it.most_throttled(_TOP))
        return self.state().throttled if found is None else found

    async def seen(self) -> list[WorkerSeen]:
        """Return the live workers; none if Redis is not used or unavailable."""
        return await self._from_redis(lambda it: it.seen()) or []

    async def set_flag(self, name: str, ttl_ms: int) -> bool:
        """Set a flag for all workers; `False` if Redis is not used or unavailable."""
        return await self._from_redis(lambda it: _true_after(it.set_flag(name, ttl_ms))) or False

    async def has_flag(self, name: str) -> bool:
        """Return whether a worker has set a flag; `False` if Redis is not used or unavailable."""
        return await self._from_redis(lambda it: it.has_flag(name)) or False

    async def _from_redis(self, request: Callable[[RedisTables], Awaitable[T]]) -> T | None:
        """Return the reply of Redis; `None` if Redis is not used or unavailable."""
        if self.shared is not None and self.shared.session.connected:
            with suppress(RedisUnavailableError):
                return await request(self.shared)
        return None

    @property
    def may_send(self) -> bool:
        """Whether claims are valid: no other worker can take them."""
        if self.shared is None:
            return True
        session = self.shared.session
        return session.leased or (self._fail == "open" and not session.connected)

    async def admit(self, job: Job, deadline_ms: int, sendable: bool = True) -> Claim | Refusal:  # noqa: FBT001, FBT002
        """Claim a job for this worker, or return why it may not be sent.

        Waits while another attempt has claimed it, here or elsewhere, and with `fail` `closed` while Redis is
        unavailable. Returns `Unknown` if that takes longer than `deadline_ms` (since 1970), or if enough copies wait
        already. An attempt of this worker ends soon enough (`HOLD_LIMIT_MS`). A job that is not `sendable` supersedes
        no other job and counts towards no limit.
        """
        keys = self._key_builder.keys_of(job)
        if job.request.job_id and job.lane != "due" and self._memory.reuses_id(keys, self._now_ms()):
            self._warn_of_reuse(job)
        if not sendable:
            keys = keys.job_only
        waited = False
        while (before := self._claims.get(keys.key)) is not None:
            if before.copies >= _COPIES_LIMIT:
                self._count(Unknown())
                return Unknown()
            before.ended = before.ended or asyncio.get_running_loop().create_future()
            before.copies += 1
            try:
                await asyncio.shield(before.ended)
            finally:
                before.copies -= 1
            waited = True
        claim = Claim(self, keys)
        self._claims.add(claim)
        answer: Answer | Unknown = Unknown()
        try:
            answer = await self._answer(claim, deadline_ms, waited=waited)
        finally:
            if not isinstance(answer, int):
                self._end(claim)
        self._count(answer)
        return answer if isinstance(answer, Refusal) else claim

    async def recall(self, content: str) -> str | None:
        """Return the id generated for a job with this content, by this worker or another."""
        found = await self._from_redis(lambda it: it.recall(content))
        return found or self._memory.recall(content, self._now_ms())

    def keep(self, content: str, job_id: str) -> None:
        """Remember the id generated for a job with this content."""
        self._memory.keep(content, job_id, self._now_ms())
        if self.shared is not None:
            self.shared.keep(content, job_id)

    async def reserve(self, relay: str, count: int, ceiling: float, slowed: bool) -> Grant | None:  # noqa: FBT001
        """Reserve slots in the schedule of a relay, shared by all workers; `None` while Redis is unavailable."""
        return await self._from_redis(lambda it: it.reserve(relay, count, ceiling, slowed=slowed))

    async def renew(self, claim: Claim, deadline_ms: int) -> Refusal | None:
        """Renew a claim of this worker; returns why its job may no longer be sent, or `None`."""
        claim.lost = claim.doubted = False  # an answer that arrives from now on applies
        answer = await self._answer(claim, deadline_ms, counted=True, waited=True)
        if isinstance(answer, Refusal):
            claim.lost = True
            self._count(answer)
            return answer
        return None

    def mark_sent(self, claim: Claim) -> None:
        """Record that a job was sent, and end its claim."""
        self._memory.mark_sent(claim.keys.key, self._now_ms())
        if self.shared is not None:
            self.shared.session.replica.mark_sent(claim.keys.key)
            claim.shared = False
        elif self._memory.sent.evicted and not self._warned_of_eviction:
            self._warned_of_eviction = True
            _log.warning(
                "The memory of sent jobs is full: a copy of a job may be sent again before SENT_TTL_HOURS have passed. "
                "Raise SENT_MEMORY_LIMIT, or set REDIS_URL: Redis keeps all sent records"
            )
        self._end(claim)

    def release(self, claim: Claim) -> None:
        """End a claim of a job that was not sent."""
        self._end(claim)

    def finish(self) -> None:
        """Cancel the tasks that wait for Redis or for another worker, and let no other wait."""
        self._admission.finish()

    async def _answer(
        self, claim: Claim, deadline_ms: int, *, counted: bool = False, waited: bool = False
    ) -> Answer | Unknown:
        keys, answer = await self._admission.claim(self.shared, claim, deadline_ms, counted=counted, waited=waited)
        if isinstance(answer, int):
            claim.arrival, claim.admitted = answer, True
            if keys.recipient and self._claims.supersede_older(claim):
                self.on_lost()
        return answer

    def _end(self, claim: Claim) -> None:
        self._claims.remove(claim)
        self._memory.release(claim.keys.key)
        if claim.shared and self.shared is not None:
            self.shared.session.release(claim.keys)
        if claim.ended is not None:
            claim.ended.set_result(None)

    def _count(self, answer: Answer | Unknown) -> None:
        name = answer_name(answer if isinstance(answer, Refusal) else None)
        self._admission.answers[name] += 1
        if self.shared is not None:
            self.shared.session.answers[name] += 1

    def _warn_of_reuse(self, job: Job) -> None:
        self._reused += 1
        now_ms = self._now_ms()
        if now_ms - self._reuse_logged_ms >= _WARN_EVERY_MS:
            self._reuse_logged_ms = now_ms
            _log.warning(
                "jobId was used before with another recipient or code, and is sent as another job: give each its own",
                job_id=job.id,
                reused=self._reused,
            )

    def _log_unavailable(self, error: str) -> None:
        meanwhile = "codes are sent without shared state" if self._fail == "open" else "jobs wait"
        _log.warning("Redis does not answer", redis=self._url, error=error, meanwhile=meanwhile, state_fail=self._fail)


async def _true_after(done: Awaitable[None]) -> bool:
    await done
    return True
