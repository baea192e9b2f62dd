"""`otp-stream tables`, as an operator uses it: on a separate Redis, next to workers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli import names, otp_stream
from conftest import Stage
from rabbitmq import free_port, until
from redis_server import RedisServer
from worker import CODE, Worker, job

from otp_stream.core.masking import hash_address
from otp_stream.settings import Settings

ADDRESS = "Ada.Lovelace@example.com"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis", settings=("--requirepass", "hunter2"))
    server.start()
    yield server
    server.remove()


@pytest.fixture(autouse=True)
def _answers_with_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    # without the password it still answers that it is there
    monkeypatch.setattr(RedisServer, "answers", lambda server: "NOAUTH" in _ping(server))


def _ping(server: RedisServer) -> str:
    try:
        return server.command("PING")
    except OSError:
        return ""


def url(server: RedisServer) -> str:
    return f"redis://:hunter2@127.0.0.1:{server.port}/0"


def env(stage: Stage, redis: RedisServer) -> dict[str, str]:
    return {**names(stage), "REDIS_URL": url(redis), "RECIPIENT_LIMIT": "2/1h", "SUPERSEDE": "latest"}


async def start(stage: Stage, redis: RedisServer, **changes: str) -> Worker:
    """Start a worker on this Redis, with limits, and wait until it has a connection to it."""
    worker = await stage.run(REDIS_URL=url(redis), RECIPIENT_LIMIT="2/1h", SUPERSEDE="latest", **changes)

    async def shares() -> bool:
        return (await worker.health())["tables"]["connected"]

    await until(shares, "a connection to Redis")
    return worker


async def report(stage: Stage, redis: RedisServer) -> dict[str, Any]:
    """Return the output of `tables --json`."""
    ran = await otp_stream(stage.folder, "tables", "--json", **env(stage, redis))
    assert ran.code == 0, ran.out
    return json.loads(ran.out)


def hashed(stage: Stage) -> str:
    """Return the hash of the address, as in events."""
    # without the file that `make run` leaves in this folder
    return hash_address(ADDRESS, Settings(_env_file=None, rabbitmq_url=stage.url).hash_key)


async def test_sizes_answers_and_throttled_keys_are_shown_and_nothing_secret(stage: Stage, redis: RedisServer) -> None:
    worker = await start(stage, redis)
    await stage.rabbit.publish(*(job(ADDRESS, jobId=f"j-{number}") for number in range(4)))
    assert len(await stage.rabbit.dead(2)) == 2
    await stage.rabbit.publish(job(ADDRESS, jobId="j-0"))

    async def complete() -> dict[str, Any] | None:  # workers report their counts twice a second
        found = await report(stage, redis)
        counted = found["answers"].get("duplicate", {}).get("count") == 1
        return found if counted and found["entries"]["sent"] == 2 and found["workers"] else None

    found = await until(complete, "the counts")
    assert found["entries"] == {"sent": 2, "claimed": 0, "seen": 0, "made": 0, "newest": 1, "recipient 2/1h": 1}
    assert found["answers"] == {
        "admitted": {"count": 2, "share": 0.4},
        "duplicate": {"count": 1, "share": 0.2},
        "throttled_recipient": {"count": 2, "share": 0.4},
    }
    assert found["throttled"] == [{"limit": "recipient", "key": hashed(stage), "count": 2}]
    assert (found["workers"], found["warnings"]) == (1, [])
    ran = await otp_stream(stage.folder, "tables", **env(stage, redis))
    assert ran.code == 0
    assert "Shared by 1 worker," in ran.out
    assert "throttled recipient" in ran.out
    assert f"recipient {hashed(stage)}" in ran.out

    async def page_with_key() -> str | None:
        page = (await worker.get("/"))[1]
        return page if f"recipient <code>{hashed(stage)}</code>" in page else None

    page = await until(page_with_key, "the throttled key on the page")
    for out in (ran.out, json.dumps(found), page):
        for secret in (ADDRESS, ADDRESS.lower(), "ovelace", CODE, "hunter2"):
            assert secret not in out


async def test_a_forgotten_recipient_has_the_whole_limit_again(stage: Stage, redis: RedisServer) -> None:
    await start(stage, redis)
    await stage.rabbit.publish(*(job(ADDRESS) for _ in range(3)))
    await stage.rabbit.dead()
    await stage.relay.wait_accepted(2)
    await until(lambda: _has_sent(stage, redis, 2), "the sent records")
    asked = await otp_stream(stage.folder, "tables", "forget", ADDRESS, **env(stage, redis))
    assert asked.code == 1  # there is no terminal to confirm on
    assert (await report(stage, redis))["entries"]["newest"] == 1
    ran = await otp_stream(stage.folder, "tables", "forget", ADDRESS, "--yes", "--json", **env(stage, redis))
    assert ran.code == 0, ran.out
    forgotten = json.loads(ran.out)
    assert forgotten["recipient"] == "A***@example.com"
    assert forgotten["hash"] == hashed(stage)
    assert forgotten["deleted"] == {"newest": 1, "recipient": 1, "throttled": 1}
    assert "nothing about a person" in forgotten["kept"]
    after = await report(stage, redis)
    assert (after["entries"]["newest"], after["entries"]["recipient 2/1h"], after["throttled"]) == (0, 0, [])
    assert after["entries"]["sent"] == 2
    await stage.rabbit.publish(job(ADDRESS))
    await stage.relay.wait_accepted(3)
    again = await otp_stream(stage.folder, "tables", "forget", "other.person@example.com", "-y", **env(stage, redis))
    assert again.code == 0
    assert "Nothing was found" in again.out
    for out in (asked.out, ran.out, again.out):
        assert "ovelace" not in out
        assert "other.person" not in out
        assert "hunter2" not in out


async def test_entries_under_an_old_secret_key_are_deleted_too(stage: Stage, redis: RedisServer) -> None:
    old, new = "an old key of 24 letters", "a new key of 24 letters."
    await start(stage, redis, SECRET_KEY=old)
    await stage.rabbit.publish(job(ADDRESS))
    await stage.relay.wait_accepted(1)
    changed = env(stage, redis) | {"SECRET_KEY": f"{new},{old}"}
    ran = await otp_stream(stage.folder, "tables", "forget", ADDRESS, "--yes", "--json", **changed)
    assert json.loads(ran.out)["deleted"] == {"newest": 1, "recipient": 1, "throttled": 0}


async def test_an_unavailable_redis_exits_with_1_and_the_consequence(tmp_path: Path, redis: RedisServer) -> None:
    for where in (f"redis://u:hunter2@127.0.0.1:{free_port()}/", f"redis://:hunter3@127.0.0.1:{redis.port}/0"):
        for command in (("tables",), ("tables", "--json"), ("tables", "forget", ADDRESS, "--yes")):
            ran = await otp_stream(tmp_path, *command, REDIS_URL=where)
            assert ran.code == 1, ran.out
            assert "does not answer" in ran.out
            assert "STATE_FAIL=open" in ran.out
            assert "hunter" not in ran.out
            assert "ovelace" not in ran.out


async def test_invalid_settings_and_arguments_exit_with_2_and_the_fix(tmp_path: Path) -> None:
    ran = await otp_stream(tmp_path, "tables")
    assert ran.code == 2
    assert "REDIS_URL: is not set" in ran.out
    assert "is lost when the process exits" in ran.out
    ran = await otp_stream(tmp_path, "tables", "forget", "no-address", "--yes", REDIS_URL="redis://127.0.0.1")
    assert ran.code == 2
    assert "RECIPIENT: must be one e-mail address" in ran.out
    ran = await otp_stream(tmp_path, "tables", REDIS_URL="redis://u:hunter/2@127.0.0.1:6379")
    assert ran.code == 2
    assert ran.out.startswith("REDIS_URL: ")
    assert "hunter" not in ran.out


async def test_a_redis_that_evicts_sent_records_is_warned_of(tmp_path: Path) -> None:
    settings = ("--requirepass", "hunter2", "--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru")
    server = RedisServer(tmp_path / "redis", settings=settings)
    server.start()
    try:
        ran = await otp_stream(tmp_path, "tables", REDIS_URL=url(server))
        report = json.loads(
            (await otp_stream(tmp_path, "tables", "--json", REDIS_URL=url(server))).out.partition("\n\n")[0]
        )
    finally:
        server.remove()
    assert ran.code == 0
    assert "maxmemory-policy is allkeys-lru" in ran.out
    assert "of 52.4" in ran.out
    assert "Set maxmemory-policy noeviction" in report["warnings"][0]


async def test_several_workers_without_redis_are_warned_of_once_and_with_it_are_not(
    stage: Stage, redis: RedisServer
) -> None:
    first = await stage.run(HEARTBEAT_INTERVAL_MS="200")
    second = await stage.run(HEARTBEAT_INTERVAL_MS="200")
    for worker in (first, second):
        await worker.wait_log("workers do not share their state")
        warned = [line for line in worker.lines if line["event"] == "workers do not share their state"]
        assert warned[0]["level"] == "warning"
        assert warned[0]["why"].startswith(f"2 consumers on {stage.rabbit.queue} and no REDIS_URL")
        assert "Set REDIS_URL" in warned[0]["why"]
        assert (await worker.health())["status"] == "healthy"
        assert "Workers do not share their state." in (await worker.get("/"))[1]
    looks = len(first.lines)

    async def looked_again() -> bool:
        return len(first.lines) >= looks + 5

    await until(looked_again, "more looks")
    assert first.log.count("workers do not share their state") == 1
    await first.stop()
    await second.stop()
    sharing = [await stage.run(HEARTBEAT_INTERVAL_MS="200", REDIS_URL=url(redis)) for _ in range(2)]

    async def known() -> bool:
        return (await sharing[0].health())["tables"]["workers"] == 2

    await until(known, "both at Redis")
    looks = len(sharing[0].lines)
    await until(lambda: _longer(sharing[0], looks + 5), "more looks")
    for worker in sharing:
        assert "do not share" not in worker.log
        assert "do not share" not in (await worker.get("/"))[1]


async def _has_sent(stage: Stage, redis: RedisServer, count: int) -> bool:
    return (await report(stage, redis))["entries"]["sent"] == count


async def _longer(worker: Worker, lines: int) -> bool:
    return len(worker.lines) >= lines
