"""Tables in Redis, shared by all workers at once."""

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from time import monotonic

import structlog

from otp_stream.core.admission import Limit, SentBefore, Superseded, Throttled
from otp_stream.core.rate import Grant

from .ask import Ask, slice_ms
from .memory import Answer, MemoryTables
from .redis import AwayError, Operation, Redis, Word

LEASE_S = 3.0
"""A worker that has not been heard of for so long has no claims any more. What a killed worker held waits as long."""
_BEAT_S = 0.5
_RESTORED_AT_ONCE = 100

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Busy:
    """Another worker, which lives, is at the job."""


class SharedTables:
    """What `MemoryTables` does, for all workers that name the same Redis, queue and prefix.

    A worker's claims hold while it is heard of: it renews its lease twice a second. Its own marks stay in `memory` as
    well, a log of which Redis knows how far it has come: after an outage, or a restart that left Redis empty, each
    worker brings its marks and claims back before it relies on the answers again.

    `held` names the claims that are older than so many seconds, with whom to tell what became of them; `rechecks` asks
    for them twice a second, `away` hears why Redis does not answer. `server_ms` stands in for its clock in tests.
    """

    def __init__(  # noqa: PLR0913
        self,
        url: str,
        *,
        prefix: str,
        limits: Sequence[Limit],
        memory: MemoryTables,
        now_ms: Callable[[], int],
        held: Callable[[float], Iterable[tuple[Ask, Callable[[Answer | Busy], object]]]],
        rechecks: bool,
        away: Callable[[str], object],
        observe: Callable[[float], object] = lambda _: None,
        server_ms: Callable[[], int] | None = None,
    ) -> None:
        self.worker = secrets.token_hex(6)
        self.workers = 0
        """How many were heard of lately."""
        self.asked: Counter[str] = Counter()
        """What was answered since Redis was last told."""
        self._limits = limits
        self._memory = memory
        self._now_ms = now_ms
        self._held, self._rechecks, self._away = held, rechecks, away
        self._leased_until = 0.0
        self._restored = 0
        """Up to which of our marks Redis has them."""
        self._owed: dict[str, Operation] = {}
        """Claims to be ended there."""
        self._returned = asyncio.Event()
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
        """How many of our marks Redis lacks."""
        return self._memory.marks.written - self._restored

    async def run(self) -> None:
        """Keep the connection and the lease, until cancelled."""
        keeping = asyncio.create_task(self._keep())
        try:
            await self.redis.run()
        finally:
            keeping.cancel()

    async def returned(self, timeout_s: float) -> bool:
        """Wait until Redis answers again."""
        try:
            await asyncio.wait_for(self._returned.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def admit(self, ask: Ask, *, counted: bool = False) -> Answer | Busy:
        """Ask whether a job may be sent, and claim it. Raises `AwayError`."""
        if not self.leased:
            await self._beat()  # a claim of somebody who is taken for dead is none
        word = await self.redis.ask(
            "admit",
            ask.key,
            ask.made_ms,
            ask.ttl_ms,
            int(counted),
            ask.recipient,
            ask.purpose,
            ask.code,
            *(ask.limits or ("",) * len(self._limits)),
        )
        return self._read(word.decode())

    def keep(self, content: str, job_id: str) -> None:
        """Remember the id made for a job."""
        self.redis.tell("keep", content, job_id, self._memory.marks.ttl_ms)

    async def recall(self, content: str) -> str | None:
        """Return the id made for it. Raises `AwayError`."""
        return (await self.redis.ask("recall", content)).decode().partition(":")[2] or None

    def mark(self, key: str) -> None:
        """Remember that a job was sent; it is in memory already."""
        whole = self._restored == self._memory.marks.written - 1
        if self.redis.tell("mark", key, self._memory.marks.ttl_ms) and whole:
            self._restored += 1

    def release(self, ask: Ask) -> None:
        """End a claim unsent."""
        # what was counted must not be counted again, and keeps its place in the order of arrival
        operation = ("release", ask.key, ask.ttl_ms if ask.recipient or ask.limits else 0)
        if not self.redis.tell(*operation):
            self._owed[ask.key] = operation

    async def reserve(self, relay: str, number: int, ceiling: float, *, slowed: bool) -> Grant:
        """Take slots in the schedule of a relay. Raises `AwayError`."""
        word = await self.redis.ask("reserve", relay, number, f"{ceiling:.6f}", int(slowed))
        _, first_us, every_us, rate = word.decode().split(":")
        return Grant(int(first_us) / 1e6, int(every_us) / 1e6, number, float(rate))

    async def close(self) -> None:
        """Wait, a second at most, until Redis has all that it was told."""
        deadline = monotonic() + 1.0
        while self.redis.under_way and monotonic() < deadline:  # noqa: ASYNC110 - at the end of a process
            await asyncio.sleep(0.01)
        if self.owed:
            _log.warning("marks of sent jobs that Redis does not have", count=self.owed, error=self.redis.error)

    def _read(self, word: str) -> Answer | Busy:
        kind, _, rest = word.partition(":")
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
            try:
                lived = await self._beat()
                if not lived or self._rechecks:
                    await self._claim_again(0 if not lived else _BEAT_S)
            except AwayError:
                continue

    async def _beat(self) -> bool:
        """Renew the lease; returns whether it had not run out."""
        began = monotonic()
        lived, _, workers = (await self.redis.ask("beat", int(LEASE_S * 1000), self._restored)).decode().partition(":")
        self._leased_until = began + LEASE_S
        self.workers = int(workers)
        asked, self.asked = self.asked, Counter()
        for name, number in asked.items():
            self.redis.tell("count", name, number)
        return lived == "ok"

    async def _claim_again(self, older_s: float) -> None:
        held = list(self._held(older_s))
        answers = await asyncio.gather(*(self.admit(ask, counted=True) for ask, _ in held))
        for (_, learn), answer in zip(held, answers, strict=True):
            learn(answer)

    async def _back(self) -> None:
        resumed = (await self.redis.ask("resume")).decode().partition(":")[2]
        self._restored = min(int(resumed), self._memory.marks.written)
        await self._beat()
        await self._claim_again(0)
        for operation in self._owed.values():
            self.redis.tell(*operation)
        self._owed.clear()
        count = await self._restore()
        if self._why is not None:
            _log.info("Redis answers again: state is shared", marks_restored=count, workers=self.workers)
        self._why = None
        self._returned.set()

    async def _restore(self) -> int:
        """Bring Redis the marks that it lacks; returns how many."""
        count = 0
        while marks := self._memory.marks.since(self._restored):
            for start in range(0, len(marks), _RESTORED_AT_ONCE):
                some = marks[start : start + _RESTORED_AT_ONCE]
                now_ms = self._now_ms()
                told = [self.redis.ask("mark", key, until_ms - now_ms) for key, until_ms in some if until_ms > now_ms]
                await asyncio.gather(*told)
                self._restored += len(some)
                count += len(some)
        return count

    def _lost(self, error: str, operations: list[Operation]) -> None:
        self._returned.clear()
        self._leased_until = 0.0
        self._owed |= {str(operation[1]): operation for operation in operations if operation[0] == "release"}
        if error != self._why:  # it is tried every second, and told when it is news
            self._away(error)
        self._why = error
