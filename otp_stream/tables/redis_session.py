"""A worker's session in Redis: its lease, and the recovery of its claims and sent records after an outage."""

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from time import monotonic

import structlog

from otp_stream.clock import MachineClock
from otp_stream.core.admission import Limit
from otp_stream.core.tables_state import Fail, WorkerSeen
from otp_stream.tasks import cancel_and_wait, forever

from .claim import Claim, Claims
from .clock_check import ClockCheck
from .keys import JobKeys
from .redis_connection import RedisConfig
from .redis_pipeline import Operation, RedisPipeline, RedisUnavailableError
from .redis_script import admit_operation, encode_worker, limits_arguments, read_admission, read_brokers, read_workers
from .sent_records import SentRecords
from .sent_replica import SentReplica

LEASE_S = 3.0
"""A worker that does not renew its lease for this long loses its claims. The jobs of a killed worker wait this long."""
_RENEW_S = 0.5
_FIRST_ANSWER_S = 1.0
"""How long the first jobs wait for an answer of Redis."""
_POLL_OTHERS_S = 0.1
_WARN_EVERY_S = 3_600.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(eq=False)
class RedisSession:
    """The lease of this worker, its claims, and the copy of its sent records in Redis.

    Claims are valid while the worker renews its lease, twice a second. Sent records stay in memory as well, and Redis
    counts how many of them it has. After an outage, or if Redis comes back empty, each worker restores its sent records
    and claims before it trusts replies again.
    """

    config: RedisConfig
    limits: Sequence[Limit]
    claims: Claims
    sent: SentRecords
    now_ms: Callable[[], int]
    renews_claims: bool
    """Whether claims are renewed twice a second, to detect those that other workers have superseded."""
    fail: Fail = "open"
    observe: Callable[[float], object] = lambda _: None
    """Called with the seconds that each call took."""
    server_ms: Callable[[], int] | None = None
    """Replaces the server's clock in tests."""
    machine: MachineClock = field(default_factory=MachineClock)
    """The clock that is compared with the server's, and corrected."""

    def __post_init__(self) -> None:
        self.worker = secrets.token_hex(6)
        self.workers = 0
        """Live workers that have restored their claims and sent records."""
        self._workers_before = 0
        """That number when the connection was lost."""
        self.answers: Counter[str] = Counter()
        """Answers to jobs that are not yet added to the counts in Redis."""
        self.since_ms = self.now_ms()
        """When `connected` last changed (milliseconds since 1970)."""
        self._leased_until = 0.0
        self._lease_expired = False
        """Whether the lease has expired and the claims are not restored yet."""
        self._unreleased: dict[str, Operation] = {}
        """Releases that Redis has not received."""
        self._connected, self._decided = asyncio.Event(), asyncio.Event()
        """`_decided` is set once it is known whether Redis answers."""
        self._renewing = asyncio.Lock()
        self._first_answer_due = monotonic() + _FIRST_ANSWER_S
        self._logged_error: str | None = None
        self._warn_from = float("-inf")
        self._describe: Callable[[], WorkerSeen] | None = None
        self.pipeline = RedisPipeline(
            self.config.url,
            prefix=self.config.prefix,
            worker=self.worker,
            limits=limits_arguments(self.limits),
            on_connected=self._recover,
            on_lost=self._on_lost,
            observe=self.observe,
            now_ms=self.server_ms,
        )
        self.clock_check = ClockCheck(self.machine)
        self.replica = SentReplica(self.sent, self.pipeline, self.now_ms)

    @property
    def connected(self) -> bool:
        """Whether replies can be trusted."""
        return self.pipeline.ready

    @property
    def leased(self) -> bool:
        """Whether the lease is valid, so that no other worker can claim our jobs."""
        return monotonic() < self._leased_until

    async def run(self, describe: Callable[[], WorkerSeen] | None = None) -> None:
        """Maintain the connection and the lease until cancelled. `describe` returns what this worker publishes."""
        self._describe = describe
        renewing = asyncio.create_task(forever(self._keep_lease, "lease"))
        self._first_answer_due = monotonic() + _FIRST_ANSWER_S
        try:
            await self.pipeline.run()
        finally:
            await cancel_and_wait(renewing)

    async def first_answer(self) -> None:
        """Wait at most a second until it is known whether Redis answers. Later calls return immediately."""
        left_s = self._first_answer_due - monotonic()
        if left_s > 0 and not self._decided.is_set():
            await _wait_for(self._decided, left_s)

    async def reconnected(self, timeout_s: float) -> bool:
        """Wait until Redis answers again. Returns `False` after `timeout_s`."""
        return await _wait_for(self._connected, timeout_s)

    async def ensure_lease(self) -> None:
        """Renew an expired lease, without which a claim is invalid. Raises `RedisUnavailableError`."""
        if not self.leased:
            await self._renew_lease(unless=lambda: self.leased)

    def claim(self, keys: JobKeys, *, counted: bool) -> asyncio.Future[bytes]:
        """Request a claim; `read_admission` parses the reply."""
        ttl_ms = keys.ttl_ms(self.now_ms())
        return self.pipeline.request(*admit_operation(self.config.names, keys, ttl_ms, self.limits, counted=counted))

    def release(self, keys: JobKeys) -> None:
        """End the claim of a job that was not sent."""
        # a job that was counted must not be counted again, and keeps its place in the order of arrival
        operation = ("release", keys.key, keys.ttl_ms(self.now_ms()) if keys.recipient or keys.limits else 0)
        if not self.pipeline.send(*operation):
            self._unreleased[keys.key] = operation

    async def close(self) -> None:
        """Wait at most a second until Redis has received everything: no other worker can restore our sent records."""
        deadline = monotonic() + 1.0
        while (self.pipeline.has_unanswered or self.replica.missing) and monotonic() < deadline:  # noqa: ASYNC110 - at the end of a process
            await asyncio.sleep(0.01)
        if self.replica.missing:
            _log.warning("Redis lacks sent records", count=self.replica.missing, error=self.pipeline.error)

    async def _keep_lease(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_S)
            if not self.pipeline.is_open:
                continue
            with suppress(RedisUnavailableError):
                await self._renew_lease()
                await self._check_clock()
                if self.connected:
                    await self._renew_claims()

    async def _renew_claims(self) -> None:
        if self._lease_expired:
            await self._restore()
        elif self.renews_claims:
            before = monotonic() - _RENEW_S
            await self._claim_again(claim for claim in self.claims.admitted() if claim.claimed_at <= before)

    async def _renew_lease(self, *, unless: Callable[[], bool] = lambda: False) -> None:
        """Renew the lease. If it had expired, or Redis has lost it, suspend our claims."""
        # one at a time, so that replies are applied in order
        async with self._renewing:
            if not unless():
                await self._do_renew_lease()

    async def _do_renew_lease(self) -> None:
        began, written, complete = monotonic(), self.replica.written, self.replica.complete
        sent_ms, about = self.machine.uncorrected_ms(), ""
        if self._describe is not None:
            about = encode_worker(replace(self._describe(), clock_ahead_ms=self.clock_check.state.ahead_ms))
        reply = await self.pipeline.request(
            "beat", int(LEASE_S * 1000), written, int(complete), about, self.config.names, self.config.broker
        )
        with self.pipeline.reading():
            lease, workers, server_ms = reply.decode().split(":")
            self.workers = int(workers)
            self.clock_check.measure(sent_ms, int(server_ms))
        if lease == "ok":
            if complete:  # while records are being restored, the reply is about records from before the outage
                self.replica.confirm(written)
        else:
            self._lease_expired, self.replica.complete = True, False
            self._suspend_claims()
        self._leased_until = began + LEASE_S
        answers, self.answers = self.answers, Counter()
        for name, number in answers.items():
            self.pipeline.send("count", name, number)

    async def _check_clock(self) -> None:
        name, workers = "", list[WorkerSeen]()
        if self.clock_check.differs and self._describe is not None:
            name, reply = self._describe().name, await self.pipeline.request("seen")
            with self.pipeline.reading():
                workers = read_workers(reply)
        self.clock_check.judge(name, workers)

    def _suspend_claims(self) -> None:
        for claim in self.claims.admitted():
            claim.suspend()

    async def _claim_again(self, claims: Iterable[Claim]) -> Sequence[Claim]:
        """Renew claims and return them. `claims` is read without an await, so that none can end before its request."""
        requests: list[tuple[Claim, asyncio.Future[bytes]]] = []
        for claim in claims:
            claim.shared = True  # if the claim ends before the reply, it must be released in Redis
            requests.append((claim, self.claim(claim.keys, counted=True)))
        replies = await asyncio.gather(*(reply for _, reply in requests))
        for (claim, _), reply in zip(requests, replies, strict=True):
            with self.pipeline.reading():
                claim.update(read_admission(reply, self.limits))
        return [claim for claim, _ in requests]

    async def _recover(self) -> None:
        # first, the claims that have ended: the same jobs may be claimed again by now
        for operation in self._unreleased.values():
            self.pipeline.send(*operation)
        self._unreleased.clear()
        await self._renew_lease()
        await self._check_clock()
        self._suspend_claims()  # Redis may have come back with an older state
        await self._warn_of_other_deployments()
        records, claims = await self._restore()
        await self._wait_for_others()
        if self._logged_error is not None:
            _log.info("Redis answers again: state is shared", records_restored=records, workers=self.workers)
        self._logged_error = None
        self.pipeline.set_ready()
        self.since_ms = self.now_ms()
        self._connected.set()
        self._decided.set()
        # then the jobs that were claimed during the recovery; from now on, jobs are claimed in Redis
        await self._claim_again(claim for claim in self.claims.admitted() if claim not in claims)

    async def _warn_of_other_deployments(self) -> None:
        reply = await self.pipeline.request("others", int(LEASE_S * 1000), self.config.names)
        with self.pipeline.reading():
            brokers = read_brokers(reply)
        # not at each reconnect: anyone who can write these texts can also end the connection, again and again
        if brokers and monotonic() >= self._warn_from:
            self._warn_from = monotonic() + _WARN_EVERY_S
            _log.warning(
                "Another deployment with the same queue name and RABBITMQ_PREFIX uses this Redis database, and shares "
                "no state with this one. If both use the same RabbitMQ, set REDIS_NAMESPACE to the same value for all "
                "workers; otherwise, give each its own RABBITMQ_PREFIX or Redis database",
                ours=self.config.broker,
                others=brokers,
            )

    async def _wait_for_others(self) -> None:
        """Wait at most for a lease until as many workers as before have restored their state: Redis may be empty."""
        ends = monotonic() + LEASE_S
        await self._renew_lease()
        while self.workers < self._workers_before and monotonic() < ends:
            await asyncio.sleep(_POLL_OTHERS_S)
            await self._renew_lease()

    async def _restore(self) -> tuple[int, Sequence[Claim]]:
        """Restore our claims, and the sent records that Redis lacks. Returns the number of records, and the claims."""
        self._lease_expired = False
        await self.replica.resume()
        claims = await self._claim_again(self.claims.admitted())
        records = await self.replica.restore()
        self.replica.complete = not self._lease_expired
        return records, claims

    def _on_lost(self, error: str, operations: list[Operation]) -> None:
        if self._connected.is_set():
            self.since_ms = self.now_ms()
            self._workers_before = self.workers
        self.replica.on_lost()
        self._connected.clear()
        self._decided.set()
        self._leased_until = 0.0
        self._unreleased |= {str(operation[1]): operation for operation in operations if operation[0] == "release"}
        if error and error != self._logged_error:  # every attempt to reconnect may fail, so each error is logged once
            meanwhile = "codes are sent without shared state" if self.fail == "open" else "jobs wait"
            shown = {"redis": self.config.shown_url, "error": error, "state_fail": self.fail}
            _log.warning("Redis does not answer", meanwhile=meanwhile, **shown)
        self._logged_error = error


async def _wait_for(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return False
    return True
