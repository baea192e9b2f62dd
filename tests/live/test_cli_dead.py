"""`otp-stream dead`, as somebody uses it who was woken up: why did they not arrive, and send them after all."""

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest
from aio_pika import Message
from cli import Ran, here, names, otp_stream
from conftest import Stage
from ledger import Ledger
from rabbitmq import until
from typer.testing import CliRunner
from worker import CODE, SCRIPT, Worker, job

from otp_stream.broker.hands import LettersError, hands_on
from otp_stream.broker.letters import DeadLetters
from otp_stream.broker.topology import Topology
from otp_stream.cli.main import cli
from otp_stream.core.backoff import Backoff
from otp_stream.core.letter import Wanted

REFUSED = "550 5.7.1 relaying denied"


@dataclass
class Ground:
    """A deployment with dead letters."""

    stage: Stage
    worker: Worker
    ledger: Ledger

    async def dead(self, *words: str) -> Ran:
        """Run `otp-stream dead`."""
        ran = await otp_stream(self.stage.folder, "dead", *words, **names(self.stage))
        assert CODE not in ran.out
        return ran

    async def depth(self) -> int:
        return await self.stage.rabbit.depth(f"{self.stage.rabbit.prefix}.dead")

    async def die(self, count: int, domain: str = "corp.example", reply: str = REFUSED, **fields: object) -> None:
        """Have the relay refuse so many jobs to one domain."""
        before = await self.depth()
        known = len(self.ledger.published)
        people = [f"job{known + number}@{domain}" for number in range(count)]
        for person in people:
            self.stage.relay.always("rcpt", reply, to=person)
        for person in people:
            await self.ledger.publish(1, email=person, **fields)
        await until(lambda: self._holds(before + count), f"{count} more dead letters")

    async def _holds(self, count: int) -> bool:
        return await self.depth() == count

    def mend(self) -> None:
        """Have the relay take everything."""
        self.stage.relay._always.clear()

    def desk(self) -> DeadLetters:
        rabbit = self.stage.rabbit
        topology = Topology(rabbit.queue, rabbit.prefix, Backoff(1000, 30_000, 3))
        return DeadLetters(self.stage.url, "shown", topology, 15, b"key")


@pytest.fixture
async def ground(stage: Stage) -> Ground:
    worker = await stage.run(SMTP_POOL_SIZE="5")
    return Ground(stage, worker, Ledger(stage.rabbit, stage.relay))


async def test_fifty_codes_that_did_not_arrive_are_found_and_sent_after_all(ground: Ground) -> None:
    await ground.die(50)
    await ground.die(3, "other.example", "554 5.7.1 no")
    listed = await ground.dead("list")
    assert listed.code == 0, listed.out
    rows = [line.split() for line in listed.out.splitlines()]
    assert ["50", "0", "rejected", "550", "corp.example"] in [row[:5] for row in rows]
    assert ["3", "0", "rejected", "554", "other.example"] in [row[:5] for row in rows]
    assert "relaying denied (to RCPT)" in listed.out
    assert "otp-stream dead replay reason=rejected code=550 domain=corp.example" in listed.out
    assert await ground.depth() == 53
    ground.mend()
    dry = await ground.dead("replay", "domain=corp.example", "--dry-run")
    assert '"would be replayed" letters=50' in dry.out
    assert await ground.depth() == 53
    ran = await ground.dead("replay", "domain=corp.example", "--yes", "--rate", "0")
    assert ran.code == 0, ran.out
    assert 'did="replayed" letters=50' in ran.out
    await ground.stage.relay.wait_accepted(50)
    assert {it.recipient.partition("@")[2] for it in ground.stage.relay.accepted} == {"corp.example"}
    assert await ground.depth() == 3
    started = [line for line in ground.worker.lines if line["event"] == "job is replayed"]
    assert len(started) == 50
    assert "@" in started[0]["by"]
    assert CODE not in ground.worker.log


