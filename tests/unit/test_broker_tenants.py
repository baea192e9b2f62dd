"""Jobs of a tenant that has too many in a lane: moved to its queue, with all that is known about them."""

import asyncio
import sys
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from aio_pika import Message
from aio_pika.exceptions import DeliveryError
from deliveries import BODY, Deliveries, MadeIds, NoTelemetry, Publishing
from faststream.rabbit.publisher import RabbitPublisher
from pamqp.header import ContentHeader
from structlog.testing import capture_logs

from otp_stream.broker import settle as settle_module
from otp_stream.broker import tenant_lanes
from otp_stream.broker.declares import QueueAwayError
from otp_stream.broker.events import Events
from otp_stream.broker.headers import sign, verified
from otp_stream.broker.incoming import IncomingJob, Shared
from otp_stream.broker.job_message import Reader, no_keys
from otp_stream.broker.lane import LaneConsumer
from otp_stream.broker.message import Delivered
from otp_stream.broker.settle import Settler
from otp_stream.broker.tenant_lanes import TenantLanes
from otp_stream.broker.topology import Depth, Topology
from otp_stream.core.backoff import Backoff
from otp_stream.core.decision import Ack, Dead, Final, Park, Retry
from otp_stream.core.job import Job, Lane
from otp_stream.core.otp_job import MalformedError

BACKOFF = Backoff(1000, 30000, 3)
TOPOLOGY = Topology("jobs", "otp", BACKOFF)
KEY = b"k" * 32
RETRIED = {
    "x-otp-attempt": 2, "x-otp-job-id": "ours", "x-otp-first-seen": 5, "x-otp-uncertain": "relay:25",
    "x-otp-replayed-at": 7, "x-otp-replayed-by": "ann", "x-otp-fresh": "yes",
}  # fmt: skip
PROPERTIES = (
    "content_type", "content_encoding", "correlation_id", "reply_to", "message_id", "timestamp", "app_id", "priority",
    "expiration", "user_id",
)  # fmt: skip
TRACE = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"


def tenant_of(value: object) -> str:
    if value == "unknown":
        raise MalformedError("metadata.tenant: is not known")
    return str(value or "")


def body(number: int, tenant: str = "a") -> bytes:
    return b'{"email": "u%d@example.com", "otp": "123456", "jobId": "j-%d", "metadata": {"tenant": "%s"}}' % (
        number,
        number,
        tenant.encode(),
    )


def signed(headers: dict[str, Any], content: bytes = BODY) -> dict[str, Any]:
    headers = dict(headers)
    sign(headers, content, KEY)
    return headers


@dataclass
class Admin:
    """A broker whose declares end as given, then well."""

    ends: deque[BaseException] = field(default_factory=deque[BaseException])
    declared: list[str] = field(default_factory=list[str])
    known: dict[str, Depth] = field(default_factory=dict[str, Depth])

    async def declare_tenant(self, queue: str) -> None:
        if self.ends:
            raise self.ends.popleft()
        self.declared.append(queue)

    async def depths(self, queues: Iterable[str]) -> dict[str, Depth | None]:
        return {queue: self.known.get(queue) for queue in queues}

    async def exists(self, queue: str) -> bool:
        return True


unread = False


