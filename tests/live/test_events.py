"""Events as a login page receives them."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from conftest import Stage
from rabbitmq import until
from smtp_relay import SILENCE, ScriptedRelay
from worker import job

EXAMPLE = Path(__file__).parents[2] / "examples" / "login_page.py"


@asynccontextmanager
async def following(stage: Stage, job_id: str) -> AsyncIterator[asyncio.StreamReader]:
    """Run the example until its end; yield its output."""
    env = os.environ | {"RABBITMQ_URL": stage.url, "EVENTS_EXCHANGE": f"{stage.rabbit.prefix}.events"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, EXAMPLE, job_id, stdout=asyncio.subprocess.PIPE, env=env
    )
    assert process.stdout is not None
    try:
        assert await line(process.stdout) == "listening"
        yield process.stdout
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()


async def line(output: asyncio.StreamReader) -> str:
    return (await asyncio.wait_for(output.readline(), 20)).decode().strip()


@pytest.mark.parametrize(
    ("reply", "shown"),
    [
        ("550 5.1.1 no such user", "Mail to this address is refused"),
        ("552 5.2.2 mailbox full", "Mail to this address is refused"),
        ("550 5.7.1 your mail is not wanted here", "It is not your fault"),
    ],
)
async def test_a_login_page_can_show_whose_fault_it_is(stage: Stage, reply: str, shown: str) -> None:
    stage.relay.always("rcpt", reply)
    await stage.run()
    async with following(stage, "j-1") as output:
        await stage.rabbit.publish(job(jobId="other"), job(jobId="j-1"))
        assert shown in await line(output)


async def test_a_retry_is_reported_and_then_the_outcome(stage: Stage) -> None:
    stage.relay.then("rcpt", "451 4.3.0 later")
    await stage.run(BASE_DELAY_MS="100")
    async with following(stage, "j-1") as output:
        await stage.rabbit.publish(job(jobId="j-1"))
        assert "takes a little longer" in await line(output)
        assert "on its way" in await line(output)


async def test_an_event_names_the_relay_and_the_slow_one_that_the_mail_left(stage: Stage) -> None:
    async with ScriptedRelay() as fallback:
        await stage.run(SMTP_FALLBACK_URLS=f"smtp://127.0.0.1:{fallback.port}?tls=none")
        channel = stage.rabbit.channel
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(f"{stage.rabbit.prefix}.events", "#")
        stage.relay.then("rcpt", SILENCE)
        await stage.rabbit.publish(job())
        await fallback.wait_accepted(1)

        async def next_event() -> dict[str, object]:
            message = await until(lambda: queue.get(fail=False), "event")
            await message.ack()
            return json.loads(message.body)

        first, second = (f"127.0.0.1:{relay.port}" for relay in (stage.relay, fallback))
        event = await next_event()
        assert (event["relay"], event["switchedFrom"]) == (second, first)

        async def sent_by_first() -> dict[str, object] | None:
            await stage.rabbit.publish(job())
            event = await next_event()
            return event if event["relay"] == first else None

        # a busy machine makes it slow again
        assert "switchedFrom" not in await until(sent_by_first, "a mail to the first relay")


async def test_events_can_be_switched_off(stage: Stage) -> None:
    worker = await stage.run(EVENTS="false")
    channel = stage.rabbit.channel
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind(f"{stage.rabbit.prefix}.events", "#")
    await stage.rabbit.publish(job())
    await stage.relay.wait_accepted(1)

    async def ended() -> bool:
        return (await worker.health())["stats"]["processedJobs"] == 1

    await until(ended, "the end of the job")
    await worker.stop()  # it publishes all its events before it exits
    assert await queue.get(fail=False) is None
