"""The tables in memory and in Redis give the same answers."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from rabbitmq import until
from redis_server import RedisServer
from structlog.testing import capture_logs

from otp_stream.checks.redis import check_redis
from otp_stream.core.admission import (
    Claim,
    Limit,
    Refusal,
    SentBefore,
    Superseded,
    Throttled,
    Unknown,
    read_limits,
)
from otp_stream.core.check_result import CheckResult
from otp_stream.core.job import Job
from otp_stream.core.otp_job import OtpJob
from otp_stream.tables import KeyBuilder, MemoryTables, RedisConfig, Tables, redis_pipeline, redis_session
from otp_stream.tables.redis_client import RedisClient

NOW = 1_700_000_000_000
HOUR = 3_600_000


@dataclass
class Backend:
    """The clock of the tables, and the Redis that they share, if any."""

    url: str | None
    now_ms: int = NOW
    running: list[asyncio.Task[None]] = field(default_factory=list)
    prefix: str = field(default_factory=lambda: f"{{t{uuid4().hex[:8]}}}:")

    async def tables(
        self, *limits: Limit, supersede: bool = False, sent_limit: int = 10_000, deployment: str = ""
    ) -> Tables:
        """Make the tables of one worker of a deployment."""
        memory = MemoryTables(limits, sent_ttl_ms=24 * HOUR, sent_limit=sent_limit)
        key_builder = KeyBuilder(b"k" * 32, supersede=supersede, limits=limits)
        redis = None
        if self.url:
            prefix, broker = f"{self.prefix}{deployment}", f"{deployment}broker with a name"
            redis = RedisConfig(lambda: self.url, prefix, names=self.prefix, broker=broker)

        def now_ms() -> int:
            return self.now_ms

        tables = Tables(key_builder, memory, redis=redis, now_ms=now_ms, server_ms=now_ms)
        if tables.shared is not None:
            session = tables.shared.session
            self.running.append(asyncio.create_task(tables.run()))
            assert await session.reconnected(20)
            assert await until(_true(lambda: session.connected), "Redis")
        return tables

    async def close(self) -> None:
        for task in self.running:
            task.cancel()
        await asyncio.gather(*self.running, return_exceptions=True)


def _true(ask: Callable[[], bool]) -> Callable[[], Any]:
    async def asked() -> bool:
        return ask()

    return asked


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.remove()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow that this process, or Redis, stops for seconds on a busy machine: the tables would not be shared then."""
    monkeypatch.setattr(redis_pipeline, "REPLY_TIMEOUT_S", 20.0)
    monkeypatch.setattr(redis_session, "LEASE_S", 60.0)


@pytest.fixture(params=["memory", "redis"])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    url = request.getfixturevalue("redis").url if request.param == "redis" else None
    backend = Backend(url)
    yield backend
    await backend.close()


def job(
    job_id: str = "a",
    *,
    email: str = "user@example.com",
    otp: str = "123456",
    at: int = NOW,
    given_id: bool = False,
    of_tenant: str = "",
    **more: Any,
) -> Job:
    body = {"email": email, "otp": otp, "timestamp": at, "metadata": more}
    request = OtpJob.model_validate(body | ({"jobId": job_id} if given_id else {}))
    return Job.from_request(
        request,
        job_id=job_id,
        lane="jobs",
        first_seen_ms=max(at, NOW),
        attempts_made=0,
        default_expiry_minutes=15,
        tenant=of_tenant,
    )


async def claim(tables: Tables, a_job: Job, on_lost: Callable[[], object] = lambda: None) -> Claim:
    admission = await tables.admit(a_job, NOW + HOUR, on_lost=on_lost)
    assert hasattr(admission, "mark_sent"), admission
    return admission


async def send(tables: Tables, a_job: Job) -> None:
    (await claim(tables, a_job)).mark_sent()


async def test_a_flag_is_seen_by_all_who_share_and_by_no_one_else(backend: Backend) -> None:
    one, other, stranger = [await backend.tables(deployment=name) for name in ("", "", "other:")]
    shared = backend.url is not None
    assert not await other.has_flag("it")
    assert await one.set_flag("it", HOUR) is shared
    assert await other.has_flag("it") is shared
    assert not await stranger.has_flag("it")
    assert not await other.has_flag("another")
    await one.set_flag("short", 1)
    assert await until(lambda: _is_gone(other, "short"), "the end of the flag")


