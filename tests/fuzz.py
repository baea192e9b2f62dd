"""Messages of every kind against a real worker, broker and relay: each ends once, none blocks, and no code is shown.

`make fuzz` publishes 100,000; `FUZZ_BODIES=5000 FUZZ_SEED=7 make fuzz` so many, from another seed.
"""

import asyncio
import base64
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

from aio_pika import Message
from aio_pika.abc import AbstractIncomingMessage
from conftest import Stage, set_stage
from worker import Worker

_BATCH = 200
_AHEAD = 3_000
"""Maximum number of waiting messages, because the lifetime of a code starts when it is published."""
_STUCK_S = 60.0
_WHOLE = 0.5
"""Fraction of the bodies that are jobs."""
_IN_PIECES = 0.05
"""Fraction of the unchanged bodies whose code is a list or an object, so that they are not jobs."""
_BLOCK_MS = 50
_CODE = re.compile(rb"K7[0-9]{6}Q", re.IGNORECASE)
_BETWEEN_PIECES = re.compile(rb'[\s",:]+|"[0-9]+":')
_WORDS = ("user", "login", "123456", "a@b.c", "x1y2", "%40", "=40", "&#64;", "\u00e9", "\U0001f600", "\u202e", "0")


@dataclass
class Ledger:
    """The published messages and how they ended, by number."""

    published: int = 0
    died: Counter[int] = field(default_factory=Counter[int])
    reasons: Counter[str] = field(default_factory=Counter[str])
    leaks: list[str] = field(default_factory=list[str])
    sent: int = 0
    duplicates: int = 0

    @property
    def ended(self) -> int:
        """The number of mails and dead letters."""
        return self.sent + self.died.total() + self.duplicates

    async def read_dead_letter(self, message: AbstractIncomingMessage) -> None:
        """Count a dead letter, and check its headers for codes."""
        self.died[int(str(message.headers.get("x-fuzz", -1)))] += 1
        self.reasons[str(message.headers["x-otp-reason"])] += 1
        shown = {name: it for name, it in message.headers.items() if name.startswith(("x-otp-", "trace", "baggage"))}
        body = message.body + b"\n" + _BETWEEN_PIECES.sub(b"", message.body)
        # a changed body may have another code or none, and then the original code in a header is no secret
        codes = _CODE.findall(repr(shown).encode())
        if any(re.search(rb"(?<![0-9a-z])%b(?![0-9a-z])" % code, body, re.IGNORECASE) for code in codes):
            self.leaks.append(repr(shown)[:300])


@dataclass
class Report:
    """The result."""

    seed: int
    ledger: Ledger
    blocked_ms: float
    took_s: float
    twice: dict[int, tuple[int, int]]
    """Messages with more than one mail or dead letter, and how many of each."""

    def __str__(self) -> str:
        ledger = self.ledger
        died = ", ".join(f"{count} {reason}" for reason, count in sorted(ledger.reasons.items()))
        return (
            f"seed {self.seed}: {ledger.published} published, {ledger.sent} sent, {ledger.duplicates} duplicates, "
            f"dead: {died}; {len(self.twice)} ended twice, {len(ledger.leaks)} leaks; longest block of the event loop "
            f"{self.blocked_ms:.1f} ms; {ledger.published / self.took_s:.0f} messages a second"
        )


async def fuzz(stage: Stage, count: int, seed: int) -> Report:
    """Publish `count` messages and wait until each has ended."""
    beats = stage.folder / "heartbeat"
    # a small prefetch count, to measure how long one message can block the event loop, not many at once
    changes = {"PREFETCH_COUNT": "20", "BASE_DELAY_MS": "100", "MAX_DELAY_MS": "100", "MAX_RETRIES": "1"}
    worker = stage.worker(HEARTBEAT_FILE=str(beats), **changes)
    worker.app = "heartbeat:app"
    await worker.start()
    ledger, began = Ledger(), time.monotonic()
    chance = random.Random(seed)  # noqa: S311 - the same messages again from the same seed
    dead = await stage.rabbit.channel.get_queue(f"{stage.rabbit.prefix}.dead", ensure=False)
    await dead.consume(ledger.read_dead_letter, no_ack=True)
    while ledger.published < count:
        batch = [_message(chance, ledger.published + at, stage) for at in range(min(_BATCH, count - ledger.published))]
        await asyncio.gather(*(stage.rabbit.channel.default_exchange.publish(it, stage.rabbit.queue) for it in batch))
        ledger.published += len(batch)
        await _ended(stage, worker, ledger, ledger.published - _AHEAD)
    await _ended(stage, worker, ledger, count)
    took_s = time.monotonic() - began
    await asyncio.sleep(0.3)  # a duplicate would arrive after the last message
    await _count(stage, worker, ledger)
    metrics = (await worker.get("/metrics"))[1]
    health = (await worker.get("/health"))[1]
    code = await worker.stop()
    assert code in {0, -signal.SIGTERM}, f"{code}\n{worker.log[-3000:]}"
    for name, text in (("log", worker.log), ("metrics", metrics), ("health", health)):
        ledger.leaks += [f"{name}: {line[:300]}" for line in text.splitlines() if _CODE.search(line.encode())]
    return Report(seed, ledger, float(beats.read_text()), took_s, _twice(stage, ledger))