@pytest.fixture(autouse=True, params=[False, True], ids=["read", "unread"])
def _move_unread(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Move jobs after and before they are read: the same must hold."""
    monkeypatch.setattr(sys.modules[__name__], "unread", request.param)


class QueuePublishing(Publishing):
    """A fake publish to queues."""

    def start(self, queue: str, header: bytes, content: bytes, mac: str) -> "asyncio.Future[None]":
        decoded = ContentHeader()
        decoded.unmarshal(header)
        given = decoded.properties
        assert decoded.body_size == len(content)
        assert (given.headers or {})["x-otp-mac"] == mac
        message = Message(
            content,
            headers=cast("Any", given.headers),
            delivery_mode=given.delivery_mode,
            **{name: getattr(given, name) for name in PROPERTIES},
            type=given.message_type,
        )
        return asyncio.ensure_future(self(message, exchange="", routing_key=queue))


class FakeConsumers:
    def __init__(self) -> None:
        self.active: set[str] = set()

    def is_active(self, queue: str) -> bool:
        return queue in self.active

    async def consume(self, lane: LaneConsumer) -> None:
        self.active.add(lane.queue)

    async def cancel(self, lane: LaneConsumer) -> None:
        self.active.discard(lane.queue)

    async def compare(self, lanes: object) -> bool:
        return False

    async def resize(self, prefetches: object) -> None:
        pass


@dataclass
class Scene:
    """A lane with room for two jobs of one tenant, and the tenants' queues."""

    lane: Lane = "jobs"
    prefetch: int = 4
    settlement: Final = field(default_factory=lambda: Ack("sent"))
    publish: "QueuePublishing" = field(default_factory=QueuePublishing)
    deliveries: Deliveries = field(default_factory=Deliveries)
    jobs: list[Job] = field(default_factory=list[Job])
    read: list[bytes] = field(default_factory=list[bytes])
    """Bodies of the messages that the handler got."""
    instead: Callable[[Job, IncomingJob], Awaitable[None]] | None = None
    go: asyncio.Event = field(default_factory=asyncio.Event)
    admin: Admin = field(default_factory=Admin)
    consumers: FakeConsumers = field(default_factory=FakeConsumers)
    blocked: bool = False
    telemetry: NoTelemetry = field(default_factory=NoTelemetry)
    moves_unread: bool = field(default_factory=lambda: unread)

    def __post_init__(self) -> None:
        settler = Settler(TOPOLOGY, BACKOFF, self.publish, lambda _: None, KEY, no_keys)
        self.tenants = TenantLanes(
            TOPOLOGY, cast("Any", self.admin), cast("Any", self.consumers), settler, cast("Any", self.publish),
            prefetch=self.prefetch, blocked=lambda: self.blocked,
        )  # fmt: skip
        events = Events(cast("RabbitPublisher", None), NoTelemetry(), enabled=False)
        self.shared = Shared(
            Reader(15, KEY, MadeIds(), (), tenant_of), settler, events, self.telemetry, KEY,
            mover=self.tenants,
        )  # fmt: skip
        queue = "q" if self.lane == "tenant" else TOPOLOGY.lanes[self.lane]
        self.consumer = LaneConsumer(
            self.lane, queue, self.prefetch, self.shared, self.handle, lambda: self.moves_unread
        )
        self.tenants.handle(lambda queue, prefetch: LaneConsumer("tenant", queue, prefetch, self.shared, self.handle))

    async def start(self, *names: str) -> None:
        """Use these tenants, and wait until they have queues."""
        self.tenants.use(names)
        await self.tenants._start_missing()

    async def handle(self, incoming: IncomingJob) -> None:
        self.read.append(incoming.message.raw.body)
        job = await incoming.accept(incoming.shared.reader.read(incoming.message.raw.body))
        if job is None:
            return
        self.jobs.append(job)
        if self.instead is not None:
            await self.instead(job, incoming)
        else:
            await self.go.wait()
            await incoming(self.settlement)

    def receive(
        self, content: bytes = BODY, *, to: LaneConsumer | None = None, redelivered: bool = False, **properties: Any
    ) -> Delivered:
        message = self.deliveries.delivered(content, redelivered=redelivered, **properties)
        (to or self.consumer).dispatch(message)
        return message

    @property
    def kept(self) -> dict[str, int]:
        threshold = self.consumer._threshold
        assert threshold is not None
        return threshold.kept

    async def settle(self) -> None:
        self.go.set()
        await self.until(lambda: not self.consumer.unacked)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - a plain field
                await asyncio.sleep(0.001)

    def copy(self, number: int = 0, **changes: Any) -> dict[str, Any]:
        """Return the published copy as properties of a delivery."""
        message = self.publish.tries[number].message
        return {"headers": dict(message.headers), "message_id": message.message_id, **changes}


async def fill(scene: Scene, count: int, tenant: str = "a", **properties: Any) -> None:
    for number in range(count):
        scene.receive(body(number, tenant), **properties)
        for _ in range(5 if unread else 0):  # the job is counted, or its move ends, before the next one is received
            await asyncio.sleep(0)
    await asyncio.sleep(0.01)


async def test_jobs_beyond_the_threshold_are_moved_after_a_confirm() -> None:
    scene = Scene()
    await scene.start("a")
    scene.publish.confirmed.clear()
    await fill(scene, 4)
    assert [job.id for job in scene.jobs] == ["j-0", "j-1"]
    assert [it.routing_key for it in scene.publish.tries] == ["otp.tenant.a"] * 2
    assert (scene.deliveries.acked, scene.kept) == ([], {"a": 2})  # those on their way are not counted
    scene.publish.confirmed.set()
    await scene.until(lambda: scene.consumer.unacked == 2)
    assert scene.deliveries.acked == [3, 4]
    assert scene.consumer.state.ended == {"moved": 2}
    assert scene.publish.tries[0].body == body(2)
    assert scene.publish.tries[0].exchange == ""
    assert scene.publish.tries[0].delivery_mode == 2
    assert scene.tenants.states["a"].moved == 2
    await scene.settle()
    assert scene.consumer.state.ended == {"moved": 2, "ack": 2}
    assert scene.kept == {}


async def test_other_tenants_have_room_while_one_has_half_of_the_lane() -> None:
    scene = Scene(prefetch=8)
    await scene.start("a", "b")
    await fill(scene, 6)
    await fill(scene, 1, "b")
    await fill(scene, 1, "")
    assert Counter(job.tenant for job in scene.jobs) == {"a": 4, "b": 1, "": 1}
    await scene.settle()


@pytest.mark.parametrize("names", [(), ("b",)])
async def test_without_a_queue_of_the_tenant_every_job_stays(names: tuple[str, ...]) -> None:
    scene = Scene()
    await scene.start(*names)
    await fill(scene, 4)
    assert len(scene.jobs) == 4
    assert scene.kept == ({"a": 4} if names else {})
    await scene.settle()
    assert (scene.kept, scene.publish.tries) == ({}, [])


async def test_jobs_of_the_default_tenant_are_moved_as_well() -> None:
    scene = Scene()
    await scene.start("a")
    await fill(scene, 3, "")
    await scene.until(lambda: scene.consumer.state.ended == {"moved": 1})
    assert scene.publish.tries[0].routing_key == "otp.tenant.default"
    await scene.settle()


async def test_a_job_that_was_received_from_its_tenants_queue_is_not_moved_again() -> None:
    scene = Scene("tenant")
    await scene.start("a")
    await fill(scene, 4)
    assert len(scene.jobs) == 4
    await scene.settle()


@pytest.mark.parametrize(("lane", "rank"), [("high", 0), ("jobs", 2), ("due", 2)])
async def test_a_moved_job_keeps_all_that_is_known_about_it(lane: Lane, rank: int) -> None:
    scene = Scene(lane)
    await scene.start("a")
    await fill(scene, 2)
    given = signed(RETRIED, body(9)) if lane == "due" else {}
    headers = {**given, "traceparent": TRACE, "x-mine": "1", "x-death": [{"count": 1}], "CC": ["jobs"]}
    scene.receive(body(9), headers=headers, redelivered=True, correlation_id="c", message_id="m", expiration="5")
    await scene.until(lambda: len(scene.publish.tries) == 1)
    (own_lane,) = [it for it in scene.tenants if it.queue == "otp.tenant.a"]
    scene.receive(body(9), to=own_lane, **scene.copy())
    await scene.until(lambda: len(scene.jobs) == 3)
    job = scene.jobs[-1]
    assert (job.id, job.attempts_made, job.uncertain) == (
        ("ours", 2, "relay:25") if lane == "due" else ("j-9", 0, None)
    )
    assert (job.lane, job.rank, job.tenant, job.suspect, job.moves) == (lane, rank, "a", True, 1)
    if lane == "due":
        assert (job.first_seen_ms, job.replay and (job.replay.at_ms, job.replay.by, job.replay.fresh)) == (
            5,
            (7, "ann", True),
        )
    message = scene.publish.tries[0].message
    assert (message.correlation_id, message.message_id, message.expiration) == ("c", "m", None)
    assert (message.headers["traceparent"], message.headers["x-mine"]) == (TRACE, "1")
    assert not {"x-death", "CC"} & message.headers.keys()
    assert own_lane.state.unverified == 0
    await scene.settle()


USUAL = b'{"email": "u@example.com", "otp": "123456", "jobId": "j", "metadata": {"tenant": "a"}}'


@pytest.mark.parametrize(
    ("content", "is_read"),
    [
        (USUAL, False),
        (USUAL.replace(b'"a"', b'"a", "userName": "Zo\\u00eb"'), False),
        (USUAL.replace(b'"jobId": "j"', b'"timestamp": 1672531200000'), False),
        (USUAL.replace(b'"metadata"', b'"timestamp": 5, "metadata"'), False),
        (USUAL.replace(b'"jobId"', b'"id"'), True),  # its copy would get a random id
        (USUAL.replace(b'"j"', b'""'), True),
        (USUAL.replace(b'"j"', b'"%s"' % (b"j" * 201)), True),
        (USUAL.replace(b'"j"', b'"\\u0007"'), True),
        (USUAL.replace(b'"j"', b"5"), True),
        (USUAL.replace(b'"jobId": "j"', b'"timestamp": 1672531200'), True),  # seconds
        (USUAL.replace(b'"otp"', b'"deep": %s%s, "otp"' % (b"[" * 300, b"]" * 300)), True),
        (b"\xef\xbb\xbf" + USUAL, True),
        (USUAL.replace(b"u@", b"\xff@"), True),
        (USUAL.replace(b'"u@example.com"', b"5"), False),  # it is malformed there
        (USUAL.replace(b'"otp"', b'"x": "\n", "otp"'), True),
        (USUAL.replace(b'"email"', b'"x": "%s", "email"' % (b"x" * 70_000)), True),
    ],
)
async def test_a_job_is_read_before_its_move_only_if_it_has_to_be(content: bytes, is_read: bool) -> None:  # noqa: FBT001 - a parameter
    scene = Scene()
    await scene.start("a")
    await fill(scene, 2)
    scene.receive(content)
    await scene.until(lambda: bool(scene.publish.tries) and scene.consumer.unacked == 2)
    assert (content in scene.read) == (is_read or not unread)
    assert scene.publish.tries[0].body == content
    await scene.settle()


@pytest.mark.parametrize("lane", ["jobs", "due"])
async def test_a_redelivered_message_and_one_that_no_worker_has_signed_are_read_before_their_move(lane: Lane) -> None:
    scene = Scene(lane)
    await scene.start("a")
    await fill(scene, 2)
    scene.receive(body(9), redelivered=lane == "jobs")
    await scene.until(lambda: len(scene.publish.tries) == 1)
    assert body(9) in scene.read
    await scene.settle()


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"headers": {}},
        {"content_type": "application/json", "headers": {}},
        {"content_type": "text/plain", "content_encoding": "utf-8", "headers": {"x-mine": [1, {"a": True}], "é": "ü"}},
        {"delivery_mode": 1, "priority": 3, "correlation_id": "c", "reply_to": "r", "expiration": "60000"},
        {"message_id": "m", "timestamp": datetime(2026, 1, 2, tzinfo=UTC), "message_type": "t", "user_id": "guest"},
        {"app_id": "app", "headers": {"x-otp-lane": "high", "x-death": [{}], "BCC": ["q"]}},
        {"headers": {"x-mine": "x" * 11_000, "x-other": "x" * 3_000}},
        {"headers": {"x-mine": "x" * 17_000}},
    ],
)
async def test_the_copy_has_the_properties_of_the_original(properties: dict[str, Any]) -> None:
    scene = Scene()
    await scene.start("a")
    await fill(scene, 2)
    original = scene.receive(body(9), **properties)
    await scene.until(lambda: len(scene.publish.tries) == 1)
    copy = scene.publish.tries[0].message
    ours = verified(cast("dict[str, Any]", copy.headers), body(9), (KEY,))
    assert ours is not None
    assert ours | {"x-otp-first-seen": 0} == {"x-otp-first-seen": 0, "x-otp-lane": "jobs", "x-otp-moves": 1} | (
        {} if body(9) not in scene.read else {"x-otp-attempt": 0, "x-otp-job-id": "j-9"}
    )
    foreign = {name: it for name, it in copy.headers.items() if not name.startswith("x-otp-")}
    large = len(properties.get("headers", {}).get("x-mine", "")) > 2_000
    assert foreign == {
        name: it
        for name, it in properties.get("headers", {}).items()
        if not large and name not in {"x-death", "BCC"} and not name.startswith("x-otp-")
    }
    dropped = {"expiration", "user_id"}
    for name in (*PROPERTIES, "type"):
        assert (getattr(copy, name) or None) == (None if name in dropped else getattr(original, name)), name
    assert copy.delivery_mode == 2
    await scene.settle()


