"""The tables as a job meets them: who may be sent now, and why not."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress

import structlog

from otp_stream import clock
from otp_stream.core.admission import (
    Objection,
    SentBefore,
    Standing,
    Unknown,
    answer_name,
)
from otp_stream.core.job import Job
from otp_stream.core.rate import Grant
from otp_stream.core.state import Fail, TablesState, WorkerSeen

from .ask import KEEP_MS, Ask, Asker
from .memory import Answer, MemoryTables
from .redis import AwayError
from .shared import Busy, SharedTables

_BUSY_PAUSE_S = 0.1
_COPIES_LIMIT = 8
"""Copies of a job that wait here for its end: more would fill the prefetch window. They wait in the broker instead."""
_SELDOM_MS = 60_000
_TOP = 10
"""How many of those that are throttled most are shown."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Claim:
    """A job that is this worker's to send."""

    __slots__ = (
        "_tables",
        "admitted",
        "arrival",
        "ask",
        "busy",
        "copies",
        "doubted",
        "lost",
        "shared",
        "since",
        "unshared",
    )

    def __init__(self, tables: "Tables", ask: Ask) -> None:
        self._tables = tables
        self.ask = ask
        self.admitted = False
        """Whether it was given to us."""
        self.arrival = 0
        self.lost = False
        """Whether something was said against it since."""
        self.doubted = False
        """Whether another worker may have it by now. In both cases it is asked for again before the job is sent."""
        self.shared = False
        """Whether Redis may know of it."""
        self.unshared = False
        """Whether it went on without Redis."""
        self.busy: asyncio.Future[None] | None = None
        """What others wait for, where any do."""
        self.copies = 0
        """How many wait for it."""
        self.since = time.monotonic()

    @property
    def order(self) -> tuple[int, int]:
        """Its place among the codes for one recipient and purpose."""
        return self.ask.made_ms, self.arrival

    def holds(self) -> bool:
        """Whether the job may still be sent, as far as can be known without asking."""
        return not self.lost and not self.doubted and self._tables.may_send

    async def renew(self, deadline_ms: int) -> Objection | None:
        """Ask again, for a claim that does not hold; `None` when it holds now."""
        return await self._tables.renew(self, deadline_ms)

    def mark(self) -> None:
        """Remember that the job was sent, and end the claim."""
        self._tables.mark(self)

    def release(self) -> None:
        """End the claim unsent."""
        self._tables.release(self)

    def doubt(self) -> None:
        """Take note that another worker may have it by now."""
        self.doubted = True

    def learn(self, answer: "Answer | Busy") -> None:
        """Take note of what the tables said of it in the meantime."""
        if isinstance(answer, int):
            self.arrival, self.doubted = answer, False
        elif not self.lost:
            self.lost = True
            self._tables.on_lost()


