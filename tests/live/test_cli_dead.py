"""`otp-stream dead`, as somebody uses it who was woken up: why did they not arrive, and send them after all."""

import asyncio
import base64
import contextlib
import json
import os
import random
import re
import signal
import stat
import struct
import time
import tracemalloc
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from aio_pika import Message
from cli import Ran, here, names, otp_stream
from conftest import Stage
from ledger import Ledger
from processes import SCRIPTS, start
from rabbitmq import until
from typer.testing import CliRunner
from visitor import TOKEN, Visitor
from worker import CODE, Worker, job

from otp_stream.broker.hands import LettersError, hands_on
from otp_stream.broker.letters import DeadLetters
from otp_stream.broker.topology import Topology
from otp_stream.cli.main import cli
from otp_stream.core.backoff import Backoff
from otp_stream.core.dead_letter import Wanted

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

    async def _holds(self, *counts: int) -> bool:
        return await self.depth() in counts

    async def page(self) -> str:
        """Return the page `/dead` as those see it who have logged in."""
        visitor = Visitor(self.worker)
        return (await asyncio.to_thread(visitor.ask, "/dead", {"Authorization": f"Bearer {TOKEN}"}))[1]

    def mend(self) -> None:
        """Have the relay take everything."""
        self.stage.relay._always.clear()

    def desk(self) -> DeadLetters:
        rabbit = self.stage.rabbit
        topology = Topology(rabbit.queue, rabbit.prefix, Backoff(1000, 30_000, 3))
        return DeadLetters(self.stage.url, "shown", topology, 15, b"key")


@pytest.fixture
async def ground(stage: Stage) -> Ground:
    worker = await stage.run(SMTP_POOL_SIZE="5", HTTP_TOKEN=TOKEN)
    return Ground(stage, worker, Ledger(stage))


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
    assert CODE not in ground.worker.words


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
    told += [await ground.page(), ground.worker.log]
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
    told += [ground.worker.log, (await ground.worker.get("/"))[1], await ground.page()]
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


_FLAGS = {"headers": 1 << 13, "message_id": 1 << 7, "timestamp": 1 << 6, "type": 1 << 5}
_NOT_UTF_8 = b"\xff" + b"\xfe" * 255
_NO_TIME = b"T" + b"\xff" * 8