async def _ended(stage: Stage, worker: Worker, ledger: Ledger, wanted: int) -> None:
    before, since = -1, time.monotonic()
    while ledger.ended < wanted:
        await asyncio.sleep(0.1)
        await _count(stage, worker, ledger)
        if ledger.ended != before:
            before, since = ledger.ended, time.monotonic()
        assert worker.is_running, worker.log[-3000:]
        waited_s = time.monotonic() - since
        assert waited_s < _STUCK_S, f"{ledger} is stuck at {ledger.ended} of {wanted}\n{worker.log[-3000:]}"


async def _count(stage: Stage, worker: Worker, ledger: Ledger) -> None:
    ledger.sent = len(stage.relay.accepted)
    if ledger.sent + ledger.died.total() < ledger.published:
        ledger.duplicates = int(await worker.metric('otp_jobs_total{outcome="duplicate"}'))


def _twice(stage: Stage, ledger: Ledger) -> dict[int, tuple[int, int]]:
    found = [re.match(r"f(\d+)-", mail.recipient) for mail in stage.relay.accepted]
    # a message whose number was changed does not count for the message with that number
    mailed = Counter(int(it[1]) for it in found if it and it.string.startswith(_local(int(it[1])) + "@"))
    ends = mailed + ledger.died
    return {number: (mailed[number], ledger.died[number]) for number, times in ends.items() if times > 1}


def _message(chance: random.Random, number: int, stage: Stage) -> Message:
    headers: dict[str, Any] = {}
    if chance.random() < 0.3:
        headers |= {_name(chance): _value(chance, 2) for _ in range(chance.randrange(4))}
    if chance.random() < 0.2:
        headers |= {
            name: chance.choice(
                (_value(chance, 1), f"00-{'0' * 24}{_code(number)}-{'1' * 16}-01", f"code={_code(number)}")
            )
            for name in ("traceparent", "tracestate", "baggage")
            if chance.random() < 0.5
        }
    if chance.random() < 0.1:
        names = ("x-otp-attempt", "x-otp-job-id", "x-otp-first-seen", "x-otp-uncertain", "x-death", "x-delivery-count")
        headers |= {chance.choice(names): _value(chance, 1)}
    properties: dict[str, Any] = {}
    for name in ("content_type", "content_encoding", "correlation_id", "message_id", "type", "app_id", "reply_to"):
        if chance.random() < 0.1:
            properties[name] = chance.choice(("application/json", "gzip", "x" * 200, "482913", "\u00e9", f"{number}"))
    if chance.random() < 0.1:
        properties["priority"] = chance.randrange(256)
    if chance.random() < 0.1:
        properties["timestamp"] = datetime.fromtimestamp(chance.randrange(2**32), UTC)
    # last, so that nothing above replaces it
    headers["x-fuzz"] = number
    return Message(_body(chance, number, stage), headers=headers, delivery_mode=2, **properties)


def _body(chance: random.Random, number: int, stage: Stage) -> bytes:
    kind = chance.random()
    # if a mutation destroyed the code in the body, a copy of it in the id would not be recognised as a secret
    job = _job(chance, number, stage, intact=kind < _WHOLE)
    body = json.dumps(job, ensure_ascii=chance.random() < 0.5).encode(errors="replace")
    if kind < _WHOLE:
        return body
    if kind < 0.8:
        return _mutated(chance, body)
    if kind < 0.9:
        return json.dumps(_value(chance, 4), default=str).encode(errors="replace")
    if kind < 0.98:
        return chance.randbytes(chance.randrange(400))
    return _large(chance, number)


def _job(chance: random.Random, number: int, stage: Stage, *, intact: bool) -> dict[str, Any]:
    address = f"{_local(number)}@example.com"
    job: dict[str, Any] = {"email": address, "otp": _code(number)}
    if intact and chance.random() < _IN_PIECES:
        job["otp"] = _pieces(chance, _code(number))
    # a body whose code is changed afterwards has another code than the relay would quote
    kind = chance.random() if intact else 1
    if kind < 0.02:
        quoted = chance.choice((address, _code(number), base64.b64encode(_code(number).encode()).decode()))
        stage.relay.always("rcpt", f"550-5.1.1 {'no ' * chance.randrange(150)}\r\n550 5.1.1 {quoted} no", to=address)
    elif kind < 0.03:
        long = "\r\n".join([f"554-5.7.1 {'a' * 3000}@"] * 15)
        stage.relay.always("body", f"{long}\r\n554 5.7.1 spam: {_code(number).lower()}", to=address)
    elif kind < 0.05:
        stage.relay.then("rcpt", f"451 4.3.0 later, {_code(number)[:4]} {_code(number)[4:]}", to=address)
    for name in ("jobId", "retryCount", "priority", "timestamp", "metadata", "extra"):
        if chance.random() < 0.3:
            job[name] = _field(chance, name, number, intact=intact)
    return job


