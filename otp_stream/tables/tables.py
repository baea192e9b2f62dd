"""Decides whether a job may be sent now, and if not, why."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import structlog

from otp_stream import clock
from otp_stream.core.admission import Limit, Refusal, Unknown, answer_name
from otp_stream.core.job import Job
from otp_stream.core.rate import Grant
from otp_stream.core.tables_state import ClockState, Fail, TablesState, WorkerSeen

from .admission import Admission
from .claim import Claim, Claims
from .keys import KeyBuilder, TenantLimits
from .memory import Answer, MemoryTables
from .ranked_values import RankedValues
from .redis_connection import RedisConfig
from .redis_pipeline import RedisUnavailableError
from .redis_session import RedisSession
from .redis_tables import RedisTables

T = TypeVar("T")

_COPIES_LIMIT = 8
"""Copies of a job that wait here for the end of its claim. More would fill the prefetch, so they wait in the broker."""
_WARN_EVERY_MS = 60_000
_TOP = 10
"""Maximum number of throttled keys to report."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Tables:
    """Sent records, claims, newest codes and limits, in this worker's memory and in Redis.

    Two tasks of this worker never have a claim on the same job: the second waits until the first has marked it as sent
    or released it, so a redelivered copy cannot be sent beside a job in flight. With `redis`, this applies to all
    workers that share it, while `run` is running; without it, and while Redis is unavailable, this worker's memory
    answers. `observe` is called with the seconds that each call to Redis took. `machine` is corrected if it is wrong.
    In tests, `server_ms` replaces the clock of Redis.
    """

    def __init__(
        self,
        key_builder: KeyBuilder,
        memory: MemoryTables,
        *,
        redis: RedisConfig | None = None,
        fail: Fail = "open",
        now_ms: Callable[[], int] = clock.now_ms,
        observe: Callable[[float], object] = lambda _: None,
        server_ms: Callable[[], int] | None = None,
        machine: clock.MachineClock | None = None,
    ) -> None:
        self._key_builder, self._memory, self._now_ms = key_builder, memory, now_ms
        self._fail: Fail = fail
        self._claims = Claims()
        self.shared: RedisTables | None = None
        if redis is not None:
            session = RedisSession(
                redis,
                key_builder.limits,
                self._claims,
                memory.sent,
                now_ms,
                renews_claims=key_builder.supersede,
                fail=fail,
                observe=observe,
                server_ms=server_ms,
                machine=machine or clock.MachineClock(),
            )
            self.shared = RedisTables(session)
        self.ranked_values = RankedValues(self.shared, memory.sent.ttl_ms, now_ms)
        self._admission = Admission(memory, self.shared, fail, now_ms)
        self._warned_of_eviction = False
        self._reused = 0
        self._reuse_logged_ms = 0
        self._since_ms = now_ms()

    def state(self) -> TablesState:
        """Return the current state."""
        session = self.shared.session if self.shared else None
        return TablesState(
            url=session.config.shown_url if session else None,
            connected=session.connected if session else None,
            error=session.pipeline.error if session else None,
            since_ms=session.since_ms if session else self._since_ms,
            fail=self._fail,
            workers=session.workers if session and session.connected else None,
            claims=len(self._claims),
            sizes=self._memory.sizes,
            evicted=self._memory.evicted,
            answers=dict(self._admission.answers),
            unshared=self._admission.unshared,
            reused=self._reused,
            pending=session.replica.missing if session else 0,
            clock=session.clock_check.state if session and session.connected else ClockState(),
            throttled={f"{name} {key}": times for (name, key), times in self._memory.throttled.most_common(_TOP)},
        )

    async def most_throttled(self) -> Mapping[str, int]:
        """Return the keys that exceeded a limit most often, at all workers or, if Redis is unavailable, at this one."""
        found = await self._from_redis(lambda it: it.most_throttled(_TOP))
        return self.state().throttled if found is None else found

    async def seen(self) -> list[WorkerSeen]:
        """Return the live workers, or none if Redis is not used or unavailable."""
        return await self._from_redis(lambda it: it.seen()) or []

    async def set_flag(self, name: str, ttl_ms: int) -> bool:
        """Set a flag for all workers. Returns `False` if Redis is not used or unavailable."""
        return await self._from_redis(lambda it: _true_after(it.set_flag(name, ttl_ms))) or False

    async def has_flag(self, name: str) -> bool:
        """Return whether a worker has set a flag, or `False` if Redis is not used or unavailable."""
        return await self._from_redis(lambda it: it.has_flag(name)) or False

    async def _from_redis(self, request: Callable[[RedisTables], Awaitable[T]]) -> T | None:
        """Return the reply of Redis, or `None` if Redis is not used or unavailable."""
        if self.shared is not None and self.shared.session.connected:
            with suppress(RedisUnavailableError):
                return await request(self.shared)
        return None

    def use_tenants(self, tenants: Mapping[str, TenantLimits]) -> set[Limit]:
        """Apply other limits to tenants. Returns those that no tenant had at start, so that they cannot be enforced.

        Until a restart, the limits apply that the tenant had before, and to a new tenant those of the default one.
        """
        builder = self._key_builder
        new = {limit for it in tenants.values() for limit in it.applied}.difference(builder.limits)
        before = builder.tenants
        default = before.get("", TenantLimits())
        enforced = {name: it.without(new, before.get(name, default)) for name, it in tenants.items()}
        self._key_builder = replace(builder, tenants=enforced)
        return new

    @property
    def may_send(self) -> bool:
        """Whether this worker's claims are valid, so that no other worker can claim the jobs."""
        if self.shared is None:
            return True
        session = self.shared.session
        return session.leased or (self._fail == "open" and not session.connected)

    async def admit(
        self, job: Job, deadline_ms: int, *, composed: bool = True, on_lost: Callable[[], object] = lambda: None
    ) -> Claim | Refusal:
        """Claim a job for this worker, or return why it must not be sent.

        Waits while another attempt has claimed the job, here or elsewhere, and with `fail` `closed` while Redis is
        unavailable. Returns `Unknown` if another worker or Redis takes longer than `deadline_ms` (since 1970), or if
        too many copies wait already; attempts of this worker end by `HOLD_LIMIT_MS`. A job that could not be
        `composed` supersedes no other job and counts towards no limit. `on_lost` is called when the claim no longer
        holds, while the job may be waiting for the relay.
        """
        keys = self._key_builder.keys_of(job)
        if job.request.job_id and job.lane != "due" and self._memory.reuses_id(keys, self._now_ms()):
            self._warn_of_reuse(job)
        if not composed:
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
        claim = Claim(self, keys, on_lost)
        self._claims.add(claim)
        answer: Answer | Unknown = Unknown()
        try:
            answer = await self._claim(claim, deadline_ms, waited=waited)
        finally:
            if not isinstance(answer, int):
                self.release(claim)
        self._count(answer)
        return answer if isinstance(answer, Refusal) else claim

    async def recall(self, content: str) -> str | None:
        """Return the id that any worker has generated for a job with this content."""
        found = await self._from_redis(lambda it: it.recall(content))
        return found or self._memory.recall(content, self._now_ms())

    def keep(self, content: str, job_id: str) -> None:
        """Store the id generated for a job with this content."""
        self._memory.keep(content, job_id, self._now_ms())
        if self.shared is not None:
            self.shared.keep(content, job_id)

    async def reserve(self, relay: str, count: int, ceiling: float, slowed: bool) -> Grant | None:  # noqa: FBT001
        """Reserve slots in the schedule of a relay, which all workers share; `None` while Redis is unavailable."""
        return await self._from_redis(lambda it: it.reserve(relay, count, ceiling, slowed=slowed))

    async def renew(self, claim: Claim, deadline_ms: int) -> Refusal | None:
        """Renew a claim of this worker. Returns why its job may no longer be sent, or `None`."""
        claim.lost = claim.unconfirmed = False  # answers from now on apply
        answer = await self._claim(claim, deadline_ms, counted=True, waited=True)
        if isinstance(answer, Refusal):
            claim.lost = True
            self._count(answer)
            return answer
        return None

    def mark_sent(self, claim: Claim) -> None:
        """Record that a job was sent, and end its claim."""
        self._memory.mark_sent(claim.keys, self._now_ms())
        if self.shared is not None:
            self.shared.session.replica.mark_sent(claim.keys)
            claim.shared = False
        elif self._memory.sent.evicted and not self._warned_of_eviction:
            self._warned_of_eviction = True
            _log.warning(
                "The memory of sent jobs is full: a copy of a job may be sent again before SENT_TTL_HOURS have passed "
                "or its code has expired. Raise SENT_MEMORY_LIMIT, or set REDIS_URL: Redis keeps all sent records"
            )
        self.release(claim)

    def release(self, claim: Claim) -> None:
        """End a claim, and let the next copy of its job continue."""
        self._claims.remove(claim)
        self._memory.release(claim.keys.key)
        if claim.shared and self.shared is not None:
            self.shared.session.release(claim.keys)
        if claim.ended is not None:
            claim.ended.set_result(None)

    async def run(self, describe: Callable[[], WorkerSeen] | None = None) -> None:
        """Share the tables in Redis until cancelled. `describe` returns what this worker publishes about itself."""
        if self.shared is not None:
            await self.shared.session.run(describe)

    def finish(self) -> None:
        """Cancel the tasks that wait for Redis or for another worker, now and from now on."""
        self._admission.finish()

    async def close(self) -> None:
        """Wait at most a second until Redis has received everything. `run` must still be running."""
        if self.shared is not None:
            await self.shared.session.close()

    async def _claim(
        self, claim: Claim, deadline_ms: int, *, counted: bool = False, waited: bool = False
    ) -> Answer | Unknown:
        keys, answer = await self._admission.claim(claim, deadline_ms, counted=counted, waited=waited)
        if isinstance(answer, int):
            claim.arrival, claim.admitted = answer, True
            if keys.recipient:
                self._claims.supersede_older(claim)
        return answer

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


async def _true_after(done: Awaitable[None]) -> bool:
    await done
    return True