async def _is_gone(tables: Tables, name: str) -> bool:
    return not await tables.has_flag(name)


async def ask(tables: Tables, a_job: Job) -> Claim | Refusal:
    """Claim a job, and release it again."""
    admission = await tables.admit(a_job, NOW + HOUR)
    if hasattr(admission, "release"):
        admission.release()
    return admission


# sent once


async def test_a_job_that_was_sent_is_not_sent_again(backend: Backend) -> None:
    tables = await backend.tables()
    await send(tables, job())
    assert await tables.admit(job(), NOW + HOUR) == SentBefore()


async def test_a_job_that_was_released_unsent_can_be_claimed_again(backend: Backend) -> None:
    tables = await backend.tables()
    (await claim(tables, job())).release()
    await claim(tables, job())


async def test_a_second_attempt_waits_for_the_first_and_learns_that_it_was_sent(backend: Backend) -> None:
    tables = await backend.tables()
    first = await claim(tables, job())
    second = asyncio.create_task(tables.admit(job(), NOW + HOUR))
    await asyncio.sleep(0)
    assert not second.done()
    first.mark_sent()
    assert await second == SentBefore()


async def test_only_one_of_many_waiting_gets_the_claim(backend: Backend) -> None:
    tables = await backend.tables()
    first = await claim(tables, job())
    waiting = [asyncio.create_task(tables.admit(job(), NOW + HOUR)) for _ in range(5)]
    await asyncio.sleep(0)
    first.release()
    (done,), rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert not any(task.done() for task in rest)
    second = done.result()
    assert hasattr(second, "mark_sent")
    second.mark_sent()
    assert await asyncio.gather(*rest) == [SentBefore()] * 4


async def test_a_cancelled_wait_leaves_the_claim_to_its_holder(backend: Backend) -> None:
    tables = await backend.tables()
    first = await claim(tables, job())
    waiting = asyncio.create_task(tables.admit(job(), NOW + HOUR))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    first.mark_sent()
    assert await tables.admit(job(), NOW + HOUR) == SentBefore()