async def test_a_producer_cannot_choose_lane_or_moves() -> None:
    forged = {"x-otp-lane": "high", "x-otp-moves": 3, "x-otp-suspect": "yes"}
    for lane in ("jobs", "tenant"):
        scene = Scene(cast("Lane", lane))
        await scene.start("a")
        with capture_logs() as logs:
            scene.receive(body(1), headers=forged)
            await scene.until(lambda it=scene: bool(it.jobs))
        (job,) = scene.jobs
        assert (job.lane, job.rank, job.moves, job.suspect) == (lane, 2, 0, False)
        assert [line["event"].partition(":")[0] for line in logs] == (
            ["retry is not signed with SECRET_KEY"] if lane == "tenant" else []
        )
        await scene.settle()


async def test_a_lane_in_the_headers_that_does_not_exist_is_ignored() -> None:
    scene = Scene("tenant")
    scene.receive(body(1), headers=signed({"x-otp-lane": "express"}, body(1)))
    await scene.until(lambda: bool(scene.jobs))
    assert scene.jobs[0].lane == "tenant"
    await scene.settle()


async def test_the_redelivered_original_is_acknowledged_and_its_copy_is_not_taken_for_it() -> None:
    scene = Scene()
    await scene.start("a")
    await fill(scene, 3)
    await scene.until(lambda: scene.consumer.state.ended == {"moved": 1})
    (own_lane,) = [it for it in scene.tenants if it.queue == "otp.tenant.a"]
    # the connection is lost: both are redelivered, the copy first
    scene.deliveries = scene.deliveries.reconnected()
    scene.receive(body(2), to=own_lane, redelivered=True, **scene.copy())
    await scene.until(lambda: len(scene.jobs) == 3)
    assert (scene.jobs[-1].id, scene.jobs[-1].suspect) == ("j-2", True)
    scene.receive(body(2), redelivered=True)
    await scene.until(lambda: scene.consumer.state.ended == {"moved": 1, "ack": 1})
    assert len(scene.jobs) == 3
    await scene.settle()


