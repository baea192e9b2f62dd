"""`otp-stream dead replay`: every dead letter is sent once, also after a kill."""

import asyncio
import json
import os
import random
import re
import signal
from pathlib import Path

import pytest
from amqp_proxy import amqp_proxy
from cli import names
from conftest import Stage
from dead_letters import Deployment
from ledger import Ledger
from processes import start
from rabbitmq import until
from smtp_relay import Act
from visitor import TOKEN
from worker import CODE


@pytest.fixture
async def deployment(stage: Stage) -> Deployment:
    # with a small prefetch, one of two workers cannot take all jobs
    changes = {"SMTP_POOL_SIZE": "5", "PREFETCH_COUNT": "15"}
    worker = await stage.run(**changes, HTTP_TOKEN=TOKEN, DEAD_LETTER_CODES="keep")
    return Deployment(stage, worker, Ledger(stage))


async def test_dead_letters_are_listed_by_cause_and_replayed_by_domain(deployment: Deployment) -> None:
    await deployment.die(50)
    await deployment.die(3, "other.example", "554 5.7.1 no")
    listed = await deployment.dead("list")
    assert listed.code == 0, listed.out
    rows = [line.split() for line in listed.out.splitlines()]
    assert ["50", "0", "rejected", "550", "corp.example"] in [row[:5] for row in rows]
    assert ["3", "0", "rejected", "554", "other.example"] in [row[:5] for row in rows]
    assert "mailbox unknown (to RCPT)" in listed.out
    assert "otp-stream dead replay reason=rejected code=550 domain=corp.example" in listed.out
    await deployment.wait_depth(53)
    deployment.accept_all()
    dry = await deployment.dead("replay", "domain=corp.example", "--dry-run")
    assert '"would be replayed" deadLetters=50' in dry.out
    await deployment.wait_depth(53)
    ran = await deployment.dead("replay", "domain=corp.example", "--yes", "--rate", "0")
    assert ran.code == 0, ran.out
    assert 'did="replayed" deadLetters=50' in ran.out
    await deployment.stage.relay.wait_accepted(50)
    assert {it.recipient.partition("@")[2] for it in deployment.stage.relay.accepted} == {"corp.example"}
    await deployment.wait_depth(3)
    await deployment.worker.wait_log('"job is replayed"', times=50)
    started = [line for line in deployment.worker.lines if line["event"] == "job is replayed"]
    assert len(started) == 50
    assert "@" in started[0]["by"]
    assert CODE not in deployment.worker.log_without_fractions


async def test_a_fresh_lifetime_ends_when_the_job_is_dead_lettered_again(deployment: Deployment) -> None:
    await deployment.die(1, metadata={"expiryMinutes": 0.05})
    await asyncio.sleep(3.1)
    assert (await deployment.dead("replay", "--all", "--yes", "--fresh-expiry")).code == 0
    await until(lambda: deployment.holds(1), "its second death")
    ran = await deployment.dead("replay", "--all", "--yes")  # the worker would use its own lifetime
    assert ran.code == 1
    assert "1 with an expired code stay" in ran.out
    assert "expired" in (await deployment.dead("list", "--each")).out


async def test_an_expired_code_stays_unless_it_gets_a_fresh_lifetime(deployment: Deployment) -> None:
    await deployment.die(1, metadata={"expiryMinutes": 0.05})
    await deployment.die(1, metadata={"expiryMinutes": 7})
    await asyncio.sleep(3.1)
    deployment.accept_all()
    ran = await deployment.dead("replay", "--all", "--yes")
    assert ran.code == 1
    assert "1 with an expired code stay" in ran.out
    await deployment.stage.relay.wait_accepted(1)
    await deployment.wait_depth(1)
    assert "expired" in (await deployment.dead("list", "--each")).out
    again = await deployment.dead("replay", "--all", "--yes", "--fresh-expiry", "--json")
    assert json.loads(again.out)["deadLetters"] == 1
    await deployment.stage.relay.wait_accepted(2)
    await deployment.wait_depth(0)