def _field(chance: random.Random, name: str, number: int, *, intact: bool) -> Any:
    usual: dict[str, Any] = {
        "jobId": chance.choice(
            (f"j{number}", f"j{number}-{_code(number)}", _code(number).lower()) if intact else (f"j{number}",)
        ),
        "retryCount": 0,
        "priority": chance.choice(("low", "normal", "high")),
        "timestamp": time.time_ns() // 1_000_000,
        "metadata": {
            "userName": chance.choice(_WORDS),
            "purpose": chance.choice(_WORDS),
            _name(chance): _value(chance, 2),
        },
    }
    return usual[name] if name in usual and chance.random() < 0.7 else _value(chance, 2)


def _mutated(chance: random.Random, body: bytes) -> bytes:
    data = bytearray(body)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(4):
            case 0:
                del data[at : at + chance.randrange(1, 20)]
            case 1:
                data[at:at] = chance.randbytes(chance.randrange(1, 8))
            case 2:
                data[at:at] = chance.choice(
                    (b'"', b"{", b"[", b",", b"\\", b"null", b"NaN", b"1e999", b"\\ud83d", b"\xef\xbb\xbf")
                )
            case _:
                data[at : at + 1] = bytes([chance.randrange(256)])
    return bytes(data)


def _large(chance: random.Random, number: int) -> bytes:
    size = chance.choice((10_000, 60_000, 65_000, 65_536, 65_537, 200_000))
    piece = chance.choice(
        ("a@", "1 ", "482913 ", f"{_code(number)} ", "x1yz ", "%25", "=34", "\\u0661", "[", '{"a":', "9")
    )
    filled = piece * (size // len(piece))
    match chance.randrange(3):
        case 0:
            return filled.encode()
        case 1:
            return f'{{"jobId":"{"482913-" * 25}","otp":5,"x":{json.dumps(filled)}}}'.encode()
        case _:
            words = [f"{chance.randrange(10**6):06}" for _ in range(size // 9)]
            return json.dumps({"jobId": "".join(words[:30]), "to": words}).encode()


def _local(number: int) -> str:
    return f"f{number}-{crc32(str(number).encode()):08x}"


def _code(number: int) -> str:
    return f"K7{number:06}Q"


def _pieces(chance: random.Random, code: str) -> Any:
    cuts = sorted(chance.sample(range(1, len(code)), chance.randrange(1, len(code))))
    pieces = [code[start:end] for start, end in pairwise((0, *cuts, len(code)))]
    match chance.randrange(4):
        case 0:
            return pieces
        case 1:
            return {str(at): piece for at, piece in enumerate(pieces)}
        case 2:
            return {"length": len(code), "digits": [pieces[:2], *pieces[2:]]}
        case _:
            return [json.dumps(pieces)]


def _name(chance: random.Random) -> str:
    return chance.choice(("x-a", "x-trace", "user", "123456", "a@b.c", "\u00e9", "x" * 100))


def _value(chance: random.Random, depth: int) -> Any:
    kind = chance.randrange(10 if depth else 8)
    match kind:
        case 0:
            return chance.choice((None, True, False))
        case 1:
            return chance.randrange(-(2**40), 2**40)
        case 2:
            return chance.random() * 10 ** chance.randrange(-5, 20)
        case 3 | 4 | 5:
            return chance.choice(_WORDS) * chance.choice((0, 1, 1, 2, 30))
        case 6:
            return chance.randrange(10)
        case 7:
            return "".join(map(chr, (chance.randrange(1, 0xD7FF) for _ in range(chance.randrange(12)))))
        case 8:
            return [_value(chance, depth - 1) for _ in range(chance.randrange(5))]
        case _:
            return {_name(chance): _value(chance, depth - 1) for _ in range(chance.randrange(5))}


async def main() -> None:
    """Fuzz, and print the result."""
    seed = int(os.environ.get("FUZZ_SEED") or random.SystemRandom().randrange(10**6))
    count = int(os.environ.get("FUZZ_BODIES") or 100_000)
    sys.stdout.write(f"{count} messages, FUZZ_SEED={seed}\n")
    sys.stdout.flush()
    url = os.environ.get("OTP_TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672/")
    with tempfile.TemporaryDirectory(prefix="otp-fuzz-") as folder:
        async with set_stage(url, Path(folder), tidy=False) as stage:
            try:
                report = await fuzz(stage, count, seed)
            finally:
                for worker in stage.workers:
                    await worker.kill()
                await stage.rabbit.tidy()
    twice = [f"{number}: {mails} mails, {dead} dead letters" for number, (mails, dead) in report.twice.items()]
    sys.stdout.write("\n".join([str(report), *twice[:10], *report.ledger.leaks[:10], ""]))
    sys.exit(bool(report.twice or report.ledger.leaks or report.ledger.ended != count or report.blocked_ms > _BLOCK_MS))


if __name__ == "__main__":
    asyncio.run(main())