async def test_the_copy_is_processed_after_it_was_parked_and_moved_again() -> None:
    scene = Scene("due", settlement=Park(5_200))
    await scene.start("a")
    await fill(scene, 2)
    first = signed({"x-otp-attempt": 0, "x-otp-job-id": "ours", "x-otp-first-seen": 5}, body(9))
    scene.receive(body(9), headers=first)
    await scene.until(lambda: len(scene.publish.tries) == 1)
    (own_lane,) = [it for it in scene.tenants if it.queue == "otp.tenant.a"]
    scene.receive(body(9), to=own_lane, **scene.copy())
    await scene.until(lambda: len(scene.jobs) == 3)
    await scene.settle()
    parked = next(it for it in scene.publish.tries[1:] if it.headers["x-otp-job-id"] == "ours")
    assert "x-otp-lane" not in parked.headers
    # it has the attempts of the original, and is redelivered; but it is another message
    before = len(scene.jobs)
    scene.receive(parked.body, headers=parked.headers, redelivered=True)
    await scene.until(lambda: len(scene.jobs) > before)
    assert scene.jobs[-1].moves == 1


@pytest.mark.parametrize("settlement", [Ack("sent"), Retry(1100, 1, "451"), Park(5_200), Dead("rejected", "550", 1)])
async def test_each_settlement_frees_the_slot(settlement: Final) -> None:
    scene = Scene(settlement=settlement)
    await scene.start("a")
    await fill(scene, 2)
    assert scene.kept == {"a": 2}
    await scene.settle()
    assert scene.kept == {}