async def test_a_replay_that_is_killed_repeatedly_loses_and_duplicates_nothing(deployment: Deployment) -> None:
    await deployment.die(300)
    deployment.accept_all()
    chance = random.Random(7)  # noqa: S311
    relay = deployment.stage.relay
    async with amqp_proxy(deployment.stage.url) as (proxy, url):
        for _ in range(4):
            process = await start(
                "otp-stream", "dead", "replay", "--all", "--yes", "--rate", "100", folder=deployment.stage.folder,
                env=deployment.worker.env | names(deployment.stage) | {"RABBITMQ_URL": url}, output=Path(os.devnull),
            )  # fmt: skip
            # by what passes the proxy: a worker that is late would have the command come to its end
            published = proxy.published + chance.randint(5, 60)

            async def sends(published: int = published) -> bool:
                return proxy.published >= published

            await until(sends, "copies of dead letters")
            process.kill()
            assert await process.wait() == -signal.SIGKILL
    ran = await deployment.dead("replay", "--all", "--yes", "--rate", "0", "--json")
    assert 50 < json.loads(ran.out)["deadLetters"] < 280
    await relay.wait_accepted(300)
    await deployment.ledger.balance()
    assert len(relay.accepted) == 300
    assert (deployment.ledger.lost, deployment.ledger.duplicated) == (set(), set())
    # at a kill, the copy of one dead letter may have been published already
    assert (await deployment.worker.health())["outcomes"].get("duplicate", 0) <= 4


async def test_a_replayed_job_of_a_worker_that_is_killed_is_sent_by_the_one_that_dead_lettered_it(
    deployment: Deployment,
) -> None:
    await deployment.die(20)
    other = await deployment.stage.run(SMTP_POOL_SIZE="5", DEAD_LETTER_CODES="keep")
    deployment.accept_all()
    goes_on = asyncio.Event()
    deployment.stage.relay.always("mail", Act(until=goes_on))
    assert (await deployment.dead("replay", "--all", "--yes", "--rate", "0")).code == 0
    received = 'otp_ledger_received_total{lane="due"}'

    async def all_are_received() -> bool:
        return await deployment.worker.metric(received) + await other.metric(received) == 20

    await until(all_are_received, "the replayed jobs")
    assert await other.metric(received) > 0
    await other.kill()
    deployment.accept_all()
    goes_on.set()
    await deployment.ledger.balance()
    assert (deployment.ledger.lost, deployment.ledger.duplicated) == (set(), set())
    assert len(deployment.stage.relay.accepted) == 20


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_replay_prints_how_many_it_sent(
    deployment: Deployment, tmp_path: Path, stop: signal.Signals
) -> None:
    await deployment.die(20, "other.example")
    await deployment.die(40)
    deployment.accept_all()
    output = tmp_path / "output"
    process = await start(
        "otp-stream", "dead", "replay", "domain=corp.example", "--yes", "--rate", "4", folder=deployment.stage.folder,
        env=deployment.worker.env | names(deployment.stage), output=output,
    )  # fmt: skip
    await deployment.stage.relay.wait_accepted(3)  # in ten seconds, all would be sent
    process.send_signal(stop)
    assert await process.wait() == 1
    out = output.read_text()
    found = re.search(r"interrupted after (\d+) of 40: run the same command to continue", out)
    assert found is not None, out
    done = int(found.group(1))
    # at the signal, one dead letter may have been sent already that is not counted
    assert 2 <= done < 40
    assert f'did="replayed" deadLetters={done} which="domain corp.example"' in out
    assert "finished=false" in out
    await until(lambda: deployment.holds(60 - done, 59 - done), "the dead letters that were not sent")
    await deployment.stage.relay.wait_accepted(done)


async def test_a_missing_retry_queue_loses_nothing(deployment: Deployment) -> None:
    await deployment.die(3)
    await deployment.worker.stop()
    rabbit = deployment.stage.rabbit
    await rabbit.channel.queue_delete(f"{rabbit.prefix}.retry.due")
    ran = await deployment.dead("replay", "--all", "--yes")
    assert ran.code == 1
    assert "is missing: nothing was lost" in ran.out
    await deployment.wait_depth(3)
