"""Settlements: published until the broker confirms, and acknowledged only then."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from aio_pika import Message
from aio_pika.exceptions import AMQPError, DeliveryError
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import AMQPError as WireError
from aiormq.exceptions import ChannelInvalidStateError
from deliveries import BODY, Deliveries, Publishing
from pamqp.commands import Basic
from pamqp.header import ContentHeader
from structlog.testing import capture_logs

from otp_stream.broker import settle as settle_module
from otp_stream.broker.job_message import JobMessage, no_keys
from otp_stream.broker.settle import Settler, acknowledge
from otp_stream.broker.topology import Topology
from otp_stream.clock import now_ms
from otp_stream.core.backoff import Backoff
from otp_stream.core.decision import Ack, Dead, Final, Park, Retry
from otp_stream.core.job import Job
from otp_stream.core.messaging import Destination
from otp_stream.core.otp_job import OtpJob

BACKOFF = Backoff(1000, 30000, 3)
PUBLISHED = [Retry(1100, 3, "451 later"), Park(5_200), Dead("rejected", "550 no", 3)]


@dataclass
class Scene:
    publish: Publishing = field(default_factory=Publishing)
    deliveries: Deliveries = field(default_factory=Deliveries)
    repairs: list[str] = field(default_factory=list[str])

    @property
    def settler(self) -> Settler:
        return Settler(
            Topology("jobs", "otp", BACKOFF),
            BACKOFF,
            self.publish,
            self.repairs.append,
            b"k" * 32,
            no_keys,
        )

    async def settle(self, settlement: Final, message: JobMessage | None = None) -> bool:
        message = message or self.deliveries.message(headers={"tenant": "t1"})
        async with asyncio.timeout(5):
            return await self.settler.settle(message, settlement, job_id="j-1", job=job())


def job(attempts_made: int = 2) -> Job:
    return Job.from_request(
        OtpJob.from_bytes(BODY), job_id="j-1", lane="jobs", first_seen_ms=now_ms(), attempts_made=attempts_made,
        default_expiry_minutes=15,
    )  # fmt: skip


def returned() -> DeliveryError:
    """Return what aio-pika raises for a message that came back: it quotes the message."""
    header = ContentHeader(body_size=len(BODY), properties=Basic.Properties())
    frame = Basic.Return(312, "NO_ROUTE", "", "jobs")
    came = DeliveredMessage(delivery=frame, header=header, body=BODY, channel=None)  # type: ignore[arg-type]
    return DeliveryError(came, frame)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(settle_module, "_PAUSES_S", (0.0, 0.001))
    return Scene()


async def test_an_error_of_a_publish_is_logged_without_a_text_that_may_quote_the_message(scene: Scene) -> None:
    quoting = [RuntimeError(BODY), OSError(5, BODY.decode()), TimeoutError(BODY)]
    scene.publish.ends.extend(quoting)
    with capture_logs() as logs:
        assert await scene.settle(Park(5_200))
    assert [line["error"] for line in logs] == ["RuntimeError", "OSError", "TimeoutError"]
    code = json.loads(BODY)["otp"]
    assert code not in f"{logs}{scene.repairs}"


async def test_a_job_that_ended_well_is_acknowledged_and_nothing_is_published(scene: Scene) -> None:
    assert await scene.settle(Ack("sent"))
    assert (scene.deliveries.acked, scene.publish.tries) == ([1], [])


@pytest.mark.parametrize("settlement", PUBLISHED)
async def test_nothing_is_acknowledged_before_its_publish_is_confirmed(scene: Scene, settlement: Final) -> None:
    scene.publish.confirmed.clear()
    settling = asyncio.create_task(scene.settle(settlement))
    async with asyncio.timeout(5):
        await scene.publish.begun.wait()
    assert scene.deliveries.acked == []
    scene.publish.confirmed.set()
    assert await settling
    assert scene.deliveries.acked == [1]
    assert len(scene.publish.tries) == 1


@pytest.mark.parametrize(
    ("settlement", "exchange", "routing_key", "attempt"),
    [
        (Retry(1000, 3, "451 later"), "otp.retry", str(BACKOFF.wait_ms(1000)), 3),
        (Retry(1003, 3, "451 later"), "otp.retry", str(BACKOFF.wait_ms(1003)), 3),
        (Park(5_200), "otp.retry", "5200", 2),
        (Dead("rejected", "550 no", 3), "", "otp.dead", 3),
    ],
)
async def test_each_settlement_goes_where_it_belongs_with_its_attempts(
    scene: Scene, settlement: Final, exchange: str, routing_key: str, attempt: int
) -> None:
    assert await scene.settle(settlement)
    (only,) = scene.publish.tries
    assert (only.exchange, only.routing_key, only.headers["x-otp-attempt"]) == (exchange, routing_key, attempt)
    assert (only.headers["x-otp-job-id"], only.headers["tenant"], only.delivery_mode) == ("j-1", "t1", 2)
    if exchange:
        assert int(routing_key) in BACKOFF.retry_delays_ms
        assert json.loads(only.body)["retryCount"] == attempt
    else:
        assert only.body == BODY


async def test_a_retry_of_a_mail_that_may_have_been_taken_names_the_relay(scene: Scene) -> None:
    assert await scene.settle(Retry(1000, 1, "lost", "relay:25"))
    assert scene.publish.tries[0].headers["x-otp-uncertain"] == "relay:25"


@pytest.mark.parametrize("settlement", PUBLISHED)
@pytest.mark.parametrize(
    "error",
    [
        returned(),
        TimeoutError(),
        ConnectionResetError("reset"),
        RuntimeError("closed"),
        AMQPError("no"),
        WireError("no"),
        ChannelInvalidStateError("closed"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_publish_that_was_not_confirmed_is_repeated_as_it_was_over_another_channel(
    scene: Scene, settlement: Final, error: Exception
) -> None:
    scene.publish.ends.extend([error] * 5)
    with capture_logs() as logs:
        assert await scene.settle(settlement)
    first, *repeats = scene.publish.tries
    assert not first.new_channel
    assert len(repeats) == 5
    for repeat in repeats:
        assert repeat.new_channel
        assert (repeat.exchange, repeat.routing_key) == (first.exchange, first.routing_key)
        assert (repeat.body, repeat.headers, repeat.delivery_mode) == (first.body, first.headers, 2)
        assert repeat.message.message_id == first.message.message_id
    assert scene.deliveries.acked == [1]
    assert len(scene.repairs) == len([it for it in logs if it["event"] == "publish not confirmed"]) == 5
    assert "123456" not in str(logs) + str(scene.repairs)
    assert "user@" not in str(logs) + str(scene.repairs)


@pytest.mark.parametrize("settlement", PUBLISHED)
async def test_a_message_that_the_broker_took_back_is_neither_published_again_nor_acknowledged(
    scene: Scene, settlement: Final
) -> None:
    def lost() -> None:
        scene.deliveries.is_closed = True
        raise ConnectionResetError("lost")

    scene.publish.ends.extend([TimeoutError(), lost])
    with capture_logs() as logs:
        assert not await scene.settle(settlement)
    assert {it["event"] for it in logs} == {"publish not confirmed"}  # and no acknowledgement was tried
    assert len(scene.publish.tries) == 2
    assert scene.deliveries.acked == []


async def test_a_message_that_the_broker_has_already_taken_back_is_not_published(scene: Scene) -> None:
    scene.deliveries.is_closed = True
    assert not await scene.settle(PUBLISHED[0])
    assert scene.publish.tries == []


async def test_a_fault_that_no_broker_can_cause_is_raised_and_nothing_is_acknowledged(scene: Scene) -> None:
    scene.publish.ends.append(ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        await scene.settle(PUBLISHED[0])
    assert scene.deliveries.acked == []


async def test_a_renewed_message_is_the_same_and_is_acknowledged_once_confirmed(scene: Scene) -> None:
    message = scene.deliveries.message(message_id="m", headers={"x-delivery-count": 3, "tenant": "t1"})
    scene.publish.confirmed.clear()
    scene.publish.ends.append(TimeoutError())
    renewing = asyncio.create_task(scene.settler.renew(message, "jobs"))
    async with asyncio.timeout(5):
        await scene.publish.begun.wait()
    assert scene.deliveries.acked == []
    scene.publish.confirmed.set()
    assert await renewing == "renewed"
    assert scene.deliveries.acked == [1]
    for one in scene.publish.tries:
        assert (one.exchange, one.routing_key, one.body, one.delivery_mode) == ("", "jobs", BODY, 2)
        assert (one.headers, one.message.message_id) == ({"tenant": "t1"}, "m")
    assert [one.new_channel for one in scene.publish.tries] == [False, True]


async def test_a_message_that_could_not_be_renewed_is_not_acknowledged(scene: Scene) -> None:
    scene.deliveries.is_closed = True
    assert await scene.settler.renew(scene.deliveries.message(), "jobs") == "taken_back"
    assert (scene.deliveries.acked, scene.publish.tries) == ([], [])


async def test_at_a_stop_a_classic_queue_takes_a_message_back(scene: Scene) -> None:
    await scene.settler.give_back(scene.deliveries.message(), "jobs", counts_returns=False)
    assert (scene.deliveries.nacked, scene.deliveries.acked, scene.publish.tries) == ([(1, True)], [], [])


async def test_at_a_stop_a_body_that_was_not_kept_is_returned_and_never_replaced(scene: Scene) -> None:
    message = scene.deliveries.message(b"", dropped=2_000_000)
    await scene.settler.give_back(message, "jobs", counts_returns=True)
    assert (scene.deliveries.nacked, scene.publish.tries) == ([(1, True)], [])


async def test_at_a_stop_a_quorum_queue_gets_a_new_message(scene: Scene) -> None:
    await scene.settler.give_back(scene.deliveries.message(lane="due"), "otp.retry.due", counts_returns=True)
    assert [one.routing_key for one in scene.publish.tries] == ["otp.retry.due"]
    assert (scene.deliveries.nacked, scene.deliveries.acked) == ([], [1])


@pytest.mark.parametrize("error", [ConnectionResetError(), WireError("closed"), asyncio.CancelledError()])
async def test_at_a_stop_a_message_that_cannot_go_back_goes_back_with_the_connection(
    scene: Scene, error: BaseException
) -> None:
    scene.deliveries.nack_error = error
    await scene.settler.give_back(scene.deliveries.message(), "jobs", counts_returns=False)
    assert (scene.deliveries.nacked, scene.deliveries.acked) == ([], [])


async def test_a_stop_does_not_wait_for_a_broker_that_confirms_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle_module, "GIVE_BACK_S", 0.05)
    scene.publish.confirmed.clear()
    async with asyncio.timeout(5):
        await scene.settler.give_back(scene.deliveries.message(lane="due"), "otp.retry.due", counts_returns=True)
    assert scene.deliveries.acked == []


async def test_an_acknowledgement_that_is_lost_with_its_channel_is_reported_and_no_error(scene: Scene) -> None:
    scene.deliveries.is_closed = True
    with capture_logs() as logs:
        assert await scene.settle(Ack("sent"))
    assert [it["event"] for it in logs] == ["acknowledgement lost, the job is redelivered"]


async def test_an_acknowledgement_that_is_cancelled_with_its_connection_is_no_cancellation_of_the_job() -> None:
    class Came:
        async def ack(self) -> None:
            raise asyncio.CancelledError

    came: Any = Came()
    with capture_logs() as logs:
        await acknowledge(JobMessage(came, "jobs", Destination("jobs"), 1_000))
    assert len(logs) == 1


async def test_a_message_that_is_published_for_us_survives_a_restart_of_the_broker(scene: Scene) -> None:
    for settlement in PUBLISHED:
        assert await scene.settle(settlement)
    assert [one.delivery_mode for one in scene.publish.tries] == [2, 2, 2]
    expirations = [one.message.expiration for one in scene.publish.tries if isinstance(one.message, Message)]
    assert expirations == [None, None, 7 * 86_400]  # only a dead letter is deleted, when its retention ends