async def test_a_crash_a_missing_settlement_and_a_lost_channel_free_the_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle_module, "_PAUSES_S", (0.0,))

    async def crash(_: Job, __: IncomingJob) -> None:
        raise ValueError

    async def nothing(_: Job, __: IncomingJob) -> None: ...

    async def lose(_: Job, incoming: IncomingJob) -> None:
        scene.deliveries.is_closed = True
        await incoming(Retry(1100, 1, "451"))

    for instead in (crash, nothing, lose):
        scene = Scene(instead=instead)
        await scene.start("a")
        with capture_logs():
            await fill(scene, 2)
            await scene.until(lambda it=scene: not it.consumer.unacked)
        assert len(scene.jobs) == 2
        assert scene.kept == {}


async def test_a_cancelled_job_frees_the_slot() -> None:
    scene = Scene()
    await scene.start("a")
    await fill(scene, 3)
    scene.consumer.stop()
    assert await scene.consumer.drain(lambda: True) == 2
    assert scene.kept == {}


async def test_a_handler_that_asks_twice_counts_once() -> None:
    async def again(_: Job, incoming: IncomingJob) -> None:
        assert await incoming.accept(incoming.shared.reader.read(incoming.message.raw.body)) is not None
        await scene.go.wait()
        await incoming(Ack("sent"))

    scene = Scene(instead=again)
    await scene.start("a")
    await fill(scene, 2)
    assert scene.kept == {"a": 2}
    await scene.settle()
    assert scene.kept == {}


