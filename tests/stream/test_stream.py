"""The stream on FastStream's in-memory broker: what each message becomes, without a server."""

import json
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
from faststream import AckPolicy
from faststream.rabbit import RabbitMessage, RabbitQueue, TestRabbitBroker

from otp_stream.broker import OtpBroker, RabbitConfig, open_broker
from otp_stream.broker.arrival import Arrival
from otp_stream.broker.mac import sign
from otp_stream.core.backoff import Backoff
from otp_stream.core.decision import Ack, Dead, Retry
from otp_stream.core.mail import Mail
from otp_stream.core.outcome import Accepted, Deferred, Outcome, Rejected, Reply
from otp_stream.delivery import Delivery
from otp_stream.tables import Asker, MemoryTables, Tables

BACKOFF = Backoff(1000, 30000, 3)
REPLIES: dict[str, Outcome] = {
    "later": Deferred(Reply(451, "4.3.0", "try later", "rcpt")),
    "nobody": Rejected(Reply(550, "5.1.1", "no such user", "rcpt")),
}
TRACE_PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
JOB = {"email": "user@example.com", "otp": "123456", "jobId": "j-1"}


@dataclass
class Scene:
    """Relay, mailroom and watch in one fake, and whatever the stream published."""

    sent: list[str] = field(default_factory=list)
    settled_: list[Any] = field(default_factory=list)
    refused: list[Dead] = field(default_factory=list)
    retries: list[RabbitMessage] = field(default_factory=list)
    dead: list[RabbitMessage] = field(default_factory=list)

    def compose(self, job: Any) -> Mail:
        return Mail(job.ask.email, b"")

    async def send(self, mail: Mail, **_: Any) -> Outcome:
        self.sent.append(mail.recipient)
        return REPLIES.get(mail.recipient.split("@")[0], Accepted(Reply(250, None, "ok", "body")))

    def job(self, job: Any, carrier: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def step(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def met(self, job: Any, outcome: Outcome) -> None: ...

    def settled(self, job: Any, settlement: Any) -> None:
        self.settled_.append(settlement)

    def unsettled(self, job: Any, settlement: Any) -> None:
        raise AssertionError("nothing is left unsettled here")

    def refuse(self, lane: str, job_id: str, settlement: Dead) -> None:
        self.refused.append(settlement)


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
async def broker(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OtpBroker]:
    monkeypatch.setattr(Arrival, "alive", True)  # the in-memory broker's channels are mocks, always "closed"
    tables = Tables(Asker(b"k"), MemoryTables((), sent_ttl_ms=86_400_000, sent_limit=1_000))
    delivery = Delivery(scene, scene, tables, scene, BACKOFF, fraction=lambda: 0.5)
    config = RabbitConfig(
        url="amqp://localhost/",
        shown_url="amqp://localhost/",
        queue="jobs",
        prefix="otp",
        window=10,
        backoff=BACKOFF,
        default_expiry_minutes=15,
        hash_key=b"k" * 32,
    )
    broker = open_broker(config, deliver=delivery, made=tables, refused=scene.refuse, inject=lambda _: None)

    async def as_it_came(message: RabbitMessage) -> bytes:
        return message.body

    def keep_in(kept: list[RabbitMessage]) -> Any:
        async def keep(_: bytes) -> None:
            kept.append(broker.context.get_local("message"))

        return keep

    wait = RabbitQueue("wait", routing_key="1150")
    for queue, exchange, kept in (("otp.dead", None, scene.dead), (wait, broker.topology.retry, scene.retries)):
        subscribe = broker.subscriber(queue, exchange, ack_policy=AckPolicy.MANUAL, decoder=as_it_came)
        subscribe(keep_in(kept))
    async with TestRabbitBroker(broker):
        yield broker


async def test_a_job_is_sent_and_acknowledged(broker: OtpBroker, scene: Scene) -> None:
    await broker.publish(json.dumps(JOB).encode(), "jobs")
    assert scene.sent == ["user@example.com"]
    assert scene.settled_ == [Ack("sent")]


async def test_a_job_that_was_sent_is_not_sent_again(broker: OtpBroker, scene: Scene) -> None:
    await broker.publish(json.dumps(JOB).encode(), "jobs")
    await broker.publish(json.dumps(JOB).encode(), "jobs.high")
    assert scene.sent == ["user@example.com"]
    assert scene.settled_ == [Ack("sent"), Ack("duplicate")]


async def test_a_deferred_job_goes_to_its_wait_with_the_attempt_counted_and_unknown_keys_kept(
    broker: OtpBroker, scene: Scene
) -> None:
    ask = JOB | {"email": "later@example.com", "colour": "blue"}
    await broker.publish(json.dumps(ask).encode(), "jobs", headers={"traceparent": TRACE_PARENT, "x-death": "old"})
    assert scene.settled_ == [Retry(1150, 1, "451 4.3.0 try later (to RCPT)")]
    (retry,) = scene.retries
    assert json.loads(retry.body) == ask | {"retryCount": 1}
    assert retry.headers["x-otp-attempt"] == 1
    assert retry.headers["x-otp-job-id"] == "j-1"
    assert retry.headers["traceparent"] == TRACE_PARENT
    assert "x-death" not in retry.headers


async def test_a_traceparent_of_the_wrong_type_costs_no_code(broker: OtpBroker, scene: Scene) -> None:
    await broker.publish(json.dumps(JOB).encode(), "jobs", headers={"traceparent": b"00"})
    assert scene.settled_ == [Ack("sent")]


async def test_the_last_attempt_leaves_a_dead_letter(broker: OtpBroker, scene: Scene) -> None:
    ask = JOB | {"email": "later@example.com"}
    body = json.dumps(ask).encode()
    headers: dict[str, Any] = {"x-otp-attempt": 3}
    sign(headers, body, b"k" * 32)
    await broker.publish(body, "otp.retry.due", headers=headers)
    (letter,) = scene.dead
    assert letter.headers["x-otp-reason"] == "retries_exhausted"
    assert letter.headers["x-otp-attempt"] == 4


async def test_a_rejected_job_leaves_a_dead_letter_with_the_body_as_it_came(broker: OtpBroker, scene: Scene) -> None:
    body = json.dumps(JOB | {"email": "nobody@example.com"}, indent=3).encode()
    await broker.publish(body, "jobs")
    (letter,) = scene.dead
    assert letter.body == body
    assert letter.headers["x-otp-reason"] == "rejected"
    assert letter.headers["x-otp-error"] == "550 5.1.1 no such user (to RCPT)"
    assert letter.headers["x-otp-attempt"] == 1
    assert letter.headers["x-otp-died-at"] >= letter.headers["x-otp-first-seen"]


@pytest.mark.parametrize(
    ("body", "headers", "named"),
    [
        (b"\xff\xfe", {}, "body"),
        (b'{"email": "user@example.com", "otp": 123456}', {}, "otp"),
        (b"[" * 50_000, {}, "body"),
        (b" " * 70_000, {}, "body"),
    ],
    ids=["no text", "code as a number", "deep", "large"],
)
async def test_what_is_no_job_is_laid_aside_as_it_came(
    broker: OtpBroker, scene: Scene, body: bytes, headers: dict[str, Any], named: str
) -> None:
    await broker.publish(body, "jobs", headers=headers)
    (letter,) = scene.dead
    assert letter.body == body
    assert letter.headers["x-otp-reason"] == "malformed"
    assert letter.headers["x-otp-error"].startswith(f"{named}: ")
    assert "123456" not in str(letter.headers)
    assert scene.refused == [Dead("malformed", letter.headers["x-otp-error"], 0)]
    assert not scene.sent


@pytest.mark.parametrize("queue", ["jobs", "otp.retry.due"])
async def test_headers_of_ours_are_not_believed_unless_we_wrote_them(
    broker: OtpBroker, scene: Scene, queue: str
) -> None:
    forged = {"x-otp-attempt": 3, "x-otp-job-id": "other", "x-otp-first-seen": 1}
    ask = JOB | {"email": "later@example.com"}
    await broker.publish(json.dumps(ask).encode(), queue, headers=forged)
    (retry,) = scene.retries
    assert retry.headers["x-otp-attempt"] == 1
    assert retry.headers["x-otp-job-id"] == "j-1"
    assert retry.headers["x-otp-first-seen"] > 1
