"""The producer API against RabbitMQ and a worker."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest
from amqp_proxy import amqp_proxy
from conftest import Stage
from rabbitmq import until
from worker import CODE

from otp_stream.client import ClientError, NoWorkerError, OtpClient, OtpJob


def client(stage: Stage, url: str | None = None, timeout_s: float = 20) -> OtpClient:
    return OtpClient(url or stage.url, queue=stage.rabbit.queue, prefix=stage.rabbit.prefix, timeout_s=timeout_s)


def request(job_id: str | None = None) -> OtpJob:
    return OtpJob(email="user@example.com", otp=CODE, job_id=job_id)


async def test_a_job_is_published_and_followed_to_its_final_outcome(stage: Stage) -> None:
    stage.relay.then("rcpt", "451 4.3.0 later")
    await stage.run(BASE_DELAY_MS="100")
    async with client(stage) as one, one.follow("j-1") as events, asyncio.timeout(20):
        await one.publish(request("other"), high_lane=True)
        await one.publish(request("j-1"))
        found = [it async for it in events]
    assert [it.job_id for it in found] == ["j-1"] * len(found)
    assert found[-1].outcome == "sent"
    assert {it.recipient for it in stage.relay.accepted} == {"user@example.com"}


async def test_a_missing_queue_is_declared_and_missing_events_are_named(stage: Stage) -> None:
    async with client(stage) as one:
        await one.publish(request())
        with pytest.raises(NoWorkerError, match=rf"exchange {stage.rabbit.prefix}\.events.* start a worker"):
            async with one.follow("j-1"):
                pass
        await one.publish(request())  # the same connection still publishes
    await stage.rabbit.declare()
    await stage.rabbit.wait_depth(2)


async def test_a_refused_job_is_an_error(stage: Stage) -> None:
    arguments = {"x-max-length": 0, "x-overflow": "reject-publish"}
    queue = await stage.rabbit.channel.declare_queue(stage.rabbit.queue, durable=True, arguments=arguments)
    async with client(stage) as one:
        with pytest.raises(ClientError, match=f"the queue {stage.rabbit.queue} may have reached its limit"):
            await one.publish(request())
    await queue.delete()


async def test_it_connects_again_after_the_connection_was_lost(stage: Stage) -> None:
    await stage.run()
    async with amqp_proxy(stage.url) as (proxy, url), client(stage, url) as one:
        async with one.follow("j-1") as events:
            proxy.refuse = True
            proxy.cut()
            with pytest.raises(ClientError, match="the outcome is unknown"):
                await asyncio.wait_for(anext(events), 20)
        with pytest.raises(ClientError, match="does not answer"):
            await one.publish(request("j-2"))
        proxy.release()
        async with one.follow("j-2") as events, asyncio.timeout(20):
            await one.publish(request("j-2"))
            assert [it.outcome async for it in events] == ["sent"]


async def test_it_connects_again_after_a_reply_has_not_come_in_time(stage: Stage) -> None:
    await stage.rabbit.declare()
    async with amqp_proxy(stage.url) as (proxy, url), client(stage, url, timeout_s=1) as one:

        async def publishes() -> bool:  # a busy machine may take longer than the limit
            with contextlib.suppress(ClientError):
                await one.publish(request())
                return True
            return False

        await until(publishes, "a confirm")
        proxy.swallow = True
        with pytest.raises(ClientError, match="has not replied within 1 s"):
            await one.publish(request())
        proxy.release()
        await until(publishes, "a confirm over a new connection")


async def test_events_that_were_unbound_are_received_by_the_next_follower(stage: Stage) -> None:
    await stage.run()
    async with client(stage) as one:
        async with one.follow("j-1"):
            exchange = await stage.rabbit.channel.get_exchange(f"{stage.rabbit.prefix}.events")
            await exchange.delete()
            with pytest.raises(NoWorkerError):
                async with one.follow("j-2"):
                    pass
        await stage.rabbit.channel.declare_exchange(exchange.name, "topic", durable=True)
        async with one.follow("j-2") as events, asyncio.timeout(20):
            await one.publish(request("j-2"))
            assert [it.outcome async for it in events] == ["sent"]


_WRONG_PASSWORD = """
import asyncio, sys
from otp_stream.client import ClientError, OtpClient

async def main():
    async with OtpClient(sys.argv[1]) as client:
        try:
            await client.connect()
        except ClientError as error:
            print(error)

asyncio.run(main())
"""


async def test_a_wrong_password_is_named_and_not_shown(stage: Stage, tmp_path: Path) -> None:
    url = stage.url.replace("guest:guest", "guest:Zq7x")
    process = await asyncio.create_subprocess_exec(  # apart from the tests, in which the worker has patched aiormq
        sys.executable, "-c", _WRONG_PASSWORD, url, cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert b"refuses the login of guest" in out
    assert b"Zq7x" not in out


async def test_send_waits_for_the_outcome(stage: Stage) -> None:
    stage.relay.then("rcpt", "451 4.3.0 later")
    stage.relay.always("rcpt", "550 5.1.1 no such user", to="typo@example.com")
    await stage.run(BASE_DELAY_MS="100")
    async with client(stage) as one:
        events = await asyncio.gather(*(one.send(request(), timeout_s=20) for _ in range(3)))
        assert {it.outcome for it in events} == {"sent"}
        refused = await one.send(OtpJob(email="typo@example.com", otp=CODE), high_lane=True, timeout_s=20)
        assert (refused.outcome, refused.reply_class) == ("rejected", "address")


_BLOCKING = """
import os, sys, threading
from otp_stream.client import OtpJob, SyncOtpClient

url, queue, prefix = sys.argv[1:]
client = SyncOtpClient(url, queue=queue, prefix=prefix)

def send(name):
    assert client.send(OtpJob(email=f"{name}@example.com", otp="739154"), timeout_s=20).outcome == "sent"

def send_from_threads(name):
    threads = [threading.Thread(target=send, args=[f"{name}{number}"]) for number in range(4)]
    [it.start() for it in threads]
    [it.join() for it in threads]

send_from_threads("parent")
child = os.fork()
send_from_threads("child" if child == 0 else "after")
if child:
    assert os.waitpid(child, 0)[1] == 0
    send("last")
"""


async def test_the_blocking_client_works_in_threads_and_after_a_fork_and_closes_at_the_end(
    stage: Stage, tmp_path: Path
) -> None:
    await stage.run()
    async with amqp_proxy(stage.url) as (proxy, url):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "always", "-c", _BLOCKING, url, stage.rabbit.queue, stage.rabbit.prefix, cwd=tmp_path,
            stderr=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            _, errors = await asyncio.wait_for(process.communicate(), 60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        assert (process.returncode, errors) == (0, b"")

        async def closed() -> bool:
            return proxy.closed == 2

        await until(closed, "the end of both connections")
    names = [f"{name}{number}" for name in ("parent", "child", "after") for number in range(4)]
    assert sorted(it.recipient for it in stage.relay.accepted) == sorted(f"{it}@example.com" for it in [*names, "last"])