async def test_a_job_of_a_refused_tenant_is_malformed() -> None:
    scene = Scene()
    await scene.start("a")
    scene.receive(body(1, "unknown"))
    await scene.settle()
    (dead,) = scene.publish.tries
    ours = verified(dead.headers, dead.body, (KEY,))
    assert ours is not None
    assert (dead.routing_key, dead.body, ours["x-otp-reason"]) == ("otp.dead", body(1, "unknown"), "malformed")
    assert ours["x-otp-error"] == "metadata.tenant: is not known"
    assert (scene.jobs, scene.kept) == ([], {})
    assert [dead.reason for *_, dead in scene.telemetry.refused] == ["malformed"]


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionError(), DeliveryError(None, cast("Any", None))])
async def test_a_job_that_cannot_be_moved_is_processed_and_the_next_ones_are_not_moved_at_once(
    error: BaseException,
) -> None:
    scene = Scene()
    await scene.start("a")
    scene.publish.ends.append(error)
    with capture_logs() as logs:
        await fill(scene, 4)
    assert len(scene.jobs) == 4
    assert (len(scene.publish.tries), scene.kept) == (1, {"a": 4})
    assert [line["log_level"] for line in logs if "cannot be moved" in line["event"]] == ["warning"]
    scene.receive(body(5))
    await scene.settle()
    assert (len(scene.publish.tries), scene.kept) == (1, {})


# the tenants' queues


async def test_a_job_waits_for_the_declaration_of_its_tenants_queue() -> None:
    scene = Scene()
    scene.tenants.use(["a"])
    await fill(scene, 3)
    assert (len(scene.jobs), scene.publish.tries) == (2, [])
    await scene.tenants._start_missing()
    await scene.until(lambda: scene.consumer.state.ended == {"moved": 1})
    await scene.settle()


async def test_a_queue_that_a_job_waits_for_is_declared_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenant_lanes, "_CONCURRENT", 1)
    scene = Scene()
    scene.tenants.use([f"t{number}" for number in range(20)] + ["a"])
    declare, waits = scene.admin.declare_tenant, asyncio.Event()

    async def slowly(queue: str) -> None:
        await waits.wait()
        await declare(queue)

    monkeypatch.setattr(scene.admin, "declare_tenant", slowly)
    starting = asyncio.create_task(scene.tenants._start_missing())
    await asyncio.sleep(0)
    await fill(scene, 3)
    waits.set()
    await starting
    assert scene.admin.declared.index("otp.tenant.a") == 1
    assert len(scene.admin.declared) == 22
    await scene.settle()


