"""The sent table in memory."""

import asyncio

from otp_stream.tables import SentInMemory


async def test_a_job_that_was_sent_cannot_be_claimed_again() -> None:
    sent = SentInMemory()
    assert await sent.claim("a")
    await sent.mark("a")
    assert not await sent.claim("a")


async def test_a_job_that_was_released_unsent_can_be_claimed_again() -> None:
    sent = SentInMemory()
    assert await sent.claim("a")
    await sent.release("a")
    assert await sent.claim("a")


async def test_a_second_attempt_waits_for_the_first_and_learns_that_it_was_sent() -> None:
    sent = SentInMemory()
    assert await sent.claim("a")
    second = asyncio.create_task(sent.claim("a"))
    await asyncio.sleep(0)
    assert not second.done()
    await sent.mark("a")
    assert await second is False


async def test_only_one_of_many_waiting_gets_the_claim() -> None:
    sent = SentInMemory()
    assert await sent.claim("a")
    waiting = [asyncio.create_task(sent.claim("a")) for _ in range(5)]
    await asyncio.sleep(0)
    await sent.release("a")
    done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0)
    assert [task.result() for task in done] == [True]
    assert sum(task.done() for task in waiting) == 1
    await sent.mark("a")
    assert sorted(await asyncio.gather(*waiting)) == [False] * 4 + [True]


async def test_a_cancelled_wait_leaves_the_claim_to_its_holder() -> None:
    sent = SentInMemory()
    assert await sent.claim("a")
    waiting = asyncio.create_task(sent.claim("a"))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await sent.mark("a")
    assert not await sent.claim("a")


async def test_marks_are_forgotten_after_their_time() -> None:
    now = 0.0
    sent = SentInMemory(ttl_s=10, clock=lambda: now)
    assert await sent.claim("a")
    await sent.mark("a")
    now = 9.9
    assert not await sent.claim("a")
    now = 10.0
    assert await sent.claim("a")


async def test_the_oldest_marks_give_way_beyond_the_limit() -> None:
    sent = SentInMemory(limit=2)
    for job_id in "abc":
        assert await sent.claim(job_id)
        await sent.mark(job_id)
    assert not await sent.claim("b")
    assert not await sent.claim("c")
    assert await sent.claim("a")
