"""What a lane does with each message: its job to the delivery, its end to the broker, and at a stop the rest back."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
from aio_pika.exceptions import DeliveryError
from deliveries import BODY, Deliveries, MadeIds, NoTelemetry, Publishing, searched
from faststream.rabbit.publisher import RabbitPublisher
from pamqp import commands
from structlog.testing import capture_logs

from otp_stream.broker import incoming as incoming_module
from otp_stream.broker import lane as lane_module
from otp_stream.broker import settle as settle_module
from otp_stream.broker.events import Events
from otp_stream.broker.headers import sign, verified
from otp_stream.broker.incoming import IncomingJob, Moved, Shared
from otp_stream.broker.job_message import Reader, no_keys
from otp_stream.broker.lane import RENEW_AT, LaneConsumer
from otp_stream.broker.message import Delivered
from otp_stream.broker.settle import Settler
from otp_stream.broker.topology import Topology
from otp_stream.core.backoff import Backoff
from otp_stream.core.decision import Ack, Dead, Final, Park, Retry
from otp_stream.core.job import Job, Lane
from otp_stream.core.otp_job import OtpJob

BACKOFF = Backoff(1000, 30000, 3)
LATER = Retry(1100, 1, "451 later (to RCPT)")
DEAD = Dead("rejected", "550 no", 1)
KEY = b"k" * 32
FORGED = {"x-otp-attempt": 2, "x-otp-job-id": "ours", "x-otp-first-seen": 5, "x-otp-uncertain": "relay:25"}


def signed(headers: dict[str, Any], body: bytes = BODY) -> dict[str, Any]:
    signed = dict(headers)
    sign(signed, body, KEY)
    return signed


@dataclass
class Scene:
    """One lane, with a fake delivery that settles each job by `settlement`."""

    lane: Lane = "jobs"
    settlement: Final = field(default_factory=lambda: Ack("sent"))
    publish: Publishing = field(default_factory=Publishing)
    deliveries: Deliveries = field(default_factory=Deliveries)
    events: Events = field(default_factory=lambda: Events(cast("RabbitPublisher", None), NoTelemetry(), enabled=True))
    jobs: list[Job] = field(default_factory=list[Job])
    telemetry: NoTelemetry = field(default_factory=NoTelemetry)
    made: MadeIds = field(default_factory=MadeIds)
    instead: Callable[[Job, IncomingJob], Awaitable[None]] | None = None
    """What the delivery does in place of settling."""
    is_quorum: bool = False

    def __post_init__(self) -> None:
        topology = Topology("jobs", "otp", BACKOFF)
        settler = Settler(topology, BACKOFF, self.publish, lambda _: None, KEY, no_keys)
        reader = Reader(15, KEY, self.made)
        self.shared = Shared(reader, settler, self.events, self.telemetry, KEY)
        self.consumer = LaneConsumer(self.lane, topology.lanes[self.lane], 10, self.shared, self.handle)
        self.consumer.counts_returns |= self.is_quorum

    async def handle(self, incoming: IncomingJob) -> None:
        job = await incoming.accept(incoming.shared.reader.read(incoming.message.raw.body))
        if job is None:
            return
        self.jobs.append(job)
        if self.instead is not None:
            await self.instead(job, incoming)
        else:
            await incoming(self.settlement)

    @property
    def refused(self) -> list[tuple[Lane, str, Dead]]:
        return self.telemetry.refused

    def receive(self, body: bytes = BODY, *, redelivered: bool = False, **properties: Any) -> Delivered:
        message = self.deliveries.delivered(body, redelivered=redelivered, **properties)
        self.consumer.dispatch(message)
        return message

    async def until(self, condition: Callable[[], bool], what: str = "end of every job") -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - a plain field, as the lane shows it
                await asyncio.sleep(0.001)

    async def bring(self, body: bytes = BODY, *, redelivered: bool = False, **properties: Any) -> None:
        """Receive a message, and wait for its end."""
        self.receive(body, redelivered=redelivered, **properties)
        await self.until(lambda: self.consumer.state.unacked == 0)

    def published_events(self) -> list[dict[str, Any]]:
        queue = self.events._queue
        return [queue.get_nowait().event.content for _ in range(queue.qsize())]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle_module, "_PAUSES_S", (0.0,))


def lost(scene: Scene) -> Callable[[], None]:
    def lose() -> None:
        scene.deliveries.is_closed = True
        raise ConnectionResetError("lost")

    return lose


async def quote(_: Job, incoming: IncomingJob) -> None:
    raise ValueError(incoming.message.raw.body)


async def test_a_message_whose_settlement_raises_is_requeued_and_the_log_has_the_type_of_the_error_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lane_module, "_REQUEUE_AFTER_S", 0.01)
    scene = Scene(instead=quote)
    scene.publish.ends.append(LookupError(BODY))
    with capture_logs() as logs:
        await scene.bring()
    assert [(line["event"], line["error"]) for line in logs] == [
        ("job crashed", "ValueError"), ("job could not be settled", "LookupError"),
    ]  # fmt: skip
    assert (caplog.records, scene.deliveries.acked, scene.deliveries.nacked) == ([], [], [(1, True)])
    assert scene.consumer.state.ended == {"requeued": 1}
    await scene.bring(redelivered=True)
    assert [it.routing_key for it in scene.publish.tries] == ["otp.dead", "otp.dead"]
    assert scene.deliveries.acked == [2]


@pytest.mark.parametrize("settlement", [Ack("sent"), DEAD, LATER])
async def test_only_one_large_message_is_read_or_settled_in_a_turn_of_the_event_loop(settlement: Final) -> None:
    scene = Scene(settlement=settlement)
    turns: Counter[int] = Counter()
    turn = 0

    def count(*_: object) -> None:
        turns[turn] += 1

    async def settle(_: Job, incoming: IncomingJob) -> None:
        count()
        if len(scene.jobs) == 10:
            together.set()
        await together.wait()  # as at the end of an outage
        await incoming(settlement)

    together = asyncio.Event()
    scene.instead = settle
    scene.publish.ends.extend([count] * 10)
    body = json.dumps(json.loads(BODY) | {"x": "x" * 3_000}).encode()
    for number in range(10):
        scene.receive(body, headers={"baggage": "b" * 3_000} if number % 2 else None)
    async with asyncio.timeout(5):
        while scene.consumer.state.unacked:
            await asyncio.sleep(0)
            turn += 1
    assert len(scene.jobs) == 10
    assert max(turns.values()) == 1


async def test_a_message_whose_settlement_raises_is_not_requeued_at_once() -> None:
    scene = Scene(instead=quote)
    scene.publish.ends.append(LookupError())
    scene.receive()
    await scene.until(lambda: len(scene.publish.tries) == 1)
    await asyncio.sleep(0.05)
    assert (scene.consumer.state.unacked, scene.deliveries.nacked) == (1, [])
    scene.consumer.stop()
    async with asyncio.timeout(5):
        assert await scene.consumer.drain(lambda: True) == 1
    assert scene.deliveries.nacked == [(1, True)]


async def test_a_message_that_was_returned_often_and_cannot_be_renewed_stays_unacked() -> None:
    # a few more returns, and a quorum queue would drop it
    scene = Scene(is_quorum=True)
    scene.publish.ends.append(LookupError())
    await scene.bring(headers={"x-delivery-count": RENEW_AT})
    assert (scene.deliveries.acked, scene.deliveries.nacked, scene.consumer.state.ended) == ([], [], {})


async def test_a_job_is_delivered_settled_and_reported_once() -> None:
    scene = Scene()
    await scene.bring()
    assert [job.id for job in scene.jobs] == ["j-1"]
    assert scene.deliveries.acked == [1]
    assert scene.consumer.state.ended == {"ack": 1}
    assert [it["outcome"] for it in scene.published_events()] == ["sent"]


async def test_no_event_reports_a_settlement_that_failed() -> None:
    scene = Scene(settlement=LATER)
    scene.publish.ends.append(lost(scene))
    await scene.bring()
    assert scene.published_events() == []
    assert scene.deliveries.acked == []
    assert scene.consumer.state.ended == {"taken_back": 1}


async def test_without_events_none_is_kept() -> None:
    scene = Scene()
    scene.events.enabled = False
    await scene.bring()
    assert scene.published_events() == []


async def test_a_body_that_was_not_kept_becomes_a_stub_however_often_it_was_redelivered() -> None:
    scene = Scene()
    size = 120 * 1024 * 1024
    # a producer may have written the code to any header or property
    headers = {"a": "739154", "x-delivery-count": RENEW_AT}
    await scene.bring(b"", dropped=size, content_encoding="gzip", correlation_id="739154", headers=headers)
    (dead_letter,) = scene.publish.tries
    error = f"body: {size} bytes; the maximum is 65536"
    assert (dead_letter.exchange, dead_letter.routing_key) == ("", "otp.dead")
    assert json.loads(dead_letter.body) == {
        "reason": "malformed", "error": f"{error}; the body was not kept", "originalSize": size,
    }  # fmt: skip
    assert (dead_letter.headers["x-otp-reason"], dead_letter.headers["x-otp-error"]) == ("malformed", error)
    assert (dead_letter.message.content_type, dead_letter.message.content_encoding) == ("application/json", None)
    assert "a" not in dead_letter.headers
    assert dead_letter.message.correlation_id is None
    assert scene.deliveries.acked == [1]


# messages that came back


@pytest.mark.parametrize("lane", ["jobs", "due"])
async def test_a_message_that_was_returned_too_often_is_renewed_and_not_delivered(lane: Lane) -> None:
    scene = Scene(lane, is_quorum=True)
    await scene.bring(headers={"x-delivery-count": RENEW_AT, "x-otp-attempt": 1})
    (renewed,) = scene.publish.tries
    assert (renewed.exchange, renewed.routing_key) == ("", scene.consumer.queue)
    assert (renewed.body, renewed.headers) == (BODY, {"x-otp-attempt": 1})
    assert (scene.jobs, scene.deliveries.acked) == ([], [1])
    assert scene.consumer.state.ended == {"renewed": 1}


async def test_a_message_that_was_returned_less_often_is_delivered() -> None:
    scene = Scene()
    await scene.bring(headers={"x-delivery-count": RENEW_AT - 1}, redelivered=True)
    assert [job.suspect for job in scene.jobs] == [True]


async def test_a_classic_queue_counts_no_returns_whatever_a_producer_writes() -> None:
    scene = Scene()
    await scene.bring(headers={"x-delivery-count": 99}, redelivered=True)
    assert len(scene.jobs) == 1
    assert scene.consumer.state.ended == {"ack": 1}


async def test_a_message_that_a_full_queue_refuses_is_delivered() -> None:
    # each job in flight would wait for room that only its own end makes
    scene = Scene(is_quorum=True)
    scene.publish.ends.append(DeliveryError(None, commands.Basic.Nack()))
    await scene.bring(headers={"x-delivery-count": RENEW_AT})
    assert len(scene.jobs) == len(scene.publish.tries) == 1
    assert scene.consumer.state.ended == {"ack": 1}


async def test_a_message_that_could_not_be_renewed_is_left_to_the_broker() -> None:
    scene = Scene(is_quorum=True)
    scene.publish.ends.append(lost(scene))
    await scene.bring(headers={"x-delivery-count": RENEW_AT})
    assert (scene.jobs, scene.deliveries.acked) == ([], [])
    assert scene.consumer.state.ended == {"taken_back": 1}


# the copy of an attempt that has ended in another queue, whose acknowledgement was lost


@pytest.mark.parametrize("settlement", [LATER, DEAD])
async def test_the_copy_of_an_attempt_that_was_moved_is_acknowledged_and_not_delivered(settlement: Final) -> None:
    scene = Scene(settlement=settlement)
    await scene.bring()
    assert scene.deliveries.acked == [1]
    scene.deliveries = scene.deliveries.reconnected()
    await scene.bring(redelivered=True)
    assert len(scene.jobs) == len(scene.publish.tries) == 1
    assert scene.deliveries.acked == [1]
    assert scene.consumer.state.ended["ack"] == 1


@pytest.mark.parametrize("settlement", [LATER, DEAD])
async def test_a_job_that_was_published_again_and_comes_back_from_another_worker_is_delivered(
    settlement: Final,
) -> None:
    scene = Scene(settlement=settlement)
    await scene.bring()
    await scene.bring(redelivered=True)  # not the first message: its acknowledgement went through this open channel
    assert len(scene.jobs) == len(scene.publish.tries) == 2
    assert scene.deliveries.acked == [1, 2]


async def test_the_replay_of_a_dead_letter_is_not_taken_for_its_first_message() -> None:
    scene = Scene("due", settlement=DEAD)
    await scene.bring(headers=signed({"x-otp-attempt": 0}))
    scene.deliveries = scene.deliveries.reconnected()
    await scene.bring(headers=signed({"x-otp-attempt": 0, "x-otp-replayed-at": 5}), redelivered=True)
    assert len(scene.jobs) == 2
    scene.deliveries = scene.deliveries.reconnected()
    await scene.bring(headers=signed({"x-otp-attempt": 0, "x-otp-replayed-at": 5}), redelivered=True)
    assert len(scene.jobs) == 2


async def test_the_copy_of_a_parked_job_is_delivered() -> None:
    # it may have left its wait and be on its way by now, but no attempt was made
    scene = Scene(settlement=Park(5_200))
    await scene.bring()
    await scene.bring(redelivered=True)
    assert len(scene.jobs) == 2


async def test_a_message_that_the_broker_does_not_mark_as_returned_is_a_new_job() -> None:
    scene = Scene(settlement=LATER)
    await scene.bring()
    await scene.bring()
    assert len(scene.jobs) == 2


async def test_the_next_attempt_of_a_job_that_was_moved_is_delivered() -> None:
    scene = Scene("due", settlement=LATER)
    await scene.bring(headers=signed({"x-otp-attempt": 1}))
    await scene.bring(headers=signed({"x-otp-attempt": 2}), redelivered=True)
    assert [job.attempts_made for job in scene.jobs] == [1, 2]


async def test_a_settlement_that_failed_leaves_the_copy_to_be_delivered() -> None:
    scene = Scene(settlement=LATER)
    scene.publish.ends.append(lost(scene))
    await scene.bring()
    scene.deliveries.is_closed = False
    await scene.bring(redelivered=True)
    assert len(scene.jobs) == 2
    assert len(scene.deliveries.acked) == 1


LOST = Deliveries().message()
"""A message whose channel is closed."""
cast("Deliveries", LOST.raw.channel).is_closed = True


def moved_job(job_id: str, attempts_made: int = 0) -> Job:
    request = OtpJob.from_bytes(BODY)
    return Job.from_request(
        request, job_id=job_id, lane="jobs", first_seen_ms=1, attempts_made=attempts_made, default_expiry_minutes=15,
        suspect=True,
    )  # fmt: skip


def test_an_attempt_that_was_moved_is_known_once_and_for_two_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(incoming_module, "monotonic", lambda: now)
    moved = Moved()
    moved.add(moved_job("a", 1), LOST)
    assert not moved.knows(moved_job("a", 0))
    assert moved.knows(moved_job("a", 1))
    assert not moved.knows(moved_job("a", 1))
    moved.add(moved_job("a", 1), LOST)
    now += 119
    assert moved.knows(moved_job("a", 1))
    moved.add(moved_job("a", 1), LOST)
    now += 121
    assert not moved.knows(moved_job("a", 1))


def test_of_too_many_attempts_that_were_moved_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming_module, "_MOVED_LIMIT", 2)
    moved = Moved()
    for name in "abc":
        moved.add(moved_job(name), LOST)
    assert [moved.knows(moved_job(name)) for name in "abc"] == [False, True, True]


# what must not happen, and what must not keep a message


async def test_a_job_that_crashes_is_dead_lettered_and_neither_log_nor_header_quotes_it() -> None:
    async def crash(job: Job, settle: IncomingJob) -> None:
        raise ValueError(f"{job.request.email} {job.request.otp}")

    scene = Scene(instead=crash)
    with capture_logs() as logs:
        await scene.bring()
    (dead_letter,) = scene.publish.tries
    assert (dead_letter.routing_key, dead_letter.body) == ("otp.dead", BODY)
    assert dead_letter.headers["x-otp-reason"] == "crashed"
    assert dead_letter.headers["x-otp-error"] == "internal error: ValueError"
    assert scene.deliveries.acked == [1]
    assert [(job_id, dead.reason) for job_id, dead in scene.telemetry.settled] == [("j-1", "crashed")]
    shown = str(logs) + searched(dead_letter.headers) + str(scene.published_events())
    assert "job crashed" in shown
    assert "123456" not in shown
    assert "user@" not in shown


async def test_a_job_that_crashes_after_its_settlement_is_not_settled_again() -> None:
    async def crash(job: Job, settle: IncomingJob) -> None:
        assert await settle(Ack("sent"))
        raise ValueError

    scene = Scene(instead=crash)
    await scene.bring()
    assert (scene.publish.tries, scene.deliveries.acked) == ([], [1])
    assert scene.consumer.state.ended == {"ack": 1}


@pytest.mark.parametrize(
    ("body", "properties"),
    [
        (b"no job", {}),
        (b'{"email": "user@example.com", "otp": 123456, "jobId": "j-1"}', {}),
    ],
)
async def test_a_message_that_is_no_job_is_dead_lettered_unchanged_and_counted_after_that(
    body: bytes, properties: dict[str, Any]
) -> None:
    scene = Scene()
    await scene.bring(body, **properties)
    (dead_letter,) = scene.publish.tries
    assert (dead_letter.routing_key, dead_letter.body) == ("otp.dead", body)
    assert dead_letter.headers["x-otp-reason"] == "malformed"
    assert (scene.jobs, scene.deliveries.acked) == ([], [1])
    assert [(lane, it.reason) for lane, _, it in scene.refused] == [("jobs", "malformed")]
    assert [it["outcome"] for it in scene.published_events()] == ["malformed"]


async def test_a_message_that_is_no_job_is_not_counted_before_its_dead_letter_is_confirmed() -> None:
    scene = Scene()
    scene.publish.ends.append(lost(scene))
    await scene.bring(b"no job")
    assert (scene.refused, scene.deliveries.acked, scene.published_events()) == ([], [], [])


@pytest.mark.parametrize("message_id", ["user@example.com", "123456"])
async def test_the_message_id_of_what_is_no_job_is_shown_nowhere(message_id: str) -> None:
    scene = Scene()
    await scene.bring(b"no job", message_id=message_id)
    ((_, job_id, _),) = scene.refused
    assert job_id
    assert message_id not in job_id + searched(scene.publish.tries[0].headers) + str(scene.published_events())


async def test_an_id_that_contains_the_code_is_replaced() -> None:
    scene = Scene(settlement=DEAD)
    body = json.dumps({"email": "user@example.com", "otp": "123456", "jobId": "login-123456"}).encode()
    await scene.bring(body)
    assert "123456" not in scene.jobs[0].id
    assert "123456" not in searched(scene.publish.tries[0].headers) + str(scene.published_events())


@pytest.mark.parametrize(("lane", "suspicious"), [("jobs", False), ("due", True)])
async def test_headers_of_ours_are_believed_in_the_lane_of_waits_alone(lane: Lane, suspicious: bool) -> None:  # noqa: FBT001
    scene = Scene(lane)
    await scene.bring(headers=signed(FORGED))
    (job,) = scene.jobs
    expected = (2, "ours", "relay:25") if suspicious else (0, "j-1", None)
    assert (job.attempts_made, job.id, job.uncertain) == expected
    assert scene.consumer.state.unverified == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"x-otp-mac": None},
        {"x-otp-mac": 7},
        {"x-otp-mac": "é"},
        {"x-otp-attempt": 0},
        {"x-otp-attempt": -2_000},
        {"x-otp-job-id": "another"},
        {"x-otp-job-id": f"{'j' * 5_000} 123456"},
        {"x-otp-first-seen": 9_000_000_000_000},
        {"x-otp-fresh": "yes", "x-otp-replayed-at": 9_000_000_000_000},
        {"x-otp-new": {"a": "table"}},
        {"x-otp-uncertain": None},
    ],
)
@pytest.mark.parametrize("body", [BODY, b"no job"])
async def test_a_retry_whose_headers_do_not_verify_is_a_producers_job(changes: dict[str, Any], body: bytes) -> None:
    scene = Scene("due", settlement=LATER)
    headers = {name: value for name, value in (signed(FORGED, body) | changes).items() if value is not None}
    with capture_logs() as logs:
        await scene.bring(body, headers=headers)
    (published,) = scene.publish.tries
    ours = {name: published.headers.get(f"x-otp-{name}") for name in ("attempt", "uncertain", "replayed-at", "new")}
    assert ours == {"attempt": int(body == BODY), "uncertain": None, "replayed-at": None, "new": None}
    assert published.headers["x-otp-first-seen"] > 1_000_000_000_000
    assert published.headers["x-otp-first-seen"] < 9_000_000_000_000
    if body == BODY:
        (job,) = scene.jobs
        assert (job.id, job.uncertain, job.replay) == ("j-1", None, None)
    assert scene.consumer.state.unverified == 1
    assert [line["log_level"] for line in logs if "not signed" in line["event"]] == ["warning"]
    assert "123456" not in f"{logs}{searched(published.headers)}"
    # what we publish in its place is signed
    assert verified(published.headers, published.body, [KEY]) is not None


async def test_a_mac_holds_for_its_own_body_alone() -> None:
    scene = Scene("due")
    await scene.bring(BODY.replace(b"123456", b"654321"), headers=signed(FORGED))
    assert [(job.attempts_made, job.id) for job in scene.jobs] == [(0, "j-1")]


async def test_what_the_broker_and_tracers_write_breaks_no_mac() -> None:
    scene = Scene("due")
    written = {"x-death": [{"count": 1, "queue": "q"}], "x-delivery-count": 1, "traceparent": "00-1-2-01"}
    await scene.bring(headers=signed(FORGED) | written, redelivered=True)
    assert [job.id for job in scene.jobs] == ["ours"]


async def test_a_retry_that_was_signed_with_an_old_key_is_verified() -> None:
    scene = Scene("due")
    scene.consumer._shared = replace(scene.shared, hash_key=b"new" * 10, old_hash_keys=(b"other" * 4, KEY))
    await scene.bring(headers=signed(FORGED))
    assert [job.id for job in scene.jobs] == ["ours"]


async def test_a_retry_of_a_previous_version_keeps_its_attempts_and_its_id() -> None:
    # that version signed nothing; it kept the body's count in step with its own
    scene = Scene("due")
    body = json.dumps(json.loads(BODY) | {"retryCount": 2}).encode()
    await scene.bring(body, headers={"x-otp-attempt": 2, "x-otp-job-id": "j-1", "x-otp-first-seen": 5})
    assert [(job.attempts_made, job.id) for job in scene.jobs] == [(2, "j-1")]


async def test_a_retry_without_an_id_that_can_be_verified_takes_the_one_made_before() -> None:
    body = json.dumps({"email": "user@example.com", "otp": "123456"}).encode()
    made = MadeIds()
    scenes = [Scene(lane, made=made) for lane in ("jobs", "due")]
    for scene in scenes:
        await scene.bring(body)
    first, second = (scene.jobs[0].id for scene in scenes)
    assert first == second


# stopping


async def hang(job: Job, settle: IncomingJob) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(("lane", "kind"), [("jobs", "classic"), ("high", "classic"), ("due", "quorum")])
async def test_at_a_stop_what_has_not_ended_goes_back_to_its_queue(lane: Lane, kind: str) -> None:
    scene = Scene(lane, instead=hang)
    for _ in range(3):
        scene.receive()
    await scene.until(lambda: len(scene.jobs) == 3)
    scene.consumer.stop()
    async with asyncio.timeout(5):
        assert await scene.consumer.drain(lambda: True) == 3
    if kind == "classic":
        assert sorted(scene.deliveries.nacked) == [(1, True), (2, True), (3, True)]
        assert scene.publish.tries == []
    else:
        assert [one.routing_key for one in scene.publish.tries] == ["otp.retry.due"] * 3
        assert sorted(scene.deliveries.acked) == [1, 2, 3]
        assert scene.deliveries.nacked == []
    assert scene.consumer.state.ended == {"returned": 3}
    assert scene.consumer.state.unacked == 0


async def test_a_stop_lets_jobs_end_until_it_gives_up() -> None:
    go = asyncio.Event()

    async def slowly(job: Job, settle: IncomingJob) -> None:
        await go.wait()
        await settle(Ack("sent"))

    scene = Scene(instead=slowly)
    scene.receive()
    scene.consumer.stop()
    draining = asyncio.create_task(scene.consumer.drain(lambda: False))
    await scene.until(lambda: len(scene.jobs) == 1)
    go.set()
    async with asyncio.timeout(5):
        assert await draining == 0
    assert (scene.deliveries.acked, scene.deliveries.nacked) == ([1], [])


async def test_a_stop_gives_nothing_back_that_the_broker_has_taken_back() -> None:
    scene = Scene(instead=hang)
    scene.receive()
    await scene.until(lambda: len(scene.jobs) == 1)
    scene.deliveries.is_closed = True
    scene.consumer.stop()
    async with asyncio.timeout(5):
        assert await scene.consumer.drain(lambda: True) == 0
    assert scene.deliveries.nacked == []
    assert scene.consumer.state.ended == {"taken_back": 1}


async def test_a_job_that_is_cancelled_before_the_stop_is_not_returned_by_it() -> None:
    scene = Scene(instead=hang)
    scene.receive()
    await scene.until(lambda: len(scene.jobs) == 1)
    (task,) = scene.consumer._unacked
    task.cancel()
    await scene.until(lambda: scene.consumer.state.unacked == 0)
    scene.consumer.stop()
    async with asyncio.timeout(5):
        assert await scene.consumer.drain(lambda: True) == 0
    assert (scene.deliveries.nacked, scene.deliveries.acked, scene.consumer.state.ended) == ([], [], {})


async def test_what_is_cancelled_at_a_stop_while_it_drains_goes_back_at_once() -> None:
    scene = Scene(instead=hang)
    scene.receive()
    scene.receive()
    await scene.until(lambda: len(scene.jobs) == 2)
    scene.consumer.stop()
    first, _ = scene.consumer._unacked
    give_up = False
    draining = asyncio.create_task(scene.consumer.drain(lambda: give_up))
    first.cancel()
    await scene.until(lambda: scene.deliveries.nacked == [(1, True)])
    assert scene.consumer.state.unacked == 1
    give_up = True
    async with asyncio.timeout(5):
        assert await draining == 2


def test_another_job_with_the_id_of_one_that_was_moved_is_not_taken_for_its_copy() -> None:
    moved = Moved()
    moved.add(moved_job("a"), LOST)
    other = moved_job("a")
    for changed in ({"otp": "654321"}, {"email": "other@example.com"}):
        assert not moved.knows(replace(other, request=other.request.model_copy(update=changed)))
    assert moved.knows(other)