async def test_copies_that_come_at_once_are_claimed_one_after_another(backend: Backend) -> None:
    tables = await backend.tables()
    holder = await claim(tables, job())
    waiting = [asyncio.create_task(claim(tables, job())) for _ in range(3)]
    await asyncio.sleep(0)
    while waiting:
        assert not any(task.done() for task in waiting)
        holder.release()
        await asyncio.wait(waiting, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        for _ in range(20):
            await asyncio.sleep(0)
        (claimed,) = (task for task in waiting if task.done())
        waiting.remove(claimed)
        holder = claimed.result()
    holder.mark_sent()
    assert await tables.admit(job(), NOW + HOUR) == SentBefore()


async def test_a_copy_that_stops_waiting_does_not_block_the_others(backend: Backend) -> None:
    tables = await backend.tables()
    holder = await claim(tables, job())
    gone, stays = (asyncio.create_task(claim(tables, job())) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    holder.release()
    async with asyncio.timeout(20):
        assert (await stays).holds()


@pytest.mark.parametrize("end", ["mark_sent", "release"])
async def test_a_claim_that_has_ended_is_dropped(backend: Backend, end: str) -> None:
    tables = await backend.tables(Limit("total", 10, HOUR), supersede=True)
    lost: list[bool] = []
    older = await claim(tables, job("older", otp="111111"), on_lost=lambda: lost.append(True))
    getattr(older, end)()
    await claim(tables, job("newer", otp="222222", at=NOW + 1))
    assert lost == []  # no one waits with the older one
    assert tables.state().claims == 1


async def test_sent_records_expire_after_their_ttl_and_not_before(backend: Backend) -> None:
    tables = await backend.tables()
    await send(tables, job())
    backend.now_ms = NOW + 24 * HOUR - 1
    assert await tables.admit(job(), backend.now_ms + HOUR) == SentBefore()
    if backend.url is None:  # Redis expires them by its own clock
        backend.now_ms += 1
        await claim(tables, job())


async def test_copies_of_a_slow_job_do_not_all_wait_here(backend: Backend) -> None:
    tables = await backend.tables()
    first = await claim(tables, job())
    copies = [asyncio.create_task(tables.admit(job(), NOW + HOUR)) for _ in range(230)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting = [copy for copy in copies if not copy.done()]
    assert len(waiting) == 8
    assert all(isinstance(copy.result(), Unknown) for copy in copies if copy.done())
    first.mark_sent()
    assert await asyncio.gather(*waiting) == [SentBefore()] * 8


async def test_many_purposes_of_one_recipient_make_no_call_slow(backend: Backend) -> None:
    tables = await backend.tables(supersede=True)
    for number in range(2_000):
        await ask(tables, job(f"j{number}", purpose=f"p{number}"))
    if tables.shared is not None:
        client = RedisClient(backend.url or "")
        try:
            (key,) = (it for it in client.execute("KEYS", "*newest:*") if it.decode().startswith(backend.prefix))
            assert client.execute("HLEN", key) <= 65
        finally:
            client.close()
    await claim(tables, job("new", otp="222222", at=NOW + 1, purpose="p1999"))
    assert await tables.admit(job("old", otp="333333", purpose="p1999"), NOW + HOUR) == Superseded()


# the same job is the same id, recipient and code

OTHERS = [
    {"otp": "654321"},
    {"email": "other@example.com"},
    {"otp": "654321", "email": "other@example.com"},
    {"of_tenant": "shop"},
]


@pytest.mark.parametrize("other", OTHERS, ids=["code", "recipient", "both", "tenant"])
async def test_an_id_with_another_recipient_code_or_tenant_is_another_job(
    backend: Backend, other: dict[str, str]
) -> None:
    tables = await backend.tables()
    await send(tables, job(given_id=True))
    await send(tables, job(given_id=True, **other))
    assert tables.state().reused == 1
    assert await tables.admit(job(given_id=True), NOW + HOUR) == SentBefore()
    assert await tables.admit(job(given_id=True, **other), NOW + HOUR) == SentBefore()


@pytest.mark.parametrize("other", OTHERS, ids=["code", "recipient", "both", "tenant"])
async def test_an_id_that_is_in_flight_does_not_hold_up_another_job_with_it(
    backend: Backend, other: dict[str, str]
) -> None:
    tables = await backend.tables()
    first = await claim(tables, job())
    async with asyncio.timeout(20):
        second = await claim(tables, job(**other))
    assert first.holds()
    assert second.holds()
    second.mark_sent()
    assert first.holds()


async def test_a_job_that_is_tried_again_is_no_reuse_of_its_id(backend: Backend) -> None:
    tables = await backend.tables()
    for _ in range(3):
        await ask(tables, job(given_id=True))
    assert tables.state().reused == 0


async def test_an_id_alone_that_an_earlier_version_recorded_as_sent_still_suppresses_its_copy(backend: Backend) -> None:
    tables = await backend.tables()
    if tables.shared is None:
        return  # memory does not outlive a version
    by_id = KeyBuilder(b"k" * 32).keys_of(job()).id_key
    await tables.shared.session.pipeline.request("mark", by_id, HOUR)
    assert await tables.admit(job(), NOW + HOUR) == SentBefore()
    await claim(tables, job("b"))


async def test_deployments_with_equal_names_suppress_none_of_each_others_codes(backend: Backend) -> None:
    one, other = await backend.tables(deployment="a:"), await backend.tables(deployment="b:")
    await send(one, job())
    await send(other, job())
    assert await one.admit(job(), NOW + HOUR) == SentBefore()


async def test_the_records_of_an_earlier_version_count_for_every_deployment_with_its_names(backend: Backend) -> None:
    if backend.url is None:
        return
    earlier = await backend.tables()
    assert earlier.shared is not None
    await earlier.shared.session.pipeline.request("mark", KeyBuilder(b"k" * 32).keys_of(job()).id_key, HOUR)
    await earlier.shared.session.pipeline.request("keep", "content", "made-before", HOUR)
    upgraded = await backend.tables(deployment="a:")
    assert await upgraded.admit(job(), NOW + HOUR) == SentBefore()
    assert await upgraded.recall("content") == "made-before"


async def test_a_check_warns_of_another_deployment_and_of_an_earlier_version(backend: Backend) -> None:
    if backend.url is None:
        return

    async def warnings(prefix: str) -> list[str]:
        backend.now_ms = time.time_ns() // 1_000_000  # a worker whose last beat is seconds old is not seen
        found: list[CheckResult] = []
        url, names = backend.url or "", backend.prefix
        await asyncio.to_thread(
            check_redis, url, "redis", f"{names}{prefix}", names, "open", found.append, broker="rabbit-1/otp"
        )
        return [f"{it.text}; {it.fix}" for it in found if it.level == "warning"]

    backend.now_ms = time.time_ns() // 1_000_000
    await backend.tables(deployment="a:")
    assert await warnings("a:") == []
    await backend.tables(deployment="b:")
    (text,) = await until(warned(warnings, "1 other deployment"), "the warning of another deployment")
    for part in ("uses RabbitMQ rabbit-1/otp", "b:broker with a name", "set REDIS_NAMESPACE"):
        assert part in text
    await backend.tables()
    assert await until(warned(warnings, "of an earlier version"), "the warning of an earlier version")


async def test_a_worker_that_starts_warns_of_another_deployment_with_its_names(backend: Backend) -> None:
    if backend.url is None:
        return
    with capture_logs() as logs:
        await backend.tables(deployment="a:")
        await backend.tables(deployment="a:")
        assert not [log for log in logs if "REDIS_NAMESPACE" in log["event"]]
        await backend.tables(deployment="b:")
    (warning,) = (log for log in logs if "REDIS_NAMESPACE" in log["event"])
    assert (warning["ours"], warning["others"]) == ("b:broker with a name", ["a:broker_with_a_name"])


def warned(warnings: Callable[[str], Awaitable[list[str]]], text: str) -> Callable[[], Awaitable[list[str]]]:
    async def asked() -> list[str]:
        return [it for it in await warnings("a:") if text in it]

    return asked


# newest code wins


async def test_a_job_that_cannot_be_sent_supersedes_nothing_and_is_not_counted(backend: Backend) -> None:
    tables = await backend.tables(Limit("recipient", 1, HOUR), supersede=True)
    uncomposed = await tables.admit(job("new", otp="222222", at=NOW + 1), NOW + HOUR, composed=False)
    assert hasattr(uncomposed, "release")
    uncomposed.release()
    old = await claim(tables, job("old", otp="111111"))
    again = await tables.admit(job("new", otp="222222", at=NOW + 1), NOW + HOUR, composed=False)
    assert hasattr(again, "release")
    assert old.holds()


async def test_a_newer_code_that_expires_long_before_the_older_one_supersedes_nothing(backend: Backend) -> None:
    tables = await backend.tables(supersede=True)
    old = await claim(tables, job("old", otp="111111"))
    await ask(tables, job("new", otp="222222", at=NOW + 1, expiryMinutes=1))
    assert old.holds()
    old.release()
    await claim(tables, job("old", otp="111111"))


async def test_a_job_that_expires_while_a_copy_of_it_is_in_flight_supersedes_nothing(backend: Backend) -> None:
    tables = await backend.tables(supersede=True)
    newer = job("new", otp="222222", at=NOW + 1)
    first = await claim(tables, newer)
    second = asyncio.create_task(tables.admit(newer, NOW + HOUR))
    await asyncio.sleep(0)
    backend.now_ms = newer.expires_ms
    older = await claim(tables, job("old", otp="111111", expiryMinutes=60))
    first.release()
    await second
    assert older.holds()


async def test_an_older_code_is_superseded_by_a_newer_one(backend: Backend) -> None:
    tables = await backend.tables(supersede=True)
    await claim(tables, job("new", otp="222222", at=NOW + 1))
    assert await tables.admit(job("old", otp="111111"), NOW + HOUR) == Superseded()


async def test_a_job_that_waits_loses_its_claim_to_a_newer_code(backend: Backend) -> None:
    tables = await backend.tables(supersede=True)
    lost: list[bool] = []
    old = await claim(tables, job("old", otp="111111"), on_lost=lambda: lost.append(True))
    assert old.holds()
    await claim(tables, job("new", otp="222222", at=NOW + 1))
    assert not old.holds()
    assert lost == [True]
    assert await old.renew(NOW + HOUR) == Superseded()


@pytest.mark.parametrize(
    "other",
    [
        {"otp": "111111"},
        {"otp": "222222", "email": "other@example.com"},
        {"otp": "222222", "purpose": "reset"},
        {"otp": "222222", "template": "welcome"},
    ],
    ids=["same code", "other recipient", "other purpose", "other template"],
)
async def test_another_code_for_something_else_supersedes_nothing(backend: Backend, other: dict[str, str]) -> None:
    tables = await backend.tables(supersede=True)
    await claim(tables, job("new", at=NOW + 1, **other))
    await claim(tables, job("old", otp="111111"))


async def test_the_address_is_the_same_in_capitals(backend: Backend) -> None:
    tables = await backend.tables(supersede=True)
    await claim(tables, job("new", otp="222222", at=NOW + 1, email="USER@Example.com"))
    assert await tables.admit(job("old", otp="111111"), NOW + HOUR) == Superseded()


async def test_of_two_codes_of_one_moment_the_one_that_arrived_later_is_newer(backend: Backend) -> None:
    tables = await backend.tables(supersede=True)
    await ask(tables, job("first", otp="111111"))
    await ask(tables, job("second", otp="222222"))
    assert await tables.admit(job("first", otp="111111"), NOW + HOUR) == Superseded()
    await claim(tables, job("second", otp="222222"))


async def test_a_code_that_comes_again_keeps_its_place_in_the_order_of_arrival(backend: Backend) -> None:
    tables = await backend.tables(supersede=True)
    first = await claim(tables, job("first", otp="111111"))
    await claim(tables, job("second", otp="222222"))
    first.release()
    assert await tables.admit(job("first", otp="111111"), NOW + HOUR) == Superseded()


async def test_the_code_that_comes_back_is_not_dropped_for_the_one_between(backend: Backend) -> None:
    tables = await backend.tables(supersede=True)
    await ask(tables, job("one", otp="111111", at=NOW))
    await ask(tables, job("two", otp="222222", at=NOW + 1))
    await ask(tables, job("three", otp="111111", at=NOW + 2))
    assert await ask(tables, job("two", otp="222222", at=NOW + 1)) == Superseded()
    await claim(tables, job("one", otp="111111", at=NOW))


async def test_a_code_that_is_throttled_supersedes_nothing(backend: Backend) -> None:
    tables = await backend.tables(Limit("recipient", 1, HOUR), supersede=True)
    await ask(tables, job("old", otp="111111"))
    assert isinstance(await ask(tables, job("new", otp="222222", at=NOW + 1)), Throttled)
    await claim(tables, job("old", otp="111111"))


async def test_after_the_clock_was_set_back_the_code_that_arrives_later_is_newer(backend: Backend) -> None:
    tables = await backend.tables(supersede=True)
    await ask(tables, job("old", otp="111111"))
    backend.now_ms -= HOUR
    (await claim(tables, job("new", otp="222222", at=backend.now_ms))).release()
    backend.now_ms += 1000
    (await claim(tables, job("newer", otp="333333", at=backend.now_ms))).release()
    assert await ask(tables, job("new", otp="222222", at=backend.now_ms - 1000)) == Superseded()


async def test_with_supersede_off_every_code_is_sent(backend: Backend) -> None:
    tables = await backend.tables()
    await claim(tables, job("new", otp="222222", at=NOW + 1))
    await claim(tables, job("old", otp="111111"))


# windowed limits


async def test_one_more_than_the_limit_is_throttled_until_the_first_leaves_the_window(backend: Backend) -> None:
    limit = Limit("recipient", 3, 600_000)
    tables = await backend.tables(limit)
    for number in range(3):
        await send(tables, job(f"j{number}"))
        backend.now_ms += 60_000
    throttled = await tables.admit(job("late"), NOW + HOUR)
    assert isinstance(throttled, Throttled)
    assert throttled.limit == limit
    assert NOW + 600_000 <= throttled.allowed_ms <= NOW + 606_000  # a hundredth of the period
    backend.now_ms = throttled.allowed_ms - 1
    assert isinstance(await ask(tables, job("late")), Throttled)
    backend.now_ms = throttled.allowed_ms
    await claim(tables, job("late"))


@pytest.mark.parametrize(
    ("name", "same", "other"),
    [
        ("recipient", {"email": "user@example.com"}, {"email": "other@example.com"}),
        ("recipient", {"email": "ｕser@ｅｘａｍｐｌｅ.com。"}, {"email": "user@exámple.com"}),
        ("domain", {"email": "other@EXAMPLE.com"}, {"email": "user@example.org"}),
        ("domain", {"email": "other@ⓔxample.com."}, {"email": "user@exámple.com"}),
        ("tenant", {"tenant": "shop"}, {"tenant": "bank"}),
        ("total", {"email": "who@example.net"}, None),
    ],
)
async def test_each_limit_counts_by_its_own_key(
    backend: Backend, name: Any, same: dict[str, Any], other: dict[str, Any] | None
) -> None:
    tables = await backend.tables(Limit(name, 1, HOUR))
    await send(tables, job("one", tenant="shop"))
    assert isinstance(await ask(tables, job("two", **same)), Throttled)
    if other is not None:
        await claim(tables, job("three", **other))


async def test_a_tenant_is_the_same_however_its_number_is_written(backend: Backend) -> None:
    tables = await backend.tables(Limit("tenant", 1, HOUR))
    await send(tables, job("one", tenant=1))
    for number, tenant in enumerate((1.0, "1")):
        assert isinstance(await ask(tables, job(f"j{number}", tenant=tenant)), Throttled)
    await send(tables, job("other", tenant=1.5))
    assert isinstance(await ask(tables, job("another", tenant="1.5")), Throttled)


async def test_a_job_without_a_tenant_is_not_counted_by_tenant(backend: Backend) -> None:
    tables = await backend.tables(Limit("tenant", 1, HOUR))
    for number, tenant in enumerate((None, "", ["x"], True, float("inf"))):
        await send(tables, job(f"j{number}", tenant=tenant))
        await send(tables, job(f"k{number}", tenant=tenant))


async def test_what_is_over_several_limits_is_allowed_when_the_last_has_room(backend: Backend) -> None:
    limits = Limit("recipient", 1, 60_000), Limit("recipient", 1, HOUR), Limit("total", 1, 600_000)
    tables = await backend.tables(*limits)
    await ask(tables, job("first"))
    throttled = await ask(tables, job("second"))
    assert isinstance(throttled, Throttled)
    assert throttled.limit == limits[1]
    assert NOW + HOUR <= throttled.allowed_ms <= NOW + HOUR * 1.01


async def test_what_is_throttled_by_one_limit_is_not_counted_by_another(backend: Backend) -> None:
    tables = await backend.tables(Limit("recipient", 1, HOUR), Limit("total", 2, HOUR))
    await send(tables, job("one"))
    for number in range(3):
        assert isinstance(await ask(tables, job(f"more{number}")), Throttled)
    await send(tables, job("other", email="other@example.com"))
    throttled = await ask(tables, job("third", email="third@example.com"))
    assert isinstance(throttled, Throttled)
    assert throttled.limit.name == "total"


async def test_a_job_is_counted_once_however_often_it_is_tried(backend: Backend) -> None:
    tables = await backend.tables(Limit("recipient", 1, HOUR))
    for _ in range(3):
        await ask(tables, job())
    await send(tables, job())
    assert await ask(tables, job()) == SentBefore()


async def test_two_windows_of_one_kind_hold_side_by_side(backend: Backend) -> None:
    tables = await backend.tables(*read_limits("recipient", "2/1m,3/1h"))
    for number in range(2):
        await send(tables, job(f"j{number}"))
    throttled = await ask(tables, job("third"))
    assert isinstance(throttled, Throttled)
    assert throttled.limit.period_ms == 60_000
    backend.now_ms = throttled.allowed_ms
    await send(tables, job("third"))
    throttled = await ask(tables, job("fourth"))
    assert isinstance(throttled, Throttled)
    assert throttled.limit.period_ms == HOUR


async def test_no_window_of_the_period_ever_holds_more_than_the_limit(backend: Backend) -> None:
    tables = await backend.tables(Limit("total", 7, 10_000))
    sent: list[int] = []
    for step in range(400):
        backend.now_ms = NOW + step * 137
        admission = await tables.admit(job(f"j{step}", at=NOW), NOW + HOUR)
        if hasattr(admission, "mark_sent"):
            admission.mark_sent()
            sent.append(backend.now_ms)
    for at in sent:
        assert sum(at <= other < at + 10_000 for other in sent) <= 7
    spent_ms = backend.now_ms - NOW
    assert len(sent) >= 7 * (spent_ms // 10_100)  # at most a hundredth is lost


async def test_after_the_clock_was_set_back_a_limit_throttles_for_one_period_at_most(backend: Backend) -> None:
    tables = await backend.tables(Limit("total", 3, HOUR))
    for number in range(2):
        await send(tables, job(f"before{number}"))
    backend.now_ms -= 24 * HOUR
    await send(tables, job("after"))
    admission = await tables.admit(job("over"), NOW + HOUR)
    assert isinstance(admission, Throttled)
    assert backend.now_ms + HOUR <= admission.allowed_ms <= backend.now_ms + HOUR * 1.02
    backend.now_ms = admission.allowed_ms
    for number in range(3):
        await send(tables, job(f"later{number}"))
    assert isinstance(await tables.admit(job("again"), NOW + HOUR), Throttled)


async def test_entries_of_limits_expire_after_their_window(backend: Backend) -> None:
    tables = await backend.tables(Limit("recipient", 1, 1_000))
    await send(tables, job())
    backend.now_ms += 2_000
    await send(tables, job("b", email="other@example.com"))
    assert tables.state().sizes.get("recipient 1/1s", 1) == (1 if backend.url is None else 0)


# ids made for jobs that have nothing but their content


async def test_the_last_id_generated_for_a_content_is_found_again(backend: Backend) -> None:
    tables = await backend.tables()
    assert await tables.recall("content") is None
    tables.keep("content", "one")
    tables.keep("content", "two")
    assert await tables.recall("content") == "two"  # which also waits until Redis has it
    other = tables if backend.url is None else await backend.tables()
    assert await other.recall("content") == "two"


async def test_a_value_of_a_higher_rank_stays_whichever_worker_wrote_it(backend: Backend) -> None:
    one, two = await backend.tables(), await backend.tables()
    other = two if backend.url else one

    async def put(writer: Tables, value: str) -> None:
        writer.ranked_values.put("a", value)
        await writer.ranked_values.get("a")  # Redis replies in order: it has the value now

    assert await one.ranked_values.get("a") is None
    await put(one, "1-first")
    assert await other.ranked_values.get("a") == "1-first"
    await put(other, "0-lower")
    assert await one.ranked_values.get("a") == "1-first"
    await put(other, "1-equal")
    assert await one.ranked_values.get("a") == "1-equal"
    await put(other, "4-higher")
    assert await one.ranked_values.get("a") == "4-higher"
    assert await one.ranked_values.put_first("a", "4-other") == "4-higher"
    assert await other.ranked_values.get("a") == "4-higher"


async def test_of_two_first_values_at_once_one_is_kept_and_the_other_returned(backend: Backend) -> None:
    one, two = await backend.tables(), await backend.tables()
    other = two if backend.url else one
    answers = await asyncio.gather(
        one.ranked_values.put_first("a", "0-one"), other.ranked_values.put_first("a", "0-two")
    )
    kept = await one.ranked_values.get("a")
    assert sorted(answers, key=str) == sorted([None, kept], key=str)
    assert await other.ranked_values.put_first("a", "0-three") == kept
    backend.now_ms += 24 * HOUR + 1
    assert await one.ranked_values.get("b") is None


async def test_while_redis_is_away_a_worker_has_its_own_ranked_values(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis")
    server.start()
    backend = Backend(server.url)
    tables = await backend.tables()
    try:
        tables.ranked_values.put("a", "1-known")
        assert await tables.ranked_values.get("a") == "1-known"
        server.kill()
        assert await tables.ranked_values.get("a") == "1-known"
        assert await tables.ranked_values.put_first("a", "0-other") == "1-known"
        assert await tables.ranked_values.put_first("b", "0-new") is None
        assert await tables.ranked_values.put_first("b", "0-other") == "0-new"
        server.start()
        session = tables.shared.session if tables.shared else None
        assert await until(_true(lambda: session is not None and session.connected), "an empty Redis")
        assert await tables.ranked_values.get("a") == "1-known"
        assert await tables.ranked_values.put_first("a", "0-other") == "1-known"
    finally:
        await backend.close()
        server.remove()
