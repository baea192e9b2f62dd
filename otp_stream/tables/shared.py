"""Tables in Redis, shared by all workers at once."""

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from time import monotonic
from typing import Protocol

import structlog

from otp_stream.core.admission import Limit, SentBefore, Superseded, Throttled
from otp_stream.core.rate import Grant
from otp_stream.core.state import WorkerSeen
from otp_stream.tasks import cancel_and_wait, forever

from .ask import Ask, Names, slice_ms
from .memory import Answer, MemoryTables
from .redis import AwayError, Operation, Redis, Word

LEASE_S = 3.0
"""A worker that has not been heard of for so long has no claims any more. What a killed worker held waits as long."""
_BEAT_S = 0.5
_FIRST_S = 1.0
"""How long the first jobs wait for the first answer."""
_RESTORED_AT_ONCE = 100
_OTHERS_S = 0.1
_TOLD_LIMIT = 200
_BROKERS_SHOWN = 5

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Busy:
    """Another worker, which lives, is at the job."""


class Held(Protocol):
    """A claim of this worker."""

    ask: Ask
    shared: bool
    """Whether Redis may know of it."""
    since: float
    """By the monotonic clock."""

    def doubt(self) -> None:
        """Another worker may have it by now: it does not hold until something else is learnt."""
        ...

    def learn(self, answer: Answer | Busy) -> None:
        """Take note of what was answered when it was asked for again."""
        ...


