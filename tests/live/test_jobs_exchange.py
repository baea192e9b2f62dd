"""The exchange for jobs: producers that use it need no permission for other queues."""

import asyncio

import pytest
from cli import here, names
from conftest import Stage
from rabbitmq import until
from worker import CODE, job

from otp_stream.client import ClientError, OtpClient, OtpJob


def client(stage: Stage, url: str | None = None) -> OtpClient:
    queue, prefix = stage.rabbit.queue, stage.rabbit.prefix
    return OtpClient(url or stage.url, queue=queue, prefix=prefix, exchange=f"{prefix}.jobs", timeout_s=5)


@pytest.mark.parametrize("arguments", [{}, {"x-queue-type": "quorum"}], ids=["classic", "quorum"])
async def test_jobs_reach_both_queues_also_if_a_producer_has_declared_them(
    stage: Stage, arguments: dict[str, str]
) -> None:
    for name in (stage.rabbit.queue, f"{stage.rabbit.queue}.high"):
        await stage.rabbit.declare(name, **arguments)
    await stage.run()
    async with client(stage) as one:
        await one.publish(OtpJob(email="one@example.com", otp=CODE))
        await one.publish(OtpJob(email="two@example.com", otp=CODE), high_lane=True)
    await stage.rabbit.publish(job("three@example.com"))  # through the default exchange, as before

    async def sent() -> bool:
        return {it.recipient.partition("@")[0] for it in stage.relay.accepted} == {"one", "two", "three"}

    await until(sent, "three mails")


async def test_a_queue_that_was_deleted_and_declared_again_is_bound_again(stage: Stage) -> None:
    await stage.run()
    for _ in range(2):
        await stage.rabbit.channel.queue_delete(stage.rabbit.queue)
        await stage.rabbit.declare()
    async with client(stage) as one:

        async def published() -> bool:
            try:
                await one.publish(OtpJob(email="user@example.com", otp=CODE))
            except ClientError as error:
                assert "it cannot be routed" in str(error)  # noqa: PT017 - until the queue is bound
                return False
            return True

        await until(published, "binding")


async def test_a_binding_that_was_removed_is_restored(stage: Stage) -> None:
    await stage.run(HEARTBEAT_INTERVAL_MS="1000")
    queue = await stage.rabbit.channel.get_queue(stage.rabbit.queue, ensure=False)
    await queue.unbind(f"{stage.rabbit.prefix}.jobs", stage.rabbit.queue)
    async with client(stage) as one:

        async def published() -> bool:
            try:
                await one.publish(OtpJob(email="user@example.com", otp=CODE))
            except ClientError:
                return False
            return True

        await until(published, "binding")
        await stage.rabbit.channel.exchange_delete(f"{stage.rabbit.prefix}.jobs")
        await until(published, "exchange")


async def test_a_job_that_cannot_be_routed_is_an_error_that_names_the_fix(stage: Stage) -> None:
    async with client(stage) as one:
        with pytest.raises(ClientError, match=rf"no exchange '{stage.rabbit.prefix}\.jobs'"):
            await one.publish(OtpJob(email="user@example.com", otp=CODE))
    await stage.rabbit.channel.declare_exchange(f"{stage.rabbit.prefix}.jobs", "direct", durable=True)
    async with client(stage) as one:
        with pytest.raises(ClientError, match=r"by the exchange .* run `otp-stream topology apply`"):
            await one.publish(OtpJob(email="user@example.com", otp=CODE))
        assert await stage.rabbit.depth() is None  # nothing is declared
        applied = await asyncio.to_thread(here, stage.folder, "topology", "apply", **names(stage))
        assert applied.code == 0, applied.out
        await one.publish(OtpJob(email="user@example.com", otp=CODE))
    await stage.rabbit.wait_depth(1)