async def test_a_letter_is_shown_whole_without_its_secrets(ground: Ground) -> None:
    await ground.die(1, metadata={"userName": "Ada Lovelace", "template": "otp", "nested": {"otp": CODE}})
    ran = await ground.dead("show", "job0", "--json")
    (told,) = json.loads(ran.out)
    assert told["recipient"] == "j***@corp.example"
    assert told["error"].startswith(REFUSED)
    assert told["content"]["otp"] == f"text of {len(CODE)} characters"
    assert told["content"]["metadata"]["template"] == "otp"
    assert "Ada" not in ran.out
    assert "job0@" not in ran.out
    assert "j***@corp.example" in (await ground.dead("show", "job0")).out
    assert (await ground.dead("show", "nobody")).code == 1


async def test_a_code_written_where_names_belong_is_shown_nowhere(ground: Ground) -> None:
    stage, rabbit = ground.stage, ground.stage.rabbit
    events = await rabbit.channel.declare_queue(exclusive=True)
    await events.bind(f"{rabbit.prefix}.events", "#")
    await rabbit.publish(job("ada@corp.example", jobId="as-template", metadata={"template": f"t-{CODE}"}))
    # what others lay there has none of our headers
    odd = Message(b"no job", message_id=CODE, headers={"x-otp-died-at": 10**18})
    await rabbit.channel.default_exchange.publish(odd, f"{rabbit.prefix}.dead")
    await until(lambda: ground._holds(2), "two dead letters")
    commands = (("list",), ("list", "--each"), ("show", "as-template"), ("export",))
    told = [(await ground.dead(*words)).out for words in commands]
    assert "as-template" in told[1]
    assert "***" in told[2]
    told += [(await ground.worker.get(path))[1] for path in ("/", "/dead", "/health")]
    told += [ground.worker.log]
    while (event := await events.get(fail=False)) is not None:
        told.append(event.body.decode())
    assert CODE not in "".join(told)
    assert "as-template" in told[-1]
    assert '"template":"***"' in told[-1]
    assert '"template":"***"' in ground.worker.log.replace(": ", ":")
    assert stage.relay.accepted == []


async def test_nothing_that_others_have_laid_there_keeps_from_the_other_letters(ground: Ground) -> None:
    rabbit, folder = ground.stage.rabbit, ground.stage.folder
    await rabbit.publish(
        b'{"\\ud800key": 1, "jobId": "x"}',
        b'{"jobId": "nan-1", "timestamp": NaN, "retryCount": 1e999}',
        json.dumps({"email": "nobody", "otp": f" {CODE} ", "jobId": f"login-{CODE}"}).encode(),
        json.dumps({"email": " eve@corp.example ", "otp": int(CODE), "jobId": "eve@corp.example"}).encode(),
        json.dumps({"to": "eve@corp.example", "code": CODE, "jobId": f"otp:{CODE}"}).encode(),
    )
    await until(lambda: ground._holds(5), "five dead letters")
    far = Message(job(), headers={"x-otp-first-seen": 253_402_300_799_000, "x-otp-job-id": "far"})
    await rabbit.channel.default_exchange.publish(far, f"{rabbit.prefix}.dead")
    await until(lambda: ground._holds(6), "six dead letters")
    told: list[str] = []
    for words in (
        ("list",),
        ("list", "--each"),
        ("export",),
        ("show", "nan-1", "--json"),
        ("list", "--each", "--json"),
    ):
        ran = await ground.dead(*words)
        assert ran.code == 0, ran.out
        told.append(ran.out)
    assert len(json.loads(told[-1])["each"]) == 6
    shown = json.loads(told[-2], parse_constant=pytest.fail)
    assert shown[0]["content"]["timestamp"] == shown[0]["content"]["retryCount"] == "a number"
    told += [ground.worker.log, (await ground.worker.get("/"))[1], (await ground.worker.get("/dead"))[1]]
    assert "eve@" not in "".join(told)
    assert CODE not in "".join(told)
    out = folder / "kept.jsonl"
    out.write_text("before")
    assert (await ground.dead("export", "--out", str(out), "--raw")).code == 0
    assert len(out.read_text().splitlines()) == 6
    os.mkfifo(folder / "pipe")
    for place in (folder / "pipe", folder, folder / "none" / "x"):
        ran = await ground.dead("export", "--out", str(place))
        assert (ran.code, "--out: " in ran.out) == (2, True)
    assert stat.S_ISFIFO((folder / "pipe").stat().st_mode)