class SharedTables:
    """What `MemoryTables` does, for all workers that name the same Redis, queue and prefix.

    A worker's claims hold while it is heard of: it renews its lease twice a second. Its own marks stay in `memory` as
    well, a log of which Redis knows how far it has come: after an outage, or a restart that left Redis empty, each
    worker brings its marks and claims back before it relies on the answers again.

    `held` names this worker's claims; `rechecks` asks for them again twice a second, `away` hears why Redis does not
    answer. `server_ms` stands in for its clock in tests. `names` goes before the keys of every deployment with
    these names, and `broker` is what the others may know of our RabbitMQ. Earlier versions had their keys right behind
    `names`, by a job's id alone: those are read, so that an upgrade makes no copies, and never written.
    """

    def __init__(  # noqa: PLR0913
        self,
        url: str,
        *,
        prefix: str,
        limits: Sequence[Limit],
        memory: MemoryTables,
        now_ms: Callable[[], int],
        held: Callable[[], Iterable[Held]],
        rechecks: bool,
        away: Callable[[str], object],
        about: Callable[[], WorkerSeen] | None = None,
        observe: Callable[[float], object] = lambda _: None,
        server_ms: Callable[[], int] | None = None,
        names: str | None = None,
        broker: str = "",
    ) -> None:
        self._names = prefix if names is None else names
        self._broker = broker
        self.worker = secrets.token_hex(6)
        self.workers = 0
        """How many were heard of lately, who had brought all that they know."""
        self._before = 0
        """How many there were when Redis was lost."""
        self._whole = False
        """Whether Redis has been told of all our marks, over this connection."""
        self.asked: Counter[str] = Counter()
        """What was answered since Redis was last told."""
        self._limits = limits
        self._memory = memory
        self._now_ms = now_ms
        self._held, self._rechecks, self._away, self._about = held, rechecks, away, about
        self.since_ms = now_ms()
        """When `connected` took its value (milliseconds since 1970)."""
        self._leased_until = 0.0
        self._late = False
        """Whether the lease had run out, and Redis has not been told of our claims since."""
        self._restored = 0
        """Up to which of our marks it was told of them."""
        self._confirmed = 0
        """And up to which it has said so."""
        self._owed: dict[str, Operation] = {}
        """Claims to be ended there."""
        self._returned, self._known = asyncio.Event(), asyncio.Event()
        self._beating = asyncio.Lock()
        self._known_from = monotonic() + _FIRST_S
        self._why: str | None = None
        head: list[Word] = [word for limit in limits for word in (limit.name, limit.count, slice_ms(limit))]
        self.redis = Redis(
            url,
            prefix=prefix,
            worker=self.worker,
            head=head,
            back=self._back,
            lost=self._lost,
            observe=observe,
            now_ms=server_ms,
        )

    @property
    def connected(self) -> bool:
        """Whether the answers can be relied upon."""
        return self.redis.connected

    @property
    def leased(self) -> bool:
        """Whether no other worker can take our claims for dead."""
        return monotonic() < self._leased_until

    @property
    def owed(self) -> int:
        """How many of our marks Redis may lack."""
        return self._memory.marks.written - self._restored

    async def run(self) -> None:
        """Keep the connection and the lease, until cancelled."""
        keeping = asyncio.create_task(forever(self._keep, "lease"))
        self._known_from = monotonic() + _FIRST_S
        try:
            await self.redis.run()
        finally:
            await cancel_and_wait(keeping)

    async def first_answer(self) -> None:
        """Wait, but not for long, until it is known whether Redis answers: after that, return at once."""
        left_s = self._known_from - monotonic()
        if left_s > 0 and not self._known.is_set():
            await _wait_for(self._known, left_s)

    async def returned(self, timeout_s: float) -> bool:
        """Wait until Redis answers again."""
        return await _wait_for(self._returned, timeout_s)

    async def admit(self, ask: Ask, *, counted: bool = False) -> Answer | Busy:
        """Ask whether a job may be sent, and claim it. Raises `AwayError`."""
        if not self.leased:
            await self._beat(unless=lambda: self.leased)  # a claim of somebody who is taken for dead is none
        return self._read(await self._admit(ask, counted=counted))

    def keep(self, content: str, job_id: str) -> None:
        """Remember the id made for a job."""
        self.redis.tell("keep", content, job_id, self._memory.marks.ttl_ms)

    async def recall(self, content: str) -> str | None:
        """Return the id made for it. Raises `AwayError`."""
        return (await self.redis.ask("recall", content, f"{self._names}made:{content}")).decode().partition(":")[
            2
        ] or None

    def mark(self, key: str) -> None:
        """Remember that a job was sent; it is in memory already."""
        whole = self._restored == self._memory.marks.written - 1
        if self.redis.tell("mark", key, self._memory.marks.ttl_ms) and whole:
            self._restored += 1

    def release(self, ask: Ask) -> None:
        """End a claim unsent."""
        # what was counted must not be counted again, and keeps its place in the order of arrival
        operation = ("release", ask.key, ask.ttl_ms(self._now_ms()) if ask.recipient or ask.limits else 0)
        if not self.redis.tell(*operation):
            self._owed[ask.key] = operation

    async def reserve(self, relay: str, number: int, ceiling: float, *, slowed: bool) -> Grant:
        """Take slots in the schedule of a relay. Raises `AwayError`."""
        word = await self.redis.ask("reserve", relay, number, f"{ceiling:.6f}", int(slowed))
        _, first_us, every_us, rate = word.decode().split(":")
        return Grant(int(first_us) / 1e6, int(every_us) / 1e6, number, float(rate))

    async def most_throttled(self, count: int) -> dict[str, int]:
        """Return what was over a limit most often, by limit and hashed key. Raises `AwayError`."""
        word = (await self.redis.ask("top", count)).decode().removeprefix("ok:")
        pairs = [pair.rpartition("=") for pair in word.split(",") if pair]
        return {who.replace(":", " ", 1): int(times) for who, _, times in pairs}

    async def set_flag(self, name: str, ttl_ms: int) -> None:
        """Set a flag for all workers. Raises `AwayError`."""
        await self.redis.ask("flag", name, ttl_ms)

    async def has_flag(self, name: str) -> bool:
        """Whether a worker has set it. Raises `AwayError`."""
        return await self.redis.ask("flagged", name) == b"ok:1"

    async def seen(self) -> list[WorkerSeen]:
        """Return the workers that were heard of within their lease, by name. Raises `AwayError`."""
        word = (await self.redis.ask("seen")).removeprefix(b"ok:").decode(errors="replace")
        answer: list[tuple[int, str]] = json.loads(word)
        found = [_seen(about, silent_ms) for silent_ms, about in answer]
        return sorted((it for it in found if it is not None), key=lambda it: it.name)

    def _told(self) -> str:
        if self._about is None:
            return ""
        told = {name: value for name, value in asdict(self._about()).items() if name != "silent_ms"}
        return json.dumps(told, separators=(",", ":"))

    async def close(self) -> None:
        """Wait, a second at most, until Redis has all that it was told, and our marks: nobody else can bring them."""
        deadline = monotonic() + 1.0
        while (self.redis.under_way or self.owed) and monotonic() < deadline:  # noqa: ASYNC110 - at the end of a process
            await asyncio.sleep(0.01)
        if self.owed:
            _log.warning("marks of sent jobs that Redis does not have", count=self.owed, error=self.redis.error)

    def _admit(self, ask: Ask, *, counted: bool) -> asyncio.Future[bytes]:
        return self.redis.ask(
            "admit",
            f"{self._names}job:{ask.id_key}",
            ask.made_ms,
            ask.ttl_ms(self._now_ms()),
            int(counted),
            1 + len(ask.old),
            *self._names_words(ask),
            *(word for names in ask.old for word in self._names_words(names)),
        )

    def _names_words(self, names: Ask | Names) -> tuple[str, ...]:
        limits = names.limits or ("",) * len(self._limits)
        return names.key, names.recipient, names.purpose, names.code, *limits

    def _read(self, word: bytes) -> Answer | Busy:
        kind, _, rest = word.decode().partition(":")
        match kind:
            case "ok":
                return int(rest)
            case "sent":
                return SentBefore()
            case "old":
                return Superseded()
            case "busy":
                return Busy()
            case _:
                index, _, allowed_ms = rest.partition(":")
                return Throttled(self._limits[int(index) - 1], int(allowed_ms))

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_BEAT_S)
            if not self.redis.stands:
                continue
            with suppress(AwayError):
                await self._beat()
                if self.connected:
                    await self._look_after()

    async def _look_after(self) -> None:
        if self._late:
            await self._bring_back()
        elif self._rechecks:
            before = monotonic() - _BEAT_S
            await self._claim_again(claim for claim in self._held() if claim.since <= before)

    async def _beat(self, *, unless: Callable[[], bool] = lambda: False) -> None:
        """Renew the lease. Where it had run out, or Redis has forgotten it, no claim of ours holds any more."""
        # one at a time: what the first learns, the second must not contradict
        async with self._beating:
            if not unless():
                await self._do_beat()

    async def _do_beat(self) -> None:
        began, restored, whole = monotonic(), self._restored, self._whole
        answer = await self.redis.ask(
            "beat", int(LEASE_S * 1000), restored, int(whole), self._told(), self._names, self._broker
        )
        lived, _, workers = answer.decode().partition(":")
        if lived == "ok":
            # while marks are being brought, what was there before an outage says nothing
            self._confirmed = restored if whole else self._confirmed
        else:
            self._late, self._whole = True, False
            self._doubt()
        self._leased_until = began + LEASE_S
        self.workers = int(workers)
        asked, self.asked = self.asked, Counter()
        for name, number in asked.items():
            self.redis.tell("count", name, number)

    def _doubt(self) -> None:
        for claim in self._held():
            claim.doubt()

    async def _claim_again(self, claims: Iterable[Held]) -> Sequence[Held]:
        """Ask for claims again; returns which. None may end between the look at it and the question."""
        asked: list[tuple[Held, asyncio.Future[bytes]]] = []
        for claim in claims:
            claim.shared = True  # it may end before the answer comes, and then must be released there
            asked.append((claim, self._admit(claim.ask, counted=True)))
        answers = await asyncio.gather(*(answer for _, answer in asked))
        for (claim, _), answer in zip(asked, answers, strict=True):
            claim.learn(self._read(answer))
        return [claim for claim, _ in asked]

    async def _back(self) -> None:
        # claims that ended before those of the same jobs that are held now
        for operation in self._owed.values():
            self.redis.tell(*operation)
        self._owed.clear()
        await self._beat()
        self._doubt()  # it may have come back with what it knew a while ago
        await self._warn_of_strangers()
        count, asked = await self._bring_back()
        await self._others()
        if self._why is not None:
            _log.info("Redis answers again: state is shared", marks_restored=count, workers=self.workers)
        self._why = None
        self.redis.rely()
        self.since_ms = self._now_ms()
        self._returned.set()
        self._known.set()
        # while marks were brought, more was claimed; from now on, new jobs ask Redis
        await self._claim_again(claim for claim in self._held() if claim not in asked)

    async def _warn_of_strangers(self) -> None:
        word = await self.redis.ask("others", int(LEASE_S * 1000), self._names)
        brokers: list[str] = json.loads(word.removeprefix(b"ok:").decode(errors="replace"))
        if brokers:
            _log.warning(
                "Another deployment with the same queue name and RABBITMQ_PREFIX uses this Redis database, and shares "
                "no state with this one: if both names lead to one RabbitMQ, set REDIS_NAMESPACE to the same value for "
                "all workers; if they are two, give each its own RABBITMQ_PREFIX or Redis database",
                ours=self._broker,
                others=brokers[:_BROKERS_SHOWN],
            )

    async def _others(self) -> None:
        """Wait, but not for long, until as many workers as before have brought what they know: Redis may be empty."""
        ends = monotonic() + LEASE_S
        await self._beat()
        while self.workers < self._before and monotonic() < ends:
            await asyncio.sleep(_OTHERS_S)
            await self._beat()

    async def _bring_back(self) -> tuple[int, Sequence[Held]]:
        """Tell Redis of our claims and of the marks that it lacks; returns how many marks, and which claims."""
        self._late = False
        resumed = (await self.redis.ask("resume")).decode().partition(":")[2]
        self._restored = self._confirmed = min(int(resumed), self._memory.marks.written)
        claims = await self._claim_again(self._held())
        count = await self._restore()
        self._whole = not self._late
        return count, claims

    async def _restore(self) -> int:
        """Bring Redis the marks that it lacks; returns how many."""
        marks = self._memory.marks.since(self._restored)
        self._restored = max(self._restored, self._memory.marks.gone)
        for start in range(0, len(marks), _RESTORED_AT_ONCE):
            some = marks[start : start + _RESTORED_AT_ONCE]
            now_ms = self._now_ms()
            told = [self.redis.ask("mark", key, until_ms - now_ms) for key, until_ms in some if until_ms > now_ms]
            await asyncio.gather(*told)
            self._restored += len(some)
        self._restored = self._memory.marks.written  # what was marked meanwhile was told over this connection, too
        return len(marks)

    def _lost(self, error: str, operations: list[Operation]) -> None:
        if self._returned.is_set():
            self.since_ms = self._now_ms()
            self._before = self.workers
        self._whole = False
        self._returned.clear()
        self._known.set()
        self._leased_until = 0.0
        self._restored = min(self._restored, self._confirmed)
        self._owed |= {str(operation[1]): operation for operation in operations if operation[0] == "release"}
        if error and error != self._why:  # it is tried every second, and told when it is news
            self._away(error)
        self._why = error


def _seen(about: str, silent_ms: int) -> WorkerSeen | None:
    """Return what a worker told about itself; `None` for one of another version, or whoever else wrote it."""
    try:
        told = json.loads(about)
        texts = (str(told[it])[:_TOLD_LIMIT] for it in ("name", "version", "phase", "circuit_breaker"))
        name, version, phase, breaker = (text.encode(errors="replace").decode() for text in texts)
        return WorkerSeen(name, version, phase, breaker, int(told["held"]), int(told["sent_last_minute"]), silent_ms)
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
        return None


async def _wait_for(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return False
    return True
