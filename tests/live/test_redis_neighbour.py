"""Another program with access to the Redis of the workers: what its values cannot do."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from cli import here, names
from conftest import Stage
from rabbitmq import until
from redis_server import RedisServer
from worker import job

from otp_stream.tables import redis_pipeline, reply_reader
from otp_stream.tables.redis_pipeline import RedisPipeline, RedisUnavailableError

JOBS = 60
PREFIX = "{neighbour}:"
_SPOIL = """
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind = redis.call('TYPE', key).ok
  if ARGV[1] == 'types' then
    redis.call('DEL', key)
    redis.call(kind == 'list' and 'SADD' or 'LPUSH', key, 'x')
  elseif kind == 'hash' then
    for _, name in ipairs(redis.call('HKEYS', key)) do redis.call('HSET', key, name, ARGV[2]) end
    redis.call('HSET', key, ARGV[2], ARGV[2])
  elseif kind == 'zset' then
    redis.call('ZADD', key, '1e300', ARGV[2])
  else
    redis.call('SET', key, ARGV[2])
  end
end
"""
"""Gives every key a value of another type, or every value another text."""


@pytest.mark.parametrize(
    "values",
    [("types", ""), ("texts", ""), ("texts", "a b"), ("texts", "c:x:1:2:3\r\n"), ("texts", "9" * 400)],
    ids=["types", "empty", "blank", "line break", "number"],
)
async def test_values_of_another_program_in_redis_stop_no_code_and_send_none_twice(
    stage: Stage, redis: RedisServer, values: tuple[str, str]
) -> None:
    worker = await stage.run(
        REDIS_URL=redis.url, SUPERSEDE="latest", RECIPIENT_LIMIT="5/10m", SMTP_RATE_PER_SECOND="500"
    )
    for number in range(JOBS):
        await stage.rabbit.publish(job(f"user{number}@example.com", jobId=str(number)))
        await asyncio.to_thread(redis.command, "EVAL", _SPOIL, "0", *values)

    async def ended() -> bool:
        return sum((await worker.health())["outcomes"].values()) == JOBS

    await until(ended, "the end of all jobs")
    assert (await worker.health())["outcomes"] == {"sent": JOBS}
    assert len(stage.relay.accepted) == JOBS
    assert "Fatal error" not in worker.log


@pytest.fixture
async def pipeline(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RedisPipeline]:
    monkeypatch.setattr(redis_pipeline, "REPLY_TIMEOUT_S", 20)

    async def connected() -> None:
        pipeline.set_ready()

    pipeline = RedisPipeline(
        lambda: redis.url, prefix=PREFIX, worker="w", on_connected=connected, on_lost=lambda *_: None
    )
    running = asyncio.create_task(pipeline.run())

    async def ready() -> bool:
        return pipeline.ready

    await until(ready, "a connection")
    yield pipeline
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_no_reply_is_taken_for_that_to_another_operation(redis: RedisServer, pipeline: RedisPipeline) -> None:
    await asyncio.to_thread(redis.command, "SET", f"{PREFIX}made:content", "id ok:1 ok:1")
    pipeline.send("count", "first", 1)  # the others wait for its reply, and share a call
    replies = [pipeline.request("recall", "content", "none"), pipeline.request("flagged", "a session that is open")]
    for reply in replies:
        with pytest.raises(RedisUnavailableError, match="do not match"):
            await reply


async def test_a_huge_value_in_redis_takes_no_memory_of_a_worker(
    redis: RedisServer, pipeline: RedisPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reply_reader, "_REPLY_LIMIT", 1_000)  # Redis takes too long for as much as the real limit
    await asyncio.to_thread(redis.command, "SET", f"{PREFIX}made:content", "x" * 1_000)
    with pytest.raises(RedisUnavailableError, match="a reply of '1003' bytes"):
        await pipeline.request("recall", "content", "none")


@pytest.mark.parametrize("value", [r"\255", r"\r\nx", "x" * 100_000], ids=["no text", "line break", "long"])
async def test_an_id_that_no_worker_generated_is_not_used(stage: Stage, redis: RedisServer, value: str) -> None:
    worker = await stage.run(REDIS_URL=redis.url)
    await stage.rabbit.publish_raw(job(), 0, b"")
    await stage.relay.wait_accepted(1)
    script = (
        "local keys = redis.call('KEYS', '*made:*') "
        f"for _, key in ipairs(keys) do redis.call('SET', key, '{value}') end return #keys"
    )

    async def stored() -> bool:
        return await asyncio.to_thread(redis.command, "EVAL", script, "0") == ":1"

    await until(stored, "the id of the first job")
    # a retry that no worker has signed may be a copy, so its id is looked up
    await stage.rabbit.publish_raw(job(), 0, b"", f"{stage.rabbit.prefix}.retry.due")

    async def ended() -> dict[str, int] | None:
        found = (await worker.health())["outcomes"]
        return found if sum(found.values()) == 2 else None

    assert set(await until(ended, "the end of both jobs")) <= {"sent", "duplicate"}
    assert {len(line["job_id"]) for line in worker.lines if "job_id" in line} == {32}


@pytest.mark.parametrize("values", ["types", "texts"])
async def test_values_of_another_program_in_redis_break_no_command(
    stage: Stage, redis: RedisServer, values: str
) -> None:
    limits = {"SUPERSEDE": "latest", "RECIPIENT_LIMIT": "1/10m", "REDIS_URL": redis.url, "SMTP_RATE_PER_SECOND": "500"}
    worker = await stage.run(**limits)

    async def shares() -> bool:
        return (await worker.health())["tables"]["connected"]

    await until(shares, "a connection to Redis")
    for number in range(3):
        await stage.rabbit.publish(job(jobId=str(number)))
    await stage.rabbit.wait_depth(2, f"{stage.rabbit.prefix}.dead")
    await worker.stop()
    spoil = _SPOIL.replace("ARGV[2]", r"'recipient:\255\155x'")
    await asyncio.to_thread(redis.command, "EVAL", spoil, "0", values)
    env = {**names(stage), **limits}
    ran = await asyncio.to_thread(here, stage.folder, "tables", "--json", **env)
    assert ran.code == 0, ran.out
    assert json.loads(ran.out)["answers"] == {}
    for words in (
        ["tables"],
        ["forget", "user@example.com", "--yes"],
        ["tables", "forget", "user@example.com", "--yes"],
    ):
        ran = await asyncio.to_thread(here, stage.folder, *words, **env)
        assert ran.code == 0, ran.out
    assert "newest" not in await asyncio.to_thread(redis.command, "KEYS", "*newest:*")


@pytest.mark.parametrize("value", ["9" * 400, "nan", "-9e300", "x"])
async def test_a_schedule_that_no_worker_wrote_stops_no_mail(stage: Stage, redis: RedisServer, value: str) -> None:
    worker = await stage.run(REDIS_URL=redis.url, SMTP_RATE_PER_SECOND="100")
    await stage.rabbit.publish(job())
    await stage.relay.wait_accepted(1)
    script = (
        "for _, key in ipairs(redis.call('KEYS', '*rate:*')) do "
        f"redis.call('HSET', key, 'next', '{value}', 'base', '{value}', 'since', '{value}') end"
    )
    for number in range(5):
        await asyncio.to_thread(redis.command, "EVAL", script, "0")
        await stage.rabbit.publish(job(f"user{number}@example.com"))
    await stage.relay.wait_accepted(6)

    async def sent() -> bool:
        return (await worker.health())["outcomes"] == {"sent": 6}

    await until(sent, "six mails")


@pytest.mark.parametrize(
    "piece",
    [b"$500000000\r\n" + b"x" * 65_536, b"+" + b"x" * 65_536, b"*1000000\r\n" + b":1\r\n" * 20_000, b"*1\r\n" * 20_000],
    ids=["bulk", "line", "array", "nested"],
)
@pytest.mark.parametrize("password", ["", ":secret@"], ids=["no-login", "login"])
async def test_a_reply_without_end_to_the_first_commands_is_not_read(
    piece: bytes, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_pipeline, "CONNECT_TIMEOUT_S", 40)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65_536)
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(piece)
                await writer.drain()
        writer.close()

    errors: asyncio.Queue[str] = asyncio.Queue()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"redis://{password}127.0.0.1:{server.sockets[0].getsockname()[1]}"
        pipeline = RedisPipeline(
            lambda: url,
            prefix=PREFIX,
            worker="w",
            on_connected=lambda: asyncio.sleep(0),
            on_lost=lambda error, _: errors.put_nowait(error),
        )
        running = asyncio.create_task(pipeline.run())
        try:
            error = await asyncio.wait_for(errors.get(), 20)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    assert "no answer within" not in error


NONSENSE = [
    b"",
    b"ok:",
    b"ok:x",
    b"x",
    b"\xff",
    b"99:1",
    b"-7:1",
    b"1:" + b"9" * 30,
    b"ok:1:1:0",
    b"ok:1:1:nan",
    b"ok:{",
]
"""Words that the script replies to no operation."""


@asynccontextmanager
async def in_between(redis: RedisServer, words: list[bytes]) -> AsyncIterator[str]:
    """Yield the URL of a connection whose replies to the script are replaced by these words, while there are any."""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        while data := await reader.read(65_536):
            head, _, reply = data.partition(b"\r\n")
            of_script = head != b"$40" and b"redis_version" not in reply and b"used_memory" not in reply
            if replies and head[:1] == b"$" and of_script and words:
                spoiled = b" ".join([words.pop()] * (reply.count(b" ") + 1))
                data = b"$%d\r\n%b\r\n" % (len(spoiled), spoiled)
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, to_upstream = await asyncio.open_connection("127.0.0.1", redis.port)
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(forward(reader, to_upstream, replies=False), forward(upstream, writer, replies=True))
        to_upstream.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"


async def test_replies_that_the_script_does_not_give_crash_no_job(stage: Stage, redis: RedisServer) -> None:
    words: list[bytes] = []
    async with in_between(redis, words) as url:
        worker = await stage.run(REDIS_URL=url, RECIPIENT_LIMIT="5/10m", SMTP_RATE_PER_SECOND="500")
        words += NONSENSE
        sent = 0
        async with asyncio.timeout(60):
            while words:
                await stage.rabbit.publish(job(f"user{sent}@example.com", jobId=str(sent)))
                sent += 1
                await stage.relay.wait_accepted(sent)

        async def ended() -> bool:
            return sum((await worker.health())["outcomes"].values()) == sent

        await until(ended, "the end of all jobs")
    assert (await worker.health())["outcomes"] == {"sent": sent}
    assert "error" not in {line["level"] for line in worker.lines}


_HOSTILE = r"'\27[2J forged ' .. string.rep('B', 600000)"
_FORGE = f"""
for _, key in ipairs(redis.call('KEYS', '*')) do
  if key:sub(-11) == 'deployments' then
    for i = 1, 6 do  -- less than the limit of a reply, 4 MiB
      redis.call('ZADD', key, '9e15', '{{evil' .. i .. '}}:')
      redis.call('HSET', key:sub(1, -12) .. 'brokers', '{{evil' .. i .. '}}:', {_HOSTILE})
    end
    return 1
  end
