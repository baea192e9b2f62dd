"""Jobs published at a rate: what counts as published when the command is interrupted."""

import asyncio

from otp_stream.cli.publishing import _publish_at_rate


async def test_a_job_that_is_confirmed_right_after_an_interrupt_is_counted() -> None:
    sent, published = asyncio.Event(), list[int]()

    async def publish(number: int) -> None:
        if number:
            sent.set()
            await asyncio.sleep(0.05)  # the confirm is on its way
        published.append(number)

    publishing = asyncio.create_task(_publish_at_rate(iter(range(2)), publish, None))
    await sent.wait()
    publishing.cancel()
    await asyncio.wait([publishing])
    assert publishing.cancelled()
    assert published == [0, 1]