async def test_a_job_whose_tenants_queue_cannot_be_declared_is_processed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenant_lanes, "_READY_S", 0.01)
    scene = Scene()
    scene.admin.ends.extend([QueueAwayError("otp.tenant.default is away"), QueueAwayError("otp.tenant.a is away")])
    with capture_logs() as logs:
        await scene.start("a")
        await fill(scene, 4)
        await scene.until(lambda: len(scene.jobs) == 4)
    assert [line["queue"] for line in logs if "is away" in line["event"]] == ["otp.tenant.default", "otp.tenant.a"]
    assert not scene.tenants.can_move("a")
    assert scene.publish.tries == []
    await scene.settle()


async def test_a_queue_that_is_away_is_tried_again_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr(tenant_lanes, "monotonic", lambda: now)
    scene = Scene()
    scene.admin.ends.append(QueueAwayError("away"))
    await scene.start("a")
    assert scene.admin.declared == ["otp.tenant.a"]
    await scene.tenants._start_missing()
    assert scene.admin.declared == ["otp.tenant.a"]
    now += 5
    await scene.tenants._start_missing()
    assert scene.admin.declared == ["otp.tenant.a", "otp.tenant.default"]
    scene.consumers.active.clear()  # the connection was lost
    await scene.tenants._start_missing()
    assert len(scene.admin.declared) == 4
    assert len(scene.consumers.active) == 2


async def test_jobs_are_moved_again_after_a_pause_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr(tenant_lanes, "monotonic", lambda: now)
    scene = Scene()
    await scene.start("a")
    (lane,) = [it for it in scene.tenants._lanes.values() if it.tenant == "a"]
    for pause_s in (1, 2, 4, 8, 16, 30, 30):
        assert scene.tenants.can_move("a")
        with capture_logs() as logs:
            scene.tenants._not_moved(lane, "no route")
            scene.tenants._not_moved(lane, "no route")
        assert [line["again_in_s"] for line in logs] == [pause_s]
        now += pause_s - 0.1
        assert not scene.tenants.can_move("a")
        now += 0.1


async def test_nothing_is_moved_while_the_broker_accepts_no_publish() -> None:
    scene = Scene(blocked=True)
    await scene.start("a")
    await fill(scene, 4)
    assert len(scene.jobs) == 4
    await scene.settle()
    assert scene.publish.tries == []


async def test_the_queue_of_a_removed_tenant_is_consumed_until_it_was_empty_twice() -> None:
    scene = Scene()
    await scene.start("a", "b")
    scene.tenants.use(["b"])
    scene.admin.known = {f"otp.tenant.{it}": Depth(0, 1) for it in ("a", "b", "default")}
    assert not scene.tenants.can_move("a")

    async def look(messages: int) -> None:
        scene.admin.known["otp.tenant.a"] = Depth(messages, 1)
        await scene.tenants._read_depths()
        await scene.tenants._start_missing()

    for messages in (5, 0, 1, 0):
        await look(messages)
        assert "otp.tenant.a" in scene.consumers.active
    await look(0)
    assert scene.consumers.active == {"otp.tenant.b", "otp.tenant.default"}
    assert scene.tenants.states["a"].removed
    await look(1)  # by a worker that has not read the new file yet
    assert "otp.tenant.a" in scene.consumers.active
    for _ in range(2):
        await look(0)
    assert "otp.tenant.a" not in scene.consumers.active
    await scene.start("a", "b")
    assert "otp.tenant.a" in scene.consumers.active
    assert scene.tenants.can_move("a")


async def test_without_any_tenant_left_nothing_is_moved_and_the_queues_are_drained() -> None:
    scene = Scene()
    await scene.start("a")
    scene.tenants.use([])
    await fill(scene, 4)
    assert (len(scene.jobs), scene.kept) == (4, {})
    assert len(scene.consumers.active) == 2
    await scene.settle()
