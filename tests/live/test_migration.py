"""The previous worker, in Node.js, and this one share the jobs queue while producers publish: docs/migrating.md."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from conftest import Stage, set_stage
from ledger import Ledger
from old_worker import OldWorker, end_of_old, sent_by_old
from rabbitmq import Node, until
from smtp_relay import Act, ScriptedRelay
from worker import job

_RATE = 400
"""Jobs per second at most."""
_BACKLOG = 100
"""Jobs that are published and not sent at most, so that each worker sends the jobs of its phase."""
_BATCH = 20
_WAIT_S = 60
_BACKOFF = {"MAX_RETRIES": "3", "BASE_DELAY_MS": "100"}
_PREFETCH = 10
"""Of the previous worker, which sends about 25 mails per second and unit of prefetch."""


@pytest.fixture
async def old(stage: Stage) -> AsyncIterator[OldWorker]:
    old = previous_worker(stage, **_BACKOFF)
    yield old
    await old.kill()


def previous_worker(stage: Stage, **changes: str) -> OldWorker:
    env = {"PREFETCH_COUNT": str(_PREFETCH), **changes}
    return OldWorker(stage.folder / "old", stage.url, stage.rabbit.queue, stage.relay, env)


class Producers:
    """Publish jobs without a pause, at most as fast as they are sent. Every tenth mail is refused once."""

    def __init__(self, ledger: Ledger) -> None:
        self.refused = True
        self._ledger = ledger
        self._stopped = False
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        ledger = self._ledger
        while not self._stopped:
            first = len(ledger.published)
            for number in range(first, first + _BATCH, 10) if self.refused else ():
                ledger.relay.then("rcpt", "451 4.3.0 later", to=f"job{number}@example.com")
            await ledger.publish(_BATCH)
            await asyncio.sleep(_BATCH / _RATE)
            # not `ledger.lost`, which reads all mails each time
            await ledger.relay.wait(
                lambda: len(ledger.published) - len(ledger.relay.accepted) < _BACKLOG, "progress", _WAIT_S
            )

    async def publish_more(self, count: int) -> None:
        """Wait until so many more jobs are published."""
        total = len(self._ledger.published) + count

        async def reached() -> bool:
            return len(self._ledger.published) >= total

        await until(reached, f"{total} jobs", _WAIT_S)

    async def stop(self) -> None:
        self._stopped = True
        await self._task


async def stop_without_retries(old: OldWorker, producers: Producers, ledger: Ledger) -> None:
    """Stop the previous worker when no retry waits in its process, as docs/migrating.md says."""
    producers.refused = False
    await producers.publish_more(2 * _BATCH)
    earlier = set(ledger.published)
    await ledger.relay.wait(lambda: not earlier & ledger.lost, "mails of all jobs that are refused once", _WAIT_S)
    assert not old.retries
    await old.stop()
    assert not old.retries
    await end_of_old(ledger.relay)
    producers.refused = True


async def finish_retries(stage: Stage) -> None:
    """Let a worker with another jobs queue send the retries, and remove its queues."""
    spare = f"{stage.rabbit.queue}.spare"
    worker = await stage.run(**_BACKOFF, RABBITMQ_QUEUE_NAME=spare)

    async def finished() -> bool:
        depths = await stage.rabbit.depths()
        waits = any(depth for name, depth in depths.items() if ".retry." in name)
        return not waits and not await worker.may_have_unacked()

    await until(finished, "retries sent", _WAIT_S)
    await worker.stop()
    for name in (spare, f"{spare}.high"):
        await stage.rabbit.channel.queue_delete(name)


def each_copy_is_of_the_previous_worker(relay: ScriptedRelay) -> bool:
    """Return whether each mail that was sent more than once was sent once by the previous worker, and once more."""
    by_old = Counter(mail.recipient for mail in sent_by_old(relay))
    in_all = Counter(mail.recipient for mail in relay.accepted)
    return all((count, by_old[it]) == (2, 1) for it, count in in_all.items() if count > 1)


async def test_two_thousand_jobs_survive_the_migration_and_the_way_back(stage: Stage, old: OldWorker) -> None:
    ledger = Ledger(stage)
    relay = stage.relay

    await old.start()
    producers = Producers(ledger)
    await producers.publish_more(500)
    assert len(relay.accepted) == len(sent_by_old(relay))

    ours = await stage.run(**_BACKOFF)
    await producers.publish_more(300)
    await stop_without_retries(old, producers, ledger)
    before = len(sent_by_old(relay))
    await producers.publish_more(500)
    assert len(sent_by_old(relay)) == before

    await old.start()
    await producers.publish_more(200)
    await ours.stop()
    accepted, by_old = len(relay.accepted), len(sent_by_old(relay))
    await producers.publish_more(300)
    assert len(relay.accepted) - accepted == len(sent_by_old(relay)) - by_old > 0
    await finish_retries(stage)

    await stage.run(**_BACKOFF)
    await producers.publish_more(300)
    await stop_without_retries(old, producers, ledger)
    await producers.stop()
    await ledger.balance(_WAIT_S)

    assert not ledger.lost
    assert not ledger.died
    by_old = len(sent_by_old(relay))
    assert min(by_old, len(relay.accepted) - by_old) > 400
    assert len(ledger.duplicated) <= 2 * _PREFETCH  # of each stop
    assert each_copy_is_of_the_previous_worker(relay)
    assert relay.commands().count("RCPT") - len(relay.accepted) >= 100  # mails that were retried


async def test_a_killed_previous_worker_sends_twice_what_it_had_in_flight_and_loses_its_retries(stage: Stage) -> None:
    ledger = Ledger(stage)
    relay = stage.relay
    in_flight = [f"job{number}" for number in range(7)]
    waiting = [f"job{number}" for number in range(7, 10)]
    for name in in_flight:
        relay.then("body", Act("", keep=True, then="hang"), to=f"{name}@example.com")
    for name in waiting:
        relay.then("rcpt", "451 4.3.0 later", to=f"{name}@example.com")
    old = previous_worker(stage, BASE_DELAY_MS="600000")
    await old.start()
    try:
        await ledger.publish(10)
        await relay.wait_accepted(len(in_flight))

        async def scheduled() -> bool:
            return old.retries == set(waiting)

        await until(scheduled, "retries in the previous worker")
        await stage.run()
        await ledger.publish(300)
    finally:
        await old.kill()
    await relay.wait(
        lambda: ledger.lost == set(waiting) and ledger.duplicated >= set(in_flight), "mails of all other jobs", _WAIT_S
    )
    await until(lambda: _is_idle(ledger), "idle worker", _WAIT_S)
    assert ledger.lost == set(waiting)
    assert len(ledger.duplicated) <= _PREFETCH
    assert each_copy_is_of_the_previous_worker(relay)
    assert not ledger.died


async def _is_idle(ledger: Ledger) -> bool:
    return not any((await ledger.rabbit.depths()).values()) and not any(
        [await it.may_have_unacked() for it in ledger.stage.workers]
    )


@pytest.mark.parametrize("first", ["previous", "ours"])
async def test_no_worker_changes_the_queue_that_the_other_one_declares(
    shared_node: Node, tmp_path: Path, first: str
) -> None:
    async with set_stage(shared_node.url, tmp_path) as stage:
        old = previous_worker(stage)

        def queue(name: str = stage.rabbit.queue) -> str:
            resource = f'rabbit_misc:r(<<"/">>, queue, <<"{name}">>)'
            parts = ("arguments", "is_durable", "is_auto_delete", "type", "policy")
            calls = ", ".join(f"amqqueue:{it if it[:3] == 'is_' else f'get_{it}'}(Q)" for it in parts)
            return shared_node.control("eval", f"{{ok, Q}} = rabbit_amqqueue:lookup({resource}), {{{calls}}}.")

        plain = f"{stage.rabbit.queue}.plain"
        await stage.rabbit.declare(plain)
        declared = queue(plain)
        await stage.rabbit.channel.queue_delete(plain)
        try:
            if first == "previous":
                await old.start()  # with a plain `assertQueue`
            else:
                await (await stage.run()).stop()
            assert queue() == declared
            ours = await stage.run()
            assert queue() == declared
            await old.kill()
            await old.start()  # beside ours
            assert queue() == declared
            await ours.stop()
            await old.kill()
            await old.start()  # after ours
            assert queue() == declared
            await stage.rabbit.publish(job())
            await stage.relay.wait_accepted(1)
            assert len(sent_by_old(stage.relay)) == 1
        finally:
            await old.kill()