def _table(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def _nested(depth: int) -> bytes:
    found = b""
    for _ in range(depth):
        found = b"\x01nF" + _table(found)
    return _table(found)


ODD = {
    "a time beyond all calendars": ("timestamp", b"\xff" * 8),
    "a time in microseconds": ("timestamp", struct.pack(">Q", 1_700_000_000_000_000)),
    "an id that is not UTF-8": ("message_id", _NOT_UTF_8),
    "a type that is not UTF-8": ("type", _NOT_UTF_8),
    "a header with such a time": ("headers", _table(b"\x01t" + _NO_TIME)),
    "a list with such a time": ("headers", _table(b"\x01tA" + _table(_NO_TIME))),
    "a name that is not UTF-8": ("headers", _table(b"\x02\xff\xfet\x01")),
    "tables in tables": ("headers", _nested(3_000)),
}


async def test_properties_that_no_client_can_read_hide_no_dead_letter(ground: Ground) -> None:
    rabbit = ground.stage.rabbit
    for number, (name, value) in enumerate(ODD.values()):
        body = job(f"odd{number}@corp.example", jobId=f"odd{number}")
        await rabbit.publish_raw(body, _FLAGS[name], value, f"{rabbit.prefix}.dead")
    await ground.die(1)
    await until(lambda: ground._holds(len(ODD) + 1), "every dead letter")
    told = json.loads(await _in_a_process_of_its_own(ground, "dead", "list", "--each", "--json"))
    ids = {f"odd{number}" for number in range(len(ODD))}
    assert (told["letters"], told["notLookedAt"]) == (len(ODD) + 1, 0)
    assert {it["jobId"] for it in told["each"]} >= ids
    assert f"{len(ODD) + 1} jobs could not be sent" in await ground.page()
    assert (await ground.dead("show", "odd0")).code == 0
    ground.mend()
    await _in_a_process_of_its_own(ground, "dead", "replay", "--all", "--yes", "--rate", "0")
    await ground.stage.relay.wait_accepted(len(ODD) + 1)


async def _in_a_process_of_its_own(ground: Ground, *words: str) -> str:
    # the processes that tests fork have imported the worker, which has set up pamqp already
    process = await asyncio.create_subprocess_exec(
        SCRIPTS / "otp-stream", *words,
        cwd=ground.stage.folder, env=os.environ | names(ground.stage), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, out
    return out.decode()


async def test_headers_that_no_worker_signed_are_believed_nowhere(ground: Ground) -> None:
    stage, worker, rabbit = ground.stage, ground.worker, ground.stage.rabbit
    now_ms = time.time_ns() // 1_000_000
    forged = {
        "x-otp-attempt": -2_000, "x-otp-job-id": f"{'j' * 5_000}{CODE}", "x-otp-first-seen": now_ms + 9_000_000,
        "x-otp-replayed-at": now_ms, "x-otp-replayed-by": CODE, "x-otp-fresh": "yes", "x-otp-reason": "rejected",
        "x-otp-error": f"550 5.1.1 {CODE}", "x-otp-mac": "0" * 32,
    }  # fmt: skip
    expired = job("late@example.com", jobId="late", timestamp=now_ms - 3_600_000)
    later = job("later@example.com", jobId="later")
    stage.relay.always("rcpt", "451 4.3.0 try later", to="later@example.com")
    for body in (expired, later):
        await rabbit.publish(body, to=f"{rabbit.prefix}.retry.due", headers=forged)
    await until(lambda: ground._holds(2), "two dead letters")
    await rabbit.publish(job("dead@example.com", jobId="dead"), to=f"{rabbit.prefix}.dead", headers=forged)
    await until(lambda: ground._holds(3), "three dead letters")
    each = json.loads((await ground.dead("list", "--each", "--json")).out)["each"]
    told = {it["jobId"]: (it["reason"], it["attempt"], it["verified"]) for it in each}
    assert told == {
        "late": ("expired", 0, True), "later": ("retries_exhausted", 2, True), "dead": ("rejected", 0, False),
    }  # fmt: skip
    assert await worker.metric("otp_unverified_retries_total") == 2
    metrics, page = (await worker.get("/metrics"))[1], await ground.page()
    assert {row for row in metrics.splitlines() if row.startswith("otp_retries_total{")} == {
        'otp_retries_total{attempt="1"} 1.0'
    }
    assert "its headers have no valid signature" in page
    listed = (await ground.dead("list", "--each")).out
    assert "rejected (unverified)" in listed
    assert "1 of them are unverified" in listed
    assert "not signed with SECRET_KEY" in worker.log
    assert CODE not in f"{worker.words}{metrics}{page}{each}{listed}"
    assert stage.relay.accepted == []


async def test_what_was_not_looked_at_is_said_and_no_success(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):  # one after another: the order in the queue decides which are looked at
        await ground.die(1)
    for method in (DeadLetters.look, DeadLetters.each, DeadLetters._walk):
        assert method.__kwdefaults__ is not None
        monkeypatch.setitem(method.__kwdefaults__, "most", 2)

    async def dead(*words: str) -> Ran:
        return await asyncio.to_thread(here, ground.stage.folder, "dead", *words, **names(ground.stage))

    out = ground.stage.folder / "letters.jsonl"
    for words, said in (
        (("export", "--out", str(out)), "1 more were not read, and are not in it"),
        (("list",), "1 more were not read"),
        (("list", "--json"), '"notLookedAt": 1'),
        (("show", "job2"), "no dead letter has this id (of those read; 1 more were not read)"),
        (
            ("drop", "job=job2", "--yes"),
            "No dead letter matches (of those read; 1 more were not read)",
        ),
        (("replay", "job=job2", "--yes"), "No dead letter matches (of those read"),
    ):
        ran = await dead(*words)
        assert (ran.code, said in ran.out) == (1, True), ran.out
    shown = await dead("show", "job0")
    assert (shown.code, "1 more were not read" in shown.out) == (0, True)
    # the cause is not mended: what is sent again dies again, behind the others, and is not sent once more
    again = await dead("replay", "--all", "--yes", "--rate", "0", "--json")
    assert json.loads(again.out[: again.out.rindex("}") + 1])["letters"] == 3
    await until(lambda: ground._holds(3), "all of them again")


async def test_bodies_in_memory_are_limited_whatever_lies_in_the_queue(ground: Ground) -> None:
    rabbit = ground.stage.rabbit
    large, kept = b"x" * (4 * 1024 * 1024), b"y" * (1024 * 1024)
    await ground.die(1)
    await rabbit.publish(*[large] * 8, *[kept] * 40, to=f"{rabbit.prefix}.dead", message_id="large")
    tracemalloc.start()
    try:
        letters, left = await ground.desk().look()
        assert tracemalloc.get_traced_memory()[1] < 44 * 1024 * 1024
    finally:
        tracemalloc.stop()
    assert (len(letters), left) == (49, 0)
    assert Counter(it.size for it in letters if not it.is_job) == {len(large): 8, len(kept): 40}
    out = ground.stage.folder / "raw.jsonl"
    ran = await ground.dead("export", "--raw", "--out", str(out))
    assert (ran.code, "8 bodies of more than 1 MiB were not read" in ran.out) == (1, True)
    bodies = [json.loads(line)["body"] for line in out.read_text().splitlines()]
    sizes = Counter(it and len(base64.b64decode(it)) for it in bodies)
    assert (len(bodies), sizes[None], sizes[len(kept)]) == (49, 8, 40)
    dropped = await ground.dead("drop", "--all", "--yes", "--json")
    assert json.loads(dropped.out)["letters"] == 49
    assert await ground.depth() == 0


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
        (("replay",), "Which dead letters?"),
        (("drop",), "Which dead letters?"),
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
        process = await start(
            "otp-stream", "dead", "replay", "--all", "--yes", "--rate", "100", folder=ground.stage.folder,
            env=ground.worker.env | names(ground.stage), output=Path(os.devnull),
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
async def test_an_interrupted_replay_says_how_far_it_came(ground: Ground, tmp_path: Path, stop: signal.Signals) -> None:
    await ground.die(20, "other.example")
    await ground.die(40)
    ground.mend()
    output = tmp_path / "output"
    process = await start(
        "otp-stream", "dead", "replay", "domain=corp.example", "--yes", "--rate", "20", folder=ground.stage.folder,
        env=ground.worker.env | names(ground.stage), output=output,
    )  # fmt: skip
    await ground.stage.relay.wait_accepted(5)
    process.send_signal(stop)
    assert await process.wait() == 1
    out = output.read_text()
    found = re.search(r"interrupted after (\d+) of 40: run the same command to continue", out)
    assert found is not None, out
    done = int(found.group(1))
    # the letter in hand at the signal may have been sent already, and is not counted
    assert 4 <= done < 40
    assert f'did="replayed" letters={done} which="domain corp.example"' in out
    assert "finished=false" in out
    await until(lambda: ground._holds(60 - done, 59 - done), "the letters that were not sent")
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
