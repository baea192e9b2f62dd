"""Workers that share their tables through a real Redis: leases, outages, and what each knows of the others."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import pytest
import uvloop
from certificates import Authority
from hypothesis import given, settings
from hypothesis import strategies as st
from rabbitmq import free_port, until
from redis_server import RedisServer

from otp_stream.core.admission import (
    Claim,
    Limit,
    LimitName,
    Refusal,
    SentBefore,
    Superseded,
    Throttled,
    Unknown,
    read_limits,
)
from otp_stream.core.job import Job
from otp_stream.core.masking import keyed_hash
from otp_stream.core.otp_job import OtpJob
from otp_stream.tables import KeyBuilder, MemoryTables, RedisConfig, Tables, redis_pipeline, redis_session

LEASE_S = 3.0
RENEW_S = 0.1
PATIENT_S = 20.0
"""A time limit for replies with which a busy machine is no outage."""
DAY_MS = 86_400_000
KEY, NEW_KEY = b"k" * 32, b"n" * 32


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def job(job_id: str = "a", *, email: str = "user@example.com", otp: str = "123456", at: int = 0, **more: Any) -> Job:
    request = OtpJob.model_validate({"email": email, "otp": otp, "timestamp": at or now_ms(), "metadata": more})
    return Job.from_request(
        request, job_id=job_id, lane="jobs", first_seen_ms=max(at, now_ms()), attempts_made=0, default_expiry_minutes=15
    )


@dataclass
class World:
    """A Redis, and the workers that share it; each test has its own prefix."""

    server: RedisServer
    url: str
    prefix: str = field(default_factory=lambda: f"{{t{uuid4().hex[:8]}}}:")
    running: dict[Tables, asyncio.Task[None]] = field(default_factory=dict)

    async def worker(
        self,
        *limits: Limit,
        supersede: bool = False,
        fail: Literal["open", "closed"] = "open",
        sent_limit: int = 10_000,
        ready: bool = True,
        clock: Callable[[], int] | None = None,
        keys: tuple[bytes, ...] = (KEY,),
    ) -> Tables:
        """Start the tables of one worker; the first of its `keys` is used, the others are old ones."""
        memory = MemoryTables(limits, sent_ttl_ms=DAY_MS, sent_limit=sent_limit)
        key_builder = KeyBuilder(keys[0], supersede=supersede, limits=limits, old_hash_keys=keys[1:])
        redis = RedisConfig(lambda: self.url, self.prefix, names=self.prefix)
        tables = Tables(key_builder, memory, redis=redis, fail=fail, now_ms=clock or now_ms, server_ms=clock)
        self.running[tables] = asyncio.create_task(tables.run())
        if ready:
            await is_(tables, connected=True)
        return tables

    async def kill(self, tables: Tables) -> None:
        """End a worker as a crash would: without releasing its claims in Redis."""
        task = self.running.pop(tables)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def keys(self, pattern: str = "*") -> list[str]:
        """Return the keys of this test, without their prefix."""
        listed = await asyncio.to_thread(self.server.command, "EVAL", _KEYS, "0", f"{self.prefix}{pattern}")
        return [key.removeprefix(self.prefix) for key in listed.split("\r\n", 1)[-1].split()]

    async def job_keys(self) -> dict[str, str]:
        """Return what Redis knows of jobs."""
        keys = await self.keys("job:*")
        return {key: await self.get(key) for key in keys}

    async def has_no_claims(self) -> None:
        """Wait until Redis has the record or the release of every job: no claim is left."""

        async def no_claims() -> bool:
            return not [state for state in (await self.job_keys()).values() if state.startswith("c:")]

        await until(no_claims, "claims that are gone")

    async def has_jobs(self, count: int) -> None:
        """Wait until Redis has records of so many jobs."""

        async def so_many() -> bool:
            return len(await self.keys("job:*")) == count

        await until(so_many, f"{count} jobs in Redis")

    async def get(self, key: str) -> str:
        return (await asyncio.to_thread(self.server.command, "GET", self.prefix + key)).split("\r\n")[-1]


_KEYS = "return table.concat(redis.call('KEYS', ARGV[1]), ' ')"


async def is_(tables: Tables, *, connected: bool) -> None:
    async def so() -> bool:
        assert tables.shared is not None
        return tables.shared.session.connected is connected

    await until(so, f"tables that are {'' if connected else 'not '}connected", 30)


async def restart(server: RedisServer, *workers: Tables) -> None:
    """Crash Redis and restart it empty; wait until all workers have noticed."""
    server.kill()
    for tables in workers:
        await is_(tables, connected=False)
    server.start()
    for tables in workers:
        await is_(tables, connected=True)


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Run a Redis that no test stops or breaks."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.remove()


@asynccontextmanager
async def world_of(server: RedisServer, url: str | None = None) -> AsyncIterator[World]:
    world = World(server, url or server.url)
    try:
        yield world
    finally:
        for tables in list(world.running):
            await world.kill(tables)


@pytest.fixture
async def world(steady: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(redis_pipeline, "REPLY_TIMEOUT_S", PATIENT_S)
    async with world_of(steady) as world:
        yield world


@pytest.fixture
async def frail_world(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(redis_pipeline, "REPLY_TIMEOUT_S", PATIENT_S)
    async with world_of(redis) as world:
        yield world


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_session, "LEASE_S", LEASE_S)
    monkeypatch.setattr(redis_session, "_RENEW_S", RENEW_S)


async def ask(tables: Tables, a_job: Job, wait_s: float = 10) -> Claim | Refusal:
    async with asyncio.timeout(wait_s + 20):
        return await tables.admit(a_job, now_ms() + round(wait_s * 1000))


async def claim(tables: Tables, a_job: Job, wait_s: float = 10) -> Claim:
    admission = await ask(tables, a_job, wait_s)
    assert not isinstance(admission, Refusal), admission
    return admission


async def is_busy(tables: Tables, a_job: Job) -> bool:
    """Return whether another worker has claimed a job; release it if not."""
    admission = await ask(tables, a_job, 0)
    if not isinstance(admission, Refusal):
        admission.release()
    return admission == Unknown()


class Frozen:
    """A worker whose lease is not renewed, as when its process is suspended."""

    def __init__(self, tables: Tables) -> None:
        assert tables.shared is not None
        self._session, self._thawed = tables.shared.session, asyncio.Event()
        renew = tables.shared.session._renew_lease

        async def later(*_: Any) -> Any:
            await self._thawed.wait()
            return await renew()

        tables.shared.session._renew_lease = later

    def thaw(self) -> None:
        del self._session._renew_lease
        self._thawed.set()


# claims between workers


@pytest.mark.parametrize("end", ["mark_sent", "release", "die"])
async def test_a_job_is_busy_until_its_worker_ends_the_claim_or_dies(world: World, short_lease: None, end: str) -> None:
    one, two = await world.worker(), await world.worker()
    first = await claim(one, job())
    second = asyncio.create_task(ask(two, job()))
    await asyncio.sleep(0.3)
    assert not second.done()
    if end == "die":
        await world.kill(one)
    else:
        getattr(first, end)()
    admission = await second
    assert admission == SentBefore() if end == "mark_sent" else not isinstance(admission, Refusal)


async def test_a_claim_outlives_a_relay_that_takes_its_time(world: World, short_lease: None) -> None:
    one, two = await world.worker(), await world.worker()
    first = await claim(one, job())
    for _ in range(3):
        await asyncio.sleep(LEASE_S / 2)
        assert await is_busy(two, job())
        assert first.holds()
    first.mark_sent()
    assert await ask(two, job()) == SentBefore()


async def test_a_suspended_worker_renews_its_claim_before_it_sends(world: World, short_lease: None) -> None:
    one, two = await world.worker(), await world.worker()
    first, other = await claim(one, job()), await claim(one, job("b"))
    frozen = Frozen(one)
    second = await claim(two, job())
    assert not first.holds()
    frozen.thaw()
    assert await first.renew(now_ms()) == Unknown()
    assert not first.holds()
    second.mark_sent()
    assert await first.renew(now_ms() + 1000) == SentBefore()
    if not other.holds():
        assert await other.renew(now_ms()) is None
    assert other.holds()
    assert await is_busy(two, job("b"))


async def test_a_new_job_does_not_hide_that_the_lease_had_expired(world: World, short_lease: None) -> None:
    one, two = await world.worker(), await world.worker()
    first = await claim(one, job())
    frozen = Frozen(one)
    second = await claim(two, job())
    frozen.thaw()
    (await claim(one, job("new"))).release()  # the request renews the lease
    for _ in range(20):
        assert not first.holds()  # the other worker has claimed it
        await asyncio.sleep(RENEW_S / 4)
    second.mark_sent()
    assert await first.renew(now_ms() + 1000) == SentBefore()


async def test_a_cancelled_request_leaves_no_claim(world: World) -> None:
    one, two = await world.worker(), await world.worker()
    for turns in range(6):
        asked = asyncio.create_task(ask(one, job(f"j{turns}")))
        for _ in range(turns):
            await asyncio.sleep(0)
        asked.cancel()
        (admission,) = await asyncio.gather(asked, return_exceptions=True)
        if not isinstance(admission, BaseException):  # it was answered before
            admission.release()
        await claim(two, job(f"j{turns}"), 1)
    assert one.state().claims == 0


async def test_a_cancelled_wait_for_another_worker_leaves_its_claim(world: World) -> None:
    one, two, three = [await world.worker() for _ in range(3)]
    first = await claim(one, job())
    waiting = asyncio.create_task(ask(two, job()))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert await is_busy(three, job())
    first.mark_sent()


async def test_only_one_of_many_workers_gets_a_job(world: World) -> None:
    workers = [await world.worker() for _ in range(4)]
    for number in range(15):
        asked = [asyncio.create_task(ask(it, job(f"j{number}"))) for it in workers]
        done, rest = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        [winner] = done
        admission = winner.result()
        assert not isinstance(admission, Refusal)
        admission.mark_sent()
        assert await asyncio.gather(*rest) == [SentBefore()] * 3


# newest code wins


async def test_a_newer_code_at_another_worker_is_noticed_without_a_question(world: World) -> None:
    one, two = await world.worker(supersede=True), await world.worker(supersede=True)
    noticed = asyncio.Event()
    at = now_ms()
    old = await one.admit(job("old", otp="111111", at=at - 1), at + 10_000, on_lost=noticed.set)
    assert not isinstance(old, Refusal)
    await asyncio.sleep(0.6)
    assert old.holds()
    (await claim(two, job("new", otp="222222", at=at))).mark_sent()
    async with asyncio.timeout(10):
        await noticed.wait()
    assert not old.holds()
    assert await old.renew(now_ms() + 1000) == Superseded()


async def test_no_copy_of_a_superseded_job_passes_its_mail_that_is_on_the_way(world: World) -> None:
    one, two = await world.worker(supersede=True), await world.worker(supersede=True)
    at = now_ms()
    held = await claim(one, job("a", otp="111111", at=at - 3))
    (await claim(two, job("b", otp="222222", at=at - 2))).mark_sent()

    async def superseded() -> bool:
        return not held.holds()

    await until(superseded, "newer code")
    # the first code again: now only the claim prevents a copy
    (await claim(two, job("c", otp="111111", at=at - 1))).mark_sent()
    assert await is_busy(two, job("a", otp="111111", at=at - 3))
    held.mark_sent()
    assert await ask(two, job("a", otp="111111", at=at - 3)) == SentBefore()


async def test_a_superseded_job_leaves_no_claim(world: World) -> None:
    one, two = await world.worker(supersede=True), await world.worker(supersede=True)
    at = now_ms()
    held = await claim(one, job("a", otp="111111", at=at - 2))
    (await claim(two, job("b", otp="222222", at=at - 1))).mark_sent()
    assert await held.renew(now_ms() + 1000) == Superseded()
    held.release()
    await world.has_no_claims()


async def test_a_superseded_job_stays_superseded_however_often_it_is_claimed(world: World) -> None:
    one, two = await world.worker(supersede=True), await world.worker(supersede=True)
    at = now_ms()
    await claim(one, job("old", otp="111111", at=at))
    await claim(two, job("new", otp="222222", at=at))
    await world.kill(one)
    three = await world.worker(supersede=True)
    for _ in range(3):
        assert await ask(three, job("old", otp="111111", at=at)) == Superseded()


# limits


async def test_a_limit_is_exact_however_many_workers_claim_at_once(world: World) -> None:
    limits = read_limits("recipient", "50/1h")
    one, two = await world.worker(*limits), await world.worker(*limits)
    asked = [ask((one, two)[number % 2], job(f"j{number}")) for number in range(300)]
    answers = await asyncio.gather(*asked)
    throttled = [it for it in answers if isinstance(it, Throttled)]
    assert len(answers) - len(throttled) == 50
    assert {it.limit for it in throttled} == set(limits)


async def test_a_job_counts_once_for_all_workers(world: World, short_lease: None) -> None:
    limits = read_limits("recipient", "2/1h")
    one, two = await world.worker(*limits), await world.worker(*limits)
    (await claim(one, job("retried"))).release()
    await claim(one, job("taken over"))
    await world.kill(one)
    (await claim(two, job("retried"))).mark_sent()
    (await claim(two, job("taken over"))).mark_sent()
    assert isinstance(await ask(two, job("third")), Throttled)


@pytest.mark.parametrize("text", ["2/1h,2/1h", "2/1h,3/1h", "3/1h,2/1h"])
async def test_two_limits_for_one_period_count_a_job_once(world: World, text: str) -> None:
    limits = read_limits("recipient", text)
    shared, alone = await world.worker(*limits), Tables(KeyBuilder(KEY, limits=limits), memory_of(limits))
    for tables in (shared, alone):
        answers = [await ask(tables, job(f"j{number}")) for number in range(3)]
        assert [isinstance(it, Throttled) for it in answers] == [False, False, True]


def memory_of(limits: tuple[Limit, ...] = ()) -> MemoryTables:
    return MemoryTables(limits, sent_ttl_ms=DAY_MS, sent_limit=10_000)


# the cost


async def test_one_call_for_each_job_and_fewer_in_a_burst(world: World) -> None:
    one = await world.worker()
    assert one.shared is not None
    before = await calls(world)
    claims = await asyncio.gather(*(claim(one, job(f"j{number}")) for number in range(1000)))
    for it in claims:
        it.mark_sent()
    pipeline = one.shared.session.pipeline

    async def answered() -> bool:
        return not pipeline.has_unanswered

    await until(answered, "answers to all calls")
    assert await calls(world) - before <= 30  # ten for the claims, ten for the sent records, and the lease
    assert len(await world.keys("job:*")) == 1000


async def test_a_great_burst_is_no_outage(world: World) -> None:
    limits = (*read_limits("recipient", "5/1h"), *read_limits("total", "100000/1h"))
    one = await world.worker(*limits, supersede=True)
    assert one.shared is not None
    redis = one.shared.session.pipeline
    asking = asyncio.gather(*(claim(one, job(f"j{number}", email=f"u{number}@example.com")) for number in range(3000)))
    most = 0
    while not asking.done():
        most = max(most, len(redis._calls))
        await asyncio.sleep(0)
    await asking
    assert 1 < most <= 10  # operations that are queued here do not count as late
    assert one.state().unshared == 0


async def calls(world: World) -> int:
    info = await asyncio.to_thread(world.server.command, "INFO", "commandstats")
    [line] = [line for line in info.splitlines() if line.startswith("cmdstat_evalsha:")]
    return int(line.partition("calls=")[2].partition(",")[0])


@pytest.mark.parametrize("keys", [(KEY,), (KEY, NEW_KEY)], ids=["one-key", "two-keys"])
async def test_a_request_is_one_call(world: World, keys: tuple[bytes, ...]) -> None:
    limits = read_limits("recipient", "50/1h")
    one = await world.worker(*limits, supersede=True, keys=keys)
    assert one.shared is not None
    asked: list[tuple[Any, ...]] = []
    add = one.shared.session.pipeline._add

    def counting(operation: tuple[Any, ...], answer: asyncio.Future[bytes] | None) -> None:
        if answer is not None and operation[0] != "beat":
            asked.append(operation)
        add(operation, answer)

    one.shared.session.pipeline._add = counting
    for number in range(20):
        (await claim(one, job(f"j{number}"))).mark_sent()
    assert len(asked) == 20


# while the key of hashes is changed

ROTATIONS = pytest.mark.parametrize(
    ("before", "after"),
    [((KEY,), (NEW_KEY, KEY)), ((KEY, NEW_KEY), (NEW_KEY, KEY)), ((NEW_KEY, KEY), (KEY, NEW_KEY))],
    ids=["new-key", "second-step", "step-back"],
)


@ROTATIONS
async def test_a_copy_of_a_job_that_was_sent_with_another_key_is_not_sent(
    world: World, before: tuple[bytes, ...], after: tuple[bytes, ...]
) -> None:
    one, other = await world.worker(keys=before), await world.worker(keys=after)
    at = now_ms()
    (await claim(one, job(at=at))).mark_sent()
    assert await ask(other, job(at=at)) == SentBefore()
    await claim(other, job("b", at=at))


async def test_a_job_is_busy_for_workers_with_another_key(world: World, short_lease: None) -> None:
    one, other = await world.worker(keys=(KEY, NEW_KEY)), await world.worker(keys=(NEW_KEY, KEY))
    at = now_ms()
    held = await claim(one, job(at=at))
    assert await is_busy(other, job(at=at))
    held.release()
    again = await claim(other, job(at=at))
    assert await is_busy(one, job(at=at))
    again.mark_sent()
    assert await ask(one, job(at=at)) == SentBefore()


async def test_the_id_that_holds_a_secret_is_known_with_every_key(world: World) -> None:
    one, other = await world.worker(keys=(KEY, NEW_KEY)), await world.worker(keys=(NEW_KEY, KEY))
    given, at = "login-user@example.com", now_ms()

    def named(key: bytes) -> Job:
        it = job(keyed_hash(given, key), at=at)
        return replace(it, request=it.request.model_copy(update={"job_id": given}))

    # as a copy that its producer publishes has it, and as a retry from before the change has it
    (await claim(one, named(KEY))).release()
    (await claim(other, named(KEY))).mark_sent()
    assert await ask(other, named(NEW_KEY)) == SentBefore()
    assert await ask(one, named(KEY)) == SentBefore()


@ROTATIONS
@pytest.mark.parametrize("name", ["recipient", "domain", "tenant", "total"])
async def test_a_limit_keeps_its_count_with_another_key(
    world: World, name: LimitName, before: tuple[bytes, ...], after: tuple[bytes, ...]
) -> None:
    limits = (*read_limits(name, "4/1h"), *read_limits(name, "9/1d"))
    one, other = await world.worker(*limits, keys=before), await world.worker(*limits, keys=after)
    for number in range(3):
        (await claim(one, job(f"one{number}", tenant="t"))).mark_sent()
    (await claim(other, job("other", tenant="t"))).mark_sent()
    over = await ask(other, job("over", tenant="t"))
    assert isinstance(over, Throttled)
    assert over.limit == limits[0]
    assert 0 < over.allowed_ms - now_ms() <= 3_636_000 + 36_000


async def test_a_job_that_was_counted_with_another_key_is_not_counted_again(world: World) -> None:
    limits = read_limits("recipient", "2/1h")
    one, other = await world.worker(*limits, keys=(KEY,)), await world.worker(*limits, keys=(NEW_KEY, KEY))
    at = now_ms()
    (await claim(one, job(at=at))).release()
    for _ in range(3):
        (await claim(other, job(at=at))).release()
    await claim(other, job("b"))
    assert isinstance(await ask(other, job("c")), Throttled)


@ROTATIONS
async def test_the_newest_code_is_the_newest_with_another_key(
    world: World, before: tuple[bytes, ...], after: tuple[bytes, ...]
) -> None:
    one = await world.worker(supersede=True, keys=before)
    other = await world.worker(supersede=True, keys=after)
    at = now_ms()
    (await claim(one, job("new", otp="222222", at=at))).mark_sent()
    assert await ask(other, job("old", otp="111111", at=at - 1_000)) == Superseded()
    await claim(other, job("same", otp="222222", at=at - 1_000))
    await claim(other, job("newer", otp="333333", at=at + 1))


# what is written to Redis


async def test_nothing_in_redis_reveals_who_gets_which_code(world: World) -> None:
    limits = (*read_limits("recipient", "1/1h"), *read_limits("domain", "9/1h"), *read_limits("tenant", "9/1h"))
    one = await world.worker(*limits, supersede=True)
    secret = {"email": "secret.person@hidden.example", "tenant": "my-tenant", "purpose": "my-purpose"}
    (await claim(one, job("my-job-id", otp="739154", **secret))).mark_sent()
    (await claim(one, job("held", otp="739154", email="secret.person@other.example"))).release()
    await ask(one, job("over", otp="864209", **secret))

    async def dumped() -> str:
        dump = await asyncio.to_thread(world.server.command, "EVAL", _DUMP, "0", f"{world.prefix}*")
        return dump if "newest:" in dump and "throttled" in dump else ""

    dump = await until(dumped, "newest codes and counts")
    for word in ("secret.person", "hidden", "other.example", "739154", "864209", "my-", "held", "over"):
        assert word not in dump, word


_DUMP = """
local out = {}
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
  local kind = redis.call('TYPE', key).ok
  local value
  if kind == 'string' then value = redis.call('GET', key)
  elseif kind == 'hash' then value = table.concat(redis.call('HGETALL', key), '|')
  else value = table.concat(redis.call('ZRANGE', key, 0, -1, 'WITHSCORES'), '|') end
  out[#out + 1] = key .. '=' .. value
end
return table.concat(out, ' ')
"""


async def test_after_the_clock_of_redis_was_set_back_no_mail_waits_until_it_has_caught_up(world: World) -> None:
    clock = now_ms()
    one = await world.worker(clock=lambda: clock)
    for _ in range(3):
        assert await one.reserve("relay:25", 1, 10.0, True) is not None
    clock -= 60 * 60_000
    grant = await one.reserve("relay:25", 1, 10.0, False)
    assert grant is not None
    assert 0.5 < grant.first_in_s < 0.7  # the schedule of before: three slots, 0.2 s apart
    assert grant.allowed == pytest.approx(5.0)
    clock += 20_000
    grant = await one.reserve("relay:25", 1, 10.0, False)
    assert grant is not None
    assert (grant.first_in_s, grant.allowed) == (0, pytest.approx(10.0))


async def test_every_key_expires(world: World) -> None:
    limits = read_limits("recipient", "1/1h")
    one = await world.worker(*limits, supersede=True)
    (await claim(one, job())).mark_sent()
    await ask(one, job("over"))
    assert await one.reserve("relay:25", 1, 10.0, False) is not None
    kinds = {"job", "newest", "limit", "worker", "log", "rate", "throttled", "arrivals", "workers", "stats"}

    async def written() -> bool:
        return {key.partition(":")[0] for key in await world.keys()} == kinds

    await until(written, "keys of every kind")
    lasting = set()
    for key in await world.keys():
        if (await asyncio.to_thread(world.server.command, "PTTL", world.prefix + key)) == ":-1":
            lasting.add(key)
    assert lasting == {"arrivals", "workers", "stats"}


async def test_a_recipient_with_ever_new_purposes_takes_bounded_memory(world: World) -> None:
    clock = now_ms()
    one = await world.worker(supersede=True, clock=lambda: clock)
    for number in range(120):
        old = await claim(one, job(f"old{number}", at=clock, purpose=f"p{number}"))
        old.mark_sent()
    clock += 60 * 60_000
    await ask(one, job("other", email="other@example.com", at=clock, purpose="p"))
    for number in range(30):
        (await claim(one, job(f"new{number}", at=clock, purpose=f"n{number}"))).mark_sent()
    keys = [world.prefix + key for key in await world.keys("newest:*")]
    sizes = [int((await asyncio.to_thread(world.server.command, "HLEN", key)).removeprefix(":")) for key in keys]
    assert sorted(sizes) == [1, 30]


async def test_a_newest_code_is_dropped_when_it_expires(world: World) -> None:
    clock = now_ms()
    one = await world.worker(supersede=True, clock=lambda: clock)
    (await claim(one, job("new", at=clock + 1000, otp="222222"))).mark_sent()
    (await claim(one, job("else", at=clock, purpose="else", expiryMinutes=60))).mark_sent()  # keeps the recipient's key
    assert await ask(one, job("old", at=clock)) == Superseded()
    clock += 20 * 60_000
    assert not isinstance(await ask(one, job("late", at=clock - 20 * 60_000, expiryMinutes=60)), Superseded)


# when Redis fails


async def test_workers_restore_their_state_in_a_redis_that_comes_back_empty(frail_world: World) -> None:
    world, server = frail_world, frail_world.server
    one, two = await world.worker(), await world.worker()
    for number in range(250):
        (await claim(one, job(f"sent{number}"))).mark_sent()
    held = await claim(one, job("held"))
    await restart(server, one, two)
    for number in range(250):
        assert await ask(two, job(f"sent{number}"), 0) == SentBefore(), number
    assert await is_busy(two, job("held"))
    assert held.holds()
    held.mark_sent()
    assert await ask(two, job("held")) == SentBefore()
    assert one.state().pending == 0


async def test_no_worker_trusts_an_empty_redis_before_the_others_have_restored_their_state(
    frail_world: World,
) -> None:
    world, server = frail_world, frail_world.server
    one, two = await world.worker(), await world.worker()
    (await claim(one, job("sent"))).mark_sent()
    assert one.shared is not None
    restore, may_continue, reached = one.shared.session.replica.restore, asyncio.Event(), asyncio.Event()

    async def restore_late() -> int:
        reached.set()
        await may_continue.wait()
        return await restore()

    one.shared.session.replica.restore = restore_late
    server.kill()
    await asyncio.gather(is_(one, connected=False), is_(two, connected=False))
    server.start()
    await reached.wait()
    await asyncio.sleep(0.5)  # enough for the other, if it did not wait
    assert two.state().connected is False
    may_continue.set()
    await asyncio.gather(is_(one, connected=True), is_(two, connected=True))
    assert await ask(two, job("sent")) == SentBefore()


async def test_a_lease_renewed_before_records_are_restored_does_not_confirm_them(frail_world: World) -> None:
    world, server = frail_world, frail_world.server
    one, two = await world.worker(), await world.worker()
    (await claim(one, job("sent"))).mark_sent()
    assert one.shared is not None
    restore = one.shared.session._restore

    async def renew_and_restore() -> Any:
        await one.shared.session._renew_lease()  # as the regular renewal may  # type: ignore[union-attr]
        return await restore()

    one.shared.session._restore = renew_and_restore
    replica = one.shared.session.replica

    async def confirmed() -> bool:
        return replica._confirmed == replica.written == 1

    await until(confirmed, "confirmed sent record")
    await restart(server, one, two)
    assert await ask(two, job("sent")) == SentBefore()


async def test_a_worker_that_never_comes_back_is_not_waited_for_long(frail_world: World, short_lease: None) -> None:
    world, server = frail_world, frail_world.server
    one, two = await world.worker(), await world.worker()
    assert one.shared is not None
    server.kill()
    await is_(one, connected=False)
    await world.kill(two)
    server.start()
    await is_(one, connected=True)


async def test_jobs_sent_and_released_during_an_outage_reach_redis(frail_world: World) -> None:
    world, server = frail_world, frail_world.server
    one, two = await world.worker(), await world.worker()
    marked, released = await claim(one, job("marked")), await claim(one, job("released"))
    pause(server)
    await is_(one, connected=False)
    marked.mark_sent()
    released.release()
    (await claim(one, job("new"))).mark_sent()
    assert one.state().unshared == 1
    assert one.state().pending >= 2
    resume(server)
    for tables in (one, two):
        await is_(tables, connected=True)
    assert one.state().pending == 0
    assert await ask(two, job("marked")) == SentBefore()
    assert await ask(two, job("new")) == SentBefore()
    await claim(two, job("released"), 0)


def pause(server: RedisServer) -> None:
    """Let Redis refuse every write, and keep its data."""
    server.command("CONFIG", "SET", "maxmemory", "1")


def resume(server: RedisServer) -> None:
    server.command("CONFIG", "SET", "maxmemory", "0")


async def test_an_old_release_does_not_end_the_claim_that_came_after_it(frail_world: World) -> None:
    world, server = frail_world, frail_world.server
    one, two = await world.worker(), await world.worker()
    first = await claim(one, job())
    pause(server)
    await is_(one, connected=False)
    first.release()
    second = await claim(one, job())
    resume(server)
    for tables in (one, two):
        await is_(tables, connected=True)
    assert await is_busy(two, job())
    second.mark_sent()
    assert await ask(two, job()) == SentBefore()


@pytest.mark.parametrize("turns", range(4))
async def test_a_claim_that_ends_while_it_is_restored_is_released(frail_world: World, turns: int) -> None:
    world, server = frail_world, frail_world.server
    one, two = await world.worker(), await world.worker()
    assert one.shared is not None
    session, loop = one.shared.session, asyncio.get_running_loop()
    pause(server)
    await is_(one, connected=False)
    held = await claim(one, job())
    restore, claims = session._restore, session.claims.admitted

    def end_in(turns: int) -> None:
        if turns:
            loop.call_soon(end_in, turns - 1)
        else:
            held.release()

    def claims_that_end() -> Any:
        session.claims.admitted = claims
        loop.call_soon(end_in, turns)
        return claims()

    async def restore_what_ends() -> Any:
        session.claims.admitted = claims_that_end
        return await restore()

    session._restore = restore_what_ends
    resume(server)
    for tables in (one, two):
        await is_(tables, connected=True)
    await claim(two, job())


async def test_a_claim_made_while_records_are_restored_is_shared(frail_world: World) -> None:
    world, server = frail_world, frail_world.server
    one, two = await world.worker(), await world.worker()
    assert one.shared is not None
    for number in range(500):
        (await claim(one, job(f"sent{number}"))).mark_sent()
    restore = one.shared.session.replica.restore
    between: list[Claim] = []

    async def restore_slowly() -> int:
        count = await restore()
        if not between:
            between.append(await claim(one, job("between")))
        return count

    one.shared.session.replica.restore = restore_slowly
    await restart(server, one, two)
    assert await is_busy(two, job("between"))
    between[0].mark_sent()


async def test_a_job_that_waited_for_redis_is_counted(frail_world: World) -> None:
    world, server = frail_world, frail_world.server
    limits = read_limits("total", "2/1h")
    one = await world.worker(*limits, fail="closed")
    server.kill()
    await is_(one, connected=False)
    waiting = [asyncio.create_task(ask(one, job(f"j{number}"))) for number in range(5)]
    await asyncio.sleep(0.1)
    assert not any(it.done() for it in waiting)
    server.start()
    answers = await asyncio.gather(*waiting)
    assert sum(isinstance(it, Throttled) for it in answers) == 3


async def test_jobs_that_arrive_as_the_connection_is_lost_continue(frail_world: World) -> None:
    world, server = frail_world, frail_world.server
    one = await world.worker(sent_limit=1_000_000)
    stopped = asyncio.Event()

    async def keep_asking(name: str) -> int:
        count = 0
        while not stopped.is_set():
            (await claim(one, job(f"{name}.{count}"))).mark_sent()
            count += 1
            await asyncio.sleep(0.002)
        return count

    asking = [asyncio.create_task(keep_asking(f"k{number}")) for number in range(20)]
    for _ in range(3):
        await asyncio.sleep(0.2)
        await restart(server, one)
    stopped.set()
    counts = await asyncio.gather(*asking)
    assert one.state().pending == 0
    await world.has_jobs(sum(counts))


def test_a_job_that_arrives_before_the_loss_is_handled_continues(redis: RedisServer) -> None:
    async def meet() -> list[Claim | Refusal]:
        async with world_of(redis) as world:
            one = await world.worker()
            assert one.shared is not None
            assert one.shared.session.pipeline._transport is not None
            one.shared.session.pipeline._transport.abort()
            asking: list[asyncio.Task[Claim | Refusal]] = []
            for number in range(20):  # one in each iteration of the event loop
                asking.append(asyncio.create_task(ask(one, job(f"j{number}"))))
                await asyncio.sleep(0)
            return await asyncio.gather(*asking)

    # uvloop is what a worker runs on; unlike asyncio's own loop, it raises on a write to a closed transport
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert not any(isinstance(it, Refusal) for it in runner.run(meet()))


async def test_a_job_claimed_again_during_an_outage_counts_as_one_possible_duplicate(frail_world: World) -> None:
    world, server = frail_world, frail_world.server
    one = await world.worker()
    server.kill()
    await is_(one, connected=False)
    held = await claim(one, job())
    for _ in range(3):
        assert await held.renew(now_ms() + 5000) is None
    assert one.state().unshared == 1
    await claim(one, job("other"))
    assert one.state().unshared == 2


@dataclass
class Failure:
    """How Redis fails, and how it recovers; `error` is in the message about it."""

    harm: Callable[[RedisServer], object]
    recover: Callable[[RedisServer], object]
    error: str


FAILURES = {
    "killed": Failure(RedisServer.kill, RedisServer.start, ""),
    "frozen": Failure(RedisServer.freeze, RedisServer.thaw, "no answer"),
    "full": Failure(pause, resume, "OOM "),
    "a replica": Failure(
        lambda server: server.command("REPLICAOF", "127.0.0.1", "1"),
        lambda server: server.command("REPLICAOF", "NO", "ONE"),
        "READONLY",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_codes_are_sent_while_redis_is(frail_world: World, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    world, server, failure = frail_world, frail_world.server, FAILURES[name]
    monkeypatch.setattr(redis_pipeline, "REPLY_TIMEOUT_S", 1.0 if name == "frozen" else PATIENT_S)
    one, two = await world.worker(), await world.worker()
    before = await claim(one, job("before"))
    failure.harm(server)
    began = time.monotonic()
    during = await claim(one, job("during"), 60)
    assert time.monotonic() - began < 10
    await is_(one, connected=False)
    assert before.holds()
    assert during.holds()
    before.mark_sent()
    during.mark_sent()
    state = one.state()
    assert state.connected is False
    assert failure.error in (state.error or "")
    assert state.unshared >= 1
    failure.recover(server)
    monkeypatch.setattr(redis_pipeline, "REPLY_TIMEOUT_S", PATIENT_S)
    for tables in (one, two):
        await is_(tables, connected=True)
    for job_id in ("before", "during"):
        assert await ask(two, job(job_id)) == SentBefore()
    assert one.state().error is None


@pytest.mark.parametrize("name", FAILURES)
async def test_jobs_wait_with_closed_while_redis_is(
    frail_world: World, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    world, server, failure = frail_world, frail_world.server, FAILURES[name]
    monkeypatch.setattr(redis_pipeline, "REPLY_TIMEOUT_S", 1.0 if name == "frozen" else PATIENT_S)
    one, two = await world.worker(fail="closed"), await world.worker(fail="closed")
    before = await claim(one, job("before"))
    failure.harm(server)
    assert await ask(one, job("waiting"), 0.5) == Unknown()
    await is_(one, connected=False)
    assert not before.holds()
    waiting = asyncio.create_task(ask(one, job("waits"), 30))
    await asyncio.sleep(0.5)
    assert not waiting.done()
    failure.recover(server)
    monkeypatch.setattr(redis_pipeline, "REPLY_TIMEOUT_S", PATIENT_S)
    admission = await waiting
    assert not isinstance(admission, Refusal)
    admission.mark_sent()
    assert await before.renew(now_ms() + 1000) is None
    before.mark_sent()
    await is_(two, connected=True)
    for job_id in ("waits", "before"):
        assert await ask(two, job(job_id)) == SentBefore()
    assert one.state().unshared == 0
    assert two.state().pending == 0


async def test_flushed_scripts_are_loaded_again(frail_world: World) -> None:
    world, server = frail_world, frail_world.server
    one = await world.worker()
    server.command("SCRIPT", "FLUSH")
    (await claim(one, job())).mark_sent()
    await is_(one, connected=True)
    two = await world.worker()
    assert await ask(two, job()) == SentBefore()


async def test_a_flushed_database_is_restored(frail_world: World, short_lease: None) -> None:
    world, server = frail_world, frail_world.server
    one, two = await world.worker(), await world.worker()
    (await claim(one, job("sent"))).mark_sent()
    held = await claim(one, job("held"))
    await world.has_jobs(2)
    server.command("FLUSHALL")
    await world.has_jobs(2)
    assert await ask(two, job("sent"), 0) == SentBefore()
    assert await is_busy(two, job("held"))
    held.mark_sent()


async def test_the_state_shows_since_when_redis_is_unavailable(frail_world: World) -> None:
    world, server = frail_world, frail_world.server
    one = await world.worker()
    await asyncio.sleep(0.05)
    came = one.state().since_ms
    server.kill()
    await is_(one, connected=False)
    went = one.state().since_ms
    assert went > came
    server.start()
    await is_(one, connected=True)
    assert one.state().since_ms > went


async def test_records_that_redis_never_confirmed_are_still_missing(
    frail_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, server = frail_world, frail_world.server
    monkeypatch.setattr(redis_pipeline, "REPLY_TIMEOUT_S", 1.0)
    one = await world.worker()
    server.freeze()
    (await claim(one, job("during"))).mark_sent()
    before = one.state()
    assert (before.connected, before.pending) == (False, 1)
    server.thaw()
    await is_(one, connected=True)
    (await claim(one, job("sent"))).mark_sent()
    server.freeze()
    await is_(one, connected=False)
    assert one.state().pending >= 1
    server.thaw()
    await is_(one, connected=True)
    assert one.state().pending == 0


async def test_a_starting_worker_claims_its_first_job_in_redis(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_session, "_FIRST_ANSWER_S", PATIENT_S)
    one = await world.worker()
    (await claim(one, job())).mark_sent()
    await world.has_no_claims()
    two = await world.worker(ready=False)
    assert await ask(two, job()) == SentBefore()
    assert two.state().unshared == 0


async def test_a_worker_that_stops_during_a_short_stall_of_redis_loses_no_record(
    frail_world: World, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await frail_world.worker(), await frail_world.worker()
    held = await claim(one, job())
    pause(redis)
    await is_(one, connected=False)
    held.mark_sent()
    assert one.shared is not None
    now = time.monotonic()
    monkeypatch.setattr(redis_session, "monotonic", lambda: now)  # the second for which it waits does not pass
    closing = asyncio.create_task(one.shared.session.close())
    await asyncio.sleep(0.1)
    resume(redis)
    await closing
    await frail_world.kill(one)
    await is_(two, connected=True)
    assert await ask(two, job()) == SentBefore()


async def test_an_unusable_url_is_reported_and_codes_are_sent(frail_world: World) -> None:
    frail_world.url = "rediss://:hunter2@h/0?ssl_cert_reqs=bogus"
    one = await frail_world.worker(ready=False)
    (await claim(one, job())).mark_sent()

    async def reported() -> bool:
        return (one.state().error or "").startswith("REDIS_URL cannot be used")

    await until(reported, "unusable URL")


async def test_a_worker_starts_without_redis(frail_world: World) -> None:
    world, server = frail_world, frail_world.server
    server.kill()
    one = await world.worker(ready=False)
    began = time.monotonic()
    (await claim(one, job(), 60)).mark_sent()
    assert time.monotonic() - began < 10
    server.start()
    two = await world.worker()
    await is_(one, connected=True)
    assert await ask(two, job()) == SentBefore()


async def test_records_beyond_the_limit_are_restored_once(frail_world: World) -> None:
    world, server = frail_world, frail_world.server
    one = await world.worker(sent_limit=100)
    for number in range(1050):
        (await claim(one, job(f"j{number}"))).mark_sent()
    assert one.shared is not None
    sent: list[str] = []
    add = one.shared.session.pipeline._add

    def noting(operation: tuple[Any, ...], answer: asyncio.Future[bytes] | None) -> None:
        sent.append(operation[0])
        add(operation, answer)

    one.shared.session.pipeline._add = noting
    await restart(server, one)
    assert sent.count("mark") == 100
    assert one.state().pending == 0


async def test_a_sent_record_lives_in_redis_as_long_as_its_code_also_after_redis_has_lost_it(
    frail_world: World,
) -> None:
    world, server = frail_world, frail_world.server
    one = await world.worker()
    for name, days in (("month", 30), ("hour", 1 / 24), ("week", 7)):
        (await claim(one, job(name, expiryMinutes=days * 24 * 60))).mark_sent()

    async def lifetimes() -> list[int]:
        keys = await world.keys("job:*")
        replies = [await asyncio.to_thread(server.command, "PTTL", world.prefix + key) for key in keys]
        return sorted(round(int(reply.removeprefix(":")) / DAY_MS) for reply in replies)

    async def all_there() -> bool:
        return await lifetimes() == [1, 7, 30]

    await until(all_there, "sent records")
    await restart(server, one)
    assert await lifetimes() == [1, 7, 30]


async def test_a_job_that_was_evicted_and_sent_again_is_known_again() -> None:
    clock = [now_ms()]
    tables = Tables(KeyBuilder(KEY), memory_of(), now_ms=lambda: clock[0])
    for _ in range(2):
        (await claim(tables, job())).mark_sent()
        assert await ask(tables, job()) == SentBefore()
        clock[0] += DAY_MS


# the ways to a Redis


async def test_a_password_lets_in_and_a_wrong_one_does_not(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis", settings=("--requirepass", "sesame"))
    server.start()
    try:
        async with world_of(server, f"redis://:sesame@127.0.0.1:{server.port}/0") as right:
            (await claim(await right.worker(), job())).mark_sent()
        for wrong in (f"redis://:wrong-word@127.0.0.1:{server.port}/0", server.url):
            async with world_of(server, wrong) as world:
                one = await world.worker(ready=False)
                (await claim(one, job())).mark_sent()

                async def refused(tables: Tables = one) -> bool:
                    return "auth" in (tables.state().error or "").lower()

                await until(refused, "refused login")
                assert "wrong-word" not in (one.state().error or "")
    finally:
        server.remove()


async def test_tls_is_used_and_an_unknown_certificate_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("127.0.0.1")
    port = free_port()
    tls = ("--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key))
    server = RedisServer(
        tmp_path / "redis", settings=(*tls, "--tls-ca-cert-file", str(authority.ca_file), "--tls-auth-clients", "no")
    )
    server.start()
    try:
        url = f"rediss://127.0.0.1:{port}/0"
        async with world_of(server, f"{url}?ssl_ca_certs={authority.ca_file}") as world:
            one, two = await world.worker(), await world.worker()
            (await claim(one, job())).mark_sent()
            assert await ask(two, job()) == SentBefore()
        async with world_of(server, url) as world:
            one = await world.worker(ready=False)

            async def refused() -> bool:
                return "certificate" in (one.state().error or "").lower()

            await until(refused, "refused certificate")
    finally:
        server.remove()


async def test_a_unix_socket_works(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("r")
    server = RedisServer(folder / "redis", settings=("--unixsocket", str(folder / "s")))
    server.start()
    try:
        async with world_of(server, f"unix://{folder / 's'}?db=3") as world:
            one, two = await world.worker(), await world.worker()
            (await claim(one, job())).mark_sent()
            assert await ask(two, job()) == SentBefore()
    finally:
        server.remove()


# memory and Redis give the same answers

_JOBS = st.integers(0, 7)
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), _JOBS),
        st.tuples(st.sampled_from(["mark_sent", "release"]), _JOBS),
        st.tuples(st.just("wait"), st.integers(1, 20_000)),
    ),
    max_size=30,
)
_LIMITS = {
    "": (),
    "one": read_limits("recipient", "2/10s"),
    "many": (*read_limits("recipient", "2/10s,3/60s"), *read_limits("tenant", "2/20s"), *read_limits("total", "4/30s")),
}


@given(steps=_STEPS, supersede=st.booleans(), limits=st.sampled_from(sorted(_LIMITS)), spread=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_memory_and_redis_give_the_same_answers(
    steady: RedisServer,
    steps: list[tuple[str, int]],
    supersede: bool,  # noqa: FBT001 - Hypothesis gives it by name
    limits: str,
    spread: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis_pipeline, "REPLY_TIMEOUT_S", PATIENT_S)
        asyncio.run(_compare(steady, steps, supersede=supersede, limits=_LIMITS[limits], spread=spread))


async def _compare(
    server: RedisServer, steps: list[tuple[str, int]], *, supersede: bool, limits: tuple[Limit, ...], spread: int
) -> None:
    began = now_ms()
    clock = [began]
    jobs = [
        job(
            f"j{number}",
            email=f"user{number % 2}@example.com",
            otp=f"00000{number % 3}",
            at=began - 10 + number * spread % 5,
            tenant=number % 3 and "shop",
        )
        for number in range(8)
    ]
    async with world_of(server) as world:
        key_builder = KeyBuilder(KEY, supersede=supersede, limits=limits)
        alone = Tables(key_builder, memory_of(limits), now_ms=lambda: clock[0])
        both = alone, await world.worker(*limits, supersede=supersede, clock=lambda: clock[0])
        held: dict[int, tuple[Claim, Claim]] = {}
        for step, number in steps:
            match step:
                case "wait":
                    clock[0] += number
                case "admit" if number not in held:
                    answers = [await tables.admit(jobs[number], clock[0]) for tables in both]
                    _same(held, number, answers)
                case "mark_sent" | "release" if number in held:
                    for it in held.pop(number):
                        getattr(it, step)()
            await _still_the_same(held, clock[0])


def _same(held: dict[int, tuple[Claim, Claim]], number: int, answers: list[Claim | Refusal]) -> None:
    memory, redis = answers
    if isinstance(memory, Refusal) or isinstance(redis, Refusal):
        assert memory == redis
    else:
        held[number] = memory, redis


async def _still_the_same(held: dict[int, tuple[Claim, Claim]], at: int) -> None:
    for number, claims in list(held.items()):
        memory, redis = (it.holds() for it in claims)
        assert memory == redis, number
        if not memory:
            memory, redis = [await it.renew(at) for it in claims]
            assert memory == redis
            if memory is not None:
                for it in held.pop(number):
                    it.release()