async def test_what_was_not_looked_at_is_said_and_no_success(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    await ground.die(3)
    for method in (DeadLetters.each, DeadLetters._walk):
        assert method.__kwdefaults__ is not None
        monkeypatch.setitem(method.__kwdefaults__, "most", 2)

    async def dead(*words: str) -> Ran:
        return await asyncio.to_thread(here, ground.stage.folder, "dead", *words, **names(ground.stage))

    out = ground.stage.folder / "letters.jsonl"
    for words, said in (
        (("export", "--out", str(out)), "1 more were not looked at, and are not in it"),
        (("show", "job2"), "no dead letter has this id of those that were looked at; 1 more were not"),
        (
            ("drop", "job=job2", "--yes"),
            "No dead letter is meant by that of those that were looked at; 1 more were not",
        ),
        (("replay", "job=job2", "--yes"), "No dead letter is meant by that of those that were looked at"),
    ):
        ran = await dead(*words)
        assert (ran.code, said in ran.out) == (1, True), ran.out
    # the cause is not mended: what is sent again dies again, behind the others, and is not sent once more
    again = await dead("replay", "--all", "--yes", "--rate", "0", "--json")
    assert json.loads(again.out[: again.out.rindex("}") + 1])["letters"] == 3
    await until(lambda: ground._holds(3), "all of them again")


async def test_a_life_that_began_anew_ends_with_the_next_death(ground: Ground) -> None:
    await ground.die(1, metadata={"expiryMinutes": 0.05})
    await asyncio.sleep(3.1)
    assert (await ground.dead("replay", "--all", "--yes", "--fresh-expiry")).code == 0
    await until(lambda: ground._holds(1), "its second death")
    ran = await ground.dead("replay", "--all", "--yes")  # the worker would judge it by its own life
    assert ran.code == 1
    assert "1 with an expired code stay" in ran.out
    assert "expired" in (await ground.dead("list", "--each")).out


async def test_an_expired_code_stays_unless_its_life_begins_anew(ground: Ground) -> None:
    await ground.die(1, metadata={"expiryMinutes": 0.02})
    await ground.die(1, metadata={"expiryMinutes": 7})
    await asyncio.sleep(1.3)
    ground.mend()
    ran = await ground.dead("replay", "--all", "--yes")
    assert ran.code == 1
    assert "1 with an expired code stay" in ran.out
    await ground.stage.relay.wait_accepted(1)
    assert await ground.depth() == 1
    assert "expired" in (await ground.dead("list", "--each")).out
    again = await ground.dead("replay", "--all", "--yes", "--fresh-expiry", "--json")
    assert json.loads(again.out)["letters"] == 1
    # a fifth of a second is what is left to it now: it must be on its way before that
    await until(lambda: _ends(ground, 3), "end of the third")
    assert await ground.depth() == 0
    assert len(ground.stage.relay.accepted) == 2


async def _ends(ground: Ground, _: int) -> bool:
    return len(ground.stage.relay.accepted) == 2


async def test_what_is_no_job_can_be_looked_at_and_dropped(ground: Ground) -> None:
    rabbit = ground.stage.rabbit
    for body in (b"\xff\x00 no json " + CODE.encode(), json.dumps({"email": "a@b.example", "otp": int(CODE)}).encode()):
        await rabbit.channel.default_exchange.publish(Message(body), rabbit.queue)
    await until(lambda: ground._holds(2), "two dead letters")
    listed = json.loads((await ground.dead("list", "--json", "--each")).out)
    assert [(it["reason"], it["letters"]) for it in listed["groups"]] == [("malformed", 2)]
    assert "replay" not in (await ground.dead("list")).out  # it would only die once more
    await ground.die(1)
    assert "otp-stream dead replay reason=rejected" in (await ground.dead("list")).out
    assert (await ground.dead("drop", "reason=rejected", "--yes")).code == 0
    out = ground.stage.folder / "letters.jsonl"
    assert (await ground.dead("export", "--out", str(out), "--raw")).code == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert len(out.read_text().splitlines()) == 2
    contents = [json.loads(line)["content"] for line in (await ground.dead("export")).out.splitlines()]
    assert contents == ["no JSON", {"email": "a***@b.example", "otp": "a number"}]
    assert (await ground.dead("export", "--raw")).code == 2
    assert (await ground.dead("drop", "reason=rejected", "--yes")).code == 0
    assert await ground.depth() == 2
    assert (await ground.dead("drop", "reason=malformed", "--yes")).code == 0
    assert await ground.depth() == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("replay",), "Which letters?"),
        (("drop",), "Which letters?"),
        (("replay", "domain"), "must look like reason=rejected"),
        (("list", "reason=gone"), "reason: must be one of malformed, expired"),
        (("list", "older=soon"), "older: must look like 10m"),
        (("list", "colour=red"), "colour: is none of reason, code"),
    ],
)
def test_words_that_mean_nothing_are_refused(words: tuple[str, ...], told: str) -> None:
    ran = CliRunner().invoke(cli, ["dead", *words])
    assert ran.exit_code == 2
    assert told in ran.output