class Tables:
    """Which jobs were sent and who is at which now; newest codes and windowed counts, where they are asked for.

    A claim is never given to two tasks of this worker: the second waits until the first has marked or released it. So
    the copy of a job that comes again after a lost connection cannot pass the send that is still under way. `share`
    makes the same hold between workers; without it, and while Redis is away, this worker's memory answers.
    """

    def __init__(
        self,
        asker: Asker,
        memory: MemoryTables,
        *,
        fail: Fail = "open",
        now_ms: Callable[[], int] = clock.now_ms,
    ) -> None:
        self._asker, self._memory, self._now_ms = asker, memory, now_ms
        self._fail: Fail = fail
        self.on_lost: Callable[[], object] = lambda: None
        """Called when claims of jobs that may be waiting were lost."""
        self.shared: SharedTables | None = None
        self._url: str | None = None
        self._finished = False
        self._idle: set[asyncio.Task[object]] = set()
        """Who waits for Redis, or for another worker."""
        self._held: dict[str, Claim] = {}
        self._places: dict[str, dict[str, Claim]] = {}
        """Claims by recipient and purpose, then job."""
        self._asked: Counter[str] = Counter()
        self._unshared = 0
        self._forgets = False
        """Whether it was said that sent records are evicted."""
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
    ) -> SharedTables:
        """Share the tables with every worker that names this Redis and prefix; `run` what is returned.

        `about` is what the others may know of this worker.
        """
        self._url = shown_url
        self.shared = SharedTables(
            url,
            prefix=prefix,
            limits=self._asker.limits,
            memory=self._memory,
            now_ms=self._now_ms,
            held=self._admitted_claims,
            rechecks=self._asker.supersede,
            away=self._away,
            about=about,
            observe=observe,
            server_ms=server_ms,
            names=names,
            broker=broker,
        )
        return self.shared

    def look(self) -> TablesState:
        """Return what there is to know at this moment."""
        shared = self.shared
        return TablesState(
            url=self._url,
            connected=shared.connected if shared else None,
            error=shared.redis.error if shared else None,
            since_ms=shared.since_ms if shared else self._since_ms,
            fail=self._fail,
            workers=shared.workers if shared and shared.connected else None,
            claims=len(self._held),
            sizes=self._memory.sizes,
            evicted=self._memory.evicted,
            asked=dict(self._asked),
            unshared=self._unshared,
            reused=self._reused,
            owed=shared.owed if shared else 0,
            throttled={f"{name} {key}": times for (name, key), times in self._memory.throttled.most_common(_TOP)},
        )

    async def most_throttled(self) -> Mapping[str, int]:
        """Return what was over a limit most often: at all workers, or at this one where Redis does not say."""
        if self.shared is not None and self.shared.connected:
            with suppress(AwayError):
                return await self.shared.most_throttled(_TOP)
        return self.look().throttled

    async def seen(self) -> list[WorkerSeen]:
        """Return the workers that were heard of lately; none where they share nothing, or Redis is away."""
        if self.shared is not None and self.shared.connected:
            with suppress(AwayError):
                return await self.shared.seen()
        return []

    async def set_flag(self, name: str, ttl_ms: int) -> bool:
        """Set a flag for all workers; `False` where they share nothing, or Redis is away."""
        if self.shared is not None and self.shared.connected:
            with suppress(AwayError):
                await self.shared.set_flag(name, ttl_ms)
                return True
        return False

    async def has_flag(self, name: str) -> bool:
        """Whether a worker has set it; `False` where that is not known."""
        if self.shared is not None and self.shared.connected:
            with suppress(AwayError):
                return await self.shared.has_flag(name)
        return False

    @property
    def may_send(self) -> bool:
        """Whether claims can be relied upon: no other worker may take ours for dead."""
        shared = self.shared
        return shared is None or shared.leased or (self._fail == "open" and not shared.connected)

    async def admit(self, job: Job, deadline_ms: int, sendable: bool = True) -> Standing:  # noqa: FBT001, FBT002
        """Claim a job for this worker, or say why it may not be sent.

        Waits while another attempt is at it, here or elsewhere, and with `fail` `closed` while Redis is away; `Unknown`
        when another worker or Redis takes longer than `deadline_ms` (since 1970), or when enough copies wait already.
        What is attempted here comes to its end soon enough (`HOLD_LIMIT_MS`). A job that is not `sendable` supersedes
        no other and counts towards no limit.
        """
        ask = self._asker.ask(job)
        if job.ask.job_id and job.lane != "due" and self._memory.reuses_id(ask, self._now_ms()):
            self._warn_of_reuse(job)
        if not sendable:
            ask = ask.bare
        waited = False
        while (before := self._held.get(ask.key)) is not None:
            if before.copies >= _COPIES_LIMIT:
                self._count(Unknown())
                return Unknown()
            before.busy = before.busy or asyncio.get_running_loop().create_future()
            before.copies += 1
            try:
                await asyncio.shield(before.busy)
            finally:
                before.copies -= 1
            waited = True
        claim = self._held[ask.key] = Claim(self, ask)
        answer: Answer | Unknown = Unknown()
        try:
            answer = await self._answer(claim, deadline_ms, waited=waited)
        finally:
            if not isinstance(answer, int):
                self._end(claim)
        self._count(answer)
        return answer if isinstance(answer, Objection) else claim

    async def recall(self, content: str) -> str | None:
        """Return the id made for a job with this content, by this worker or another."""
        found = None
        if self.shared is not None and self.shared.connected:
            with suppress(AwayError):
                found = await self.shared.recall(content)
        return found or self._memory.recall(content, self._now_ms())

    def keep(self, content: str, job_id: str) -> None:
        """Remember the id made for a job with this content."""
        self._memory.keep(content, job_id, self._now_ms())
        if self.shared is not None:
            self.shared.keep(content, job_id)

    async def reserve(self, relay: str, count: int, ceiling: float, slowed: bool) -> Grant | None:  # noqa: FBT001
        """Take slots in the schedule of a relay that all workers keep; `None` while Redis is away."""
        if self.shared is None or not self.shared.connected:
            return None
        try:
            return await self.shared.reserve(relay, count, ceiling, slowed=slowed)
        except AwayError:
            return None

    async def renew(self, claim: Claim, deadline_ms: int) -> Objection | None:
        """Ask again for a claim that is still held here."""
        claim.lost = claim.doubted = False  # what is said of it from now on counts
        answer = await self._answer(claim, deadline_ms, counted=True, waited=True)
        if isinstance(answer, Objection):
            claim.lost = True
            self._count(answer)
            return answer
        return None

    def mark(self, claim: Claim) -> None:
        """Remember that a job was sent."""
        self._memory.mark(claim.ask.key, self._now_ms())
        if self.shared is not None:
            self.shared.mark(claim.ask.key)
            claim.shared = False
        elif self._memory.marks.evicted and not self._forgets:
            self._forgets = True
            _log.warning(
                "The memory of sent jobs is full: a copy of a job may be sent again before SENT_TTL_HOURS have passed. "
                "Raise SENT_MEMORY_LIMIT, or set REDIS_URL: Redis keeps them all"
            )
        self._end(claim)

    def release(self, claim: Claim) -> None:
        """End a claim unsent."""
        self._end(claim)

    def finish(self) -> None:
        """Let nobody wait for Redis or for another worker any more: who does is cancelled."""
        self._finished = True
        for task in self._idle:
            task.cancel()

    @contextmanager
    def _waiting(self) -> Generator[None]:
        task = asyncio.current_task()
        if self._finished or task is None:
            raise asyncio.CancelledError
        self._idle.add(task)
        try:
            yield
        finally:
            self._idle.discard(task)

    async def _answer(
        self, claim: Claim, deadline_ms: int, *, counted: bool = False, waited: bool = False
    ) -> Answer | Unknown:
        shared = self.shared
        while shared is not None:
            now_ms = self._now_ms()
            if shared.connected:
                if self._memory.marks.knows(claim.ask.key, now_ms):
                    return SentBefore()
                before, claim.shared = claim.shared, True
                ask = self._current(claim, waited=waited)
                try:
                    answer = await shared.admit(ask, counted=counted)
                except AwayError:
                    continue
                claim.shared = before or isinstance(answer, int)
                if not isinstance(answer, Busy):
                    return self._admitted(claim, ask, answer)
                self._asked["busy"] += 1
                if now_ms >= deadline_ms:
                    return Unknown()
                with self._waiting():
                    await asyncio.sleep(_BUSY_PAUSE_S)
                waited = True
            elif self._fail == "open":
                await shared.first_answer()
                if shared.connected:
                    continue
                self._unshared += not claim.unshared
                claim.unshared = True
                break
            elif now_ms >= deadline_ms:
                return Unknown()
            else:
                with self._waiting():
                    await shared.returned((deadline_ms - now_ms) / 1000)
                waited = True
        ask = self._current(claim, waited=waited)
        return self._admitted(claim, ask, self._memory.admit(ask, self._now_ms(), counted=counted))

    def _current(self, claim: Claim, *, waited: bool) -> Ask:
        """Return what to ask now: a code that has expired while its job waited supersedes none and is not counted."""
        return claim.ask.bare if waited and self._now_ms() >= claim.ask.expires_ms else claim.ask

    def _admitted(self, claim: Claim, ask: Ask, answer: Answer) -> Answer:
        if not isinstance(answer, int):
            return answer
        claim.arrival, claim.admitted = answer, True
        if not ask.recipient:
            return answer
        others = self._places.setdefault(f"{ask.recipient}:{ask.purpose}", {})
        others[ask.key] = claim
        older = [it for it in others.values() if self._supersedes(claim, it)]
        for other in older:
            other.lost = True
        if older:
            self.on_lost()
        return answer

    @staticmethod
    def _supersedes(newer: Claim, claim: Claim) -> bool:
        """Whether a claim loses to a newer code; one that is gone long before it may never be sent."""
        return (
            claim.order < newer.order
            and claim.ask.code != newer.ask.code
            and claim.ask.expires_ms <= newer.ask.expires_ms + KEEP_MS
            and not claim.lost
        )

    def _end(self, claim: Claim) -> None:
        ask = claim.ask
        del self._held[ask.key]
        self._memory.release(ask.key)
        if claim.shared and self.shared is not None:
            self.shared.release(ask)
        if ask.recipient and (others := self._places.get(place := f"{ask.recipient}:{ask.purpose}")):
            others.pop(ask.key, None)
            if not others:
                del self._places[place]
        if claim.busy is not None:
            claim.busy.set_result(None)

    def _admitted_claims(self) -> list[Claim]:
        return [claim for claim in self._held.values() if claim.admitted]

    def _count(self, answer: Answer | Unknown) -> None:
        name = answer_name(answer if isinstance(answer, Objection) else None)
        self._asked[name] += 1
        if self.shared is not None:
            self.shared.asked[name] += 1

    def _warn_of_reuse(self, job: Job) -> None:
        self._reused += 1
        now_ms = self._now_ms()
        if now_ms - self._reuse_logged_ms >= _SELDOM_MS:
            self._reuse_logged_ms = now_ms
            _log.warning(
                "jobId was used before with another recipient or code, and is sent as another job: give each its own",
                job_id=job.id,
                reused=self._reused,
            )

    def _away(self, error: str) -> None:
        told = "codes go out, limits and copies are known to each worker alone" if self._fail == "open" else "jobs wait"
        _log.warning("Redis does not answer", redis=self._url, error=error, meanwhile=told, state_fail=self._fail)