end
return 0
"""
_FORGE_TABLES = f"""
local prefix = redis.call('KEYS', '*:workers')[1]:sub(1, -8)
for i = 1, 300 do
  local rate = prefix .. 'rate:' .. i .. '\\27' .. string.rep('r', 900)
  redis.call('HSET', rate, 'next', '1e300', 'since', '-1e300', 'base', 1)
  redis.call('SET', prefix .. 'limit:' .. i .. string.rep('l', 900) .. ':' .. string.rep('9', 5000) .. ':x', 1)
  redis.call('HSET', prefix .. 'stats', i .. '\\27' .. string.rep('s', 900), i)
end
redis.call('HSET', prefix .. 'stats', 'admitted', '1e300', 'duplicate', '-5', 'throttled_total', '5')
redis.call('ZADD', prefix .. 'throttled', '1e300', 'recipient:huge', '9e14', 'recipient:' .. {_HOSTILE})
return 1
"""


async def test_forged_texts_of_other_deployments_are_logged_once_and_only_their_beginnings(
    stage: Stage, redis: RedisServer
) -> None:
    worker = await stage.run(REDIS_URL=redis.url)

    async def forged() -> bool:
        return await asyncio.to_thread(redis.command, "EVAL", _FORGE, "0") == ":1"

    await until(forged, "the name of the deployment in Redis")
    for times in range(1, 4):
        await asyncio.to_thread(redis.command, "CLIENT", "KILL", "TYPE", "normal")

        async def reconnected(times: int = times) -> bool:
            return worker.log.count("Redis answers again") == times

        await until(reconnected, "a reconnect")
    (warning,) = [line for line in worker.lines if line["event"].startswith("Another deployment")]
    assert len(warning["others"]) == 5
    assert all(it.isprintable() and len(it) <= 200 for it in warning["others"])


async def test_what_another_program_wrote_fills_no_screen(stage: Stage, redis: RedisServer) -> None:
    limits = {"REDIS_URL": redis.url, "SMTP_RATE_PER_SECOND": "500"}
    worker = await stage.run(**limits)

    async def forged() -> bool:
        if not (await worker.health())["tables"]["connected"]:
            return False
        return await asyncio.to_thread(redis.command, "EVAL", _FORGE_TABLES, "0") == ":1"

    await until(forged, "a connection to Redis")
    for words in (["tables"], ["tables", "--json"]):
        ran = await asyncio.to_thread(here, stage.folder, *words, **names(stage), **limits)
        assert ran.code == 0, ran.out
        assert "\x1b" not in ran.out
        assert max(map(len, ran.out.splitlines())) < 500
        assert len(ran.out) < 150_000
        assert "00000000" not in ran.out.replace("900000000000000", "")
