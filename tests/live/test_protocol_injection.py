"""Values of producers that look like commands of Redis, or do not fit into a field of AMQP."""

from conftest import Stage
from redis_server import RedisServer
from worker import job

INJECTED = (
    "x\r\nFLUSHALL\r\n", "*1\r\n$8\r\nFLUSHALL\r\n", "$1\r\nx\r\n*3\r\n$3\r\nSET\r\n$6\r\nvictim\r\n$1\r\ny\r\n",
    "\r", "\n", "\0", "x\r\n\0\r\n", "{other}:x", "' .. redis.call('FLUSHALL') .. '", "*", "?", "a b c",
    "ä" * 200, "\U0001f600" * 100, "x" * 255, "x" * 256, "x" * 5_000,
)  # fmt: skip


async def test_no_value_of_a_job_is_a_command_of_redis_or_breaks_a_field_of_amqp(
    stage: Stage, redis: RedisServer
) -> None:
    assert redis.command("SET", "victim", "unchanged") == "+OK"
    stage.relay.always("rcpt", "550 5.1.1 no such user", to="dead@example.com")
    limits = {"RECIPIENT_LIMIT": "100/1m", "DOMAIN_LIMIT": "1000/1m", "TENANT_LIMIT": "1000/1m"}
    worker = await stage.run(REDIS_URL=redis.url, SUPERSEDE="latest", PREFETCH_COUNT="5", **limits)
    for number, value in enumerate(INJECTED):
        metadata = {"tenant": value, "purpose": value, "userName": value, "locale": value, "template": value}
        for to in (f"user{number}@example.com", "dead@example.com"):
            await stage.rabbit.publish(job(to, jobId=value, metadata=metadata))
    await stage.relay.wait_accepted(len(INJECTED), 40)

    dead = await stage.rabbit.dead(len(INJECTED), 40)
    assert {it.headers["x-otp-reason"] for it in dead} == {"rejected"}
    assert sorted(it.recipient for it in stage.relay.accepted) == sorted(
        f"user{number}@example.com" for number in range(len(INJECTED))
    )
    assert redis.command("GET", "victim") == "$9\r\nunchanged"
    own = f"{{{stage.rabbit.prefix}:{stage.rabbit.queue}}}:"
    _, *lines = redis.command("KEYS", "*").split("\r\n")
    keys = [it for it in lines if not it.startswith("$")]
    assert len(keys) > len(INJECTED)
    assert {it for it in keys if not it.startswith(own)} == {"victim"}
    status, _ = await worker.get("/readyz")
    assert status == 200