async def test_a_replay_that_is_killed_again_and_again_loses_and_doubles_nothing(ground: Ground) -> None:
    await ground.die(300)
    ground.mend()
    chance = random.Random(7)  # noqa: S311
    relay = ground.stage.relay
    for _ in range(4):
        process = await asyncio.create_subprocess_exec(
            SCRIPT, "dead", "replay", "--all", "--yes", "--rate", "100", cwd=ground.stage.folder,
            env=ground.worker.env | names(ground.stage), stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        await relay.wait_accepted(len(relay.accepted) + chance.randint(5, 60))
        process.kill()
        assert await process.wait() == -signal.SIGKILL
    ran = await ground.dead("replay", "--all", "--yes", "--rate", "0", "--json")
    assert 50 < json.loads(ran.out)["letters"] < 280
    await relay.wait_accepted(300)
    await ground.ledger.balance()
    assert len(relay.accepted) == 300
    assert (ground.ledger.lost, ground.ledger.duplicated) == (set(), set())
    # the letter that was in hand at a kill may have been on its way already
    assert (await ground.worker.health())["outcomes"].get("duplicate", 0) <= 4


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_replay_says_how_far_it_came(ground: Ground, stop: signal.Signals) -> None:
    await ground.die(20, "other.example")
    await ground.die(40)
    ground.mend()
    process = await asyncio.create_subprocess_exec(
        SCRIPT, "dead", "replay", "domain=corp.example", "--yes", "--rate", "20", cwd=ground.stage.folder,
        env=ground.worker.env | names(ground.stage),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    await ground.stage.relay.wait_accepted(5)
    process.send_signal(stop)
    audit, said = await process.communicate()
    assert process.returncode == 1
    found = re.search(r"interrupted after (\d+) of 40: the same command goes on", said.decode())
    assert found is not None, said.decode()
    done = int(found.group(1))
    assert 5 <= done < 40
    assert f'did="replayed" letters={done} which="domain corp.example"' in audit.decode()
    assert "finished=false" in audit.decode()
    await until(lambda: ground._holds(60 - done), "the letters that were not sent")
    await ground.stage.relay.wait_accepted(done)


async def test_looking_changes_neither_order_nor_number_however_often(ground: Ground) -> None:
    for number in range(30):
        await ground.die(1, f"d{number}.example")
    desk = ground.desk()
    first, _ = await desk.look()
    for _ in range(25):  # RabbitMQ 4 would have dropped them by now
        looked, left = await desk.look()
        assert {it.job_id for it in looked} == {it.job_id for it in first}
        assert left == 0
    assert [it.job_id for it in first] == [f"job{number}" for number in range(30)]

    counts: list[int] = []
    await desk.each(lambda it: counts.append(int(str((it.message.headers or {}).get("x-delivery-count", 0)))))
    assert max(counts) <= 12


async def test_two_who_look_at_once_both_see_all(ground: Ground) -> None:
    await ground.die(20)
    looks = await asyncio.gather(*(ground.desk().look() for _ in range(4)))
    assert [len(letters) for letters, _ in looks] == [20] * 4


async def test_where_the_lane_of_retries_is_missing_nothing_is_lost(ground: Ground) -> None:
    await ground.die(3)
    await ground.worker.stop()
    rabbit = ground.stage.rabbit
    await rabbit.channel.queue_delete(f"{rabbit.prefix}.retry.due")
    ran = await ground.dead("replay", "--all", "--yes")
    assert ran.code == 1
    assert "is missing: nothing was lost" in ran.out
    assert await ground.depth() == 3


async def test_a_lane_that_is_full_loses_nothing(ground: Ground) -> None:
    rabbit = ground.stage.rabbit
    letters, lane = f"{rabbit.prefix}.letters", f"{rabbit.prefix}.lane"
    full = {"x-queue-type": "quorum", "x-max-length": 2, "x-overflow": "reject-publish"}
    await rabbit.channel.declare_queue(letters, durable=True, arguments={"x-queue-type": "quorum"})
    await rabbit.channel.declare_queue(lane, durable=True, arguments=full)
    for number in range(8):
        await rabbit.channel.default_exchange.publish(Message(str(number).encode()), letters)

    async def moves_all() -> bool:
        with contextlib.suppress(LettersError):
            async with hands_on(letters, ground.stage.url, "shown") as hands:
                async for letter in hands.letters(100):
                    await hands.replace(letter, Message(letter.body), lane)
                return True
        return False

    for _ in range(3):
        assert not await moves_all()
    found: set[bytes] = set()
    for name in (letters, lane):
        queue = await rabbit.channel.get_queue(name)
        while (message := await queue.get(no_ack=True, fail=False)) is not None:
            assert message.body not in found
            found.add(message.body)
        await queue.delete(if_unused=False, if_empty=False)
    assert len(found) == 8


async def test_somebody_else_who_has_them_in_hand_is_told_of(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otp_stream.broker.hands._TIMEOUT_S", 0.5)
    desk = ground.desk()
    async with hands_on(desk.topology.dead, ground.stage.url, "shown"):
        with pytest.raises(LettersError, match="somebody else has the dead letters in hand"):
            await desk.replay(Wanted(), by="me")


async def test_a_broker_that_is_away_is_told_of(tmp_path: Path) -> None:
    ran = await otp_stream(tmp_path, "dead", "list", RABBITMQ_URL="amqp://u:hunter2@127.0.0.1:9/")
    assert ran.code == 1
    assert "does not answer" in ran.out
    assert "hunter2" not in ran.out
    assert (await otp_stream(tmp_path, "dead", "list", RABBITMQ_URL="ftp://x")).code == 2


async def test_what_others_have_written_is_shown_as_it_stands_and_cannot_be_pasted_as_a_command(ground: Ground) -> None:
    await ground.die(1, domain="`id`.example", reply="550 5.7.1 [/blocked] [policy] by us", jobId="[/red]j[bold]")
    told = (await ground.dead("list")).out
    assert "[/blocked] [policy]" in told
    assert "'domain=`id`.example'" in told
    assert (await ground.dead("list", "--each")).code == 0
    assert "[/red]j[bold]" in (await ground.dead("show", "[/red]j[bold]")).out


async def test_a_message_that_is_no_job_is_not_called_by_what_may_be_a_secret(ground: Ground) -> None:
    body = json.dumps({"email": "vic.tim@ok.example", "otp": int(CODE)}).encode()
    await ground.stage.rabbit.publish(body, message_id="vic.tim@ok.example")
    await ground.worker.wait_log("job is dead")
    assert "vic.tim@" not in ground.worker.log + (await ground.dead("list", "--each")).out
