"""All RabbitMQ: queues and exchanges, lanes, settlements, dead letters, events."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from faststream import AckPolicy
from faststream.rabbit import RabbitMessage

from otp_stream.core.backoff import Backoff
from otp_stream.core.job import Lane, MalformedError, OtpJob

from .arrival import MadeIds, Reader
from .broker import OtpBroker
from .copies import Inject
from .events import JobEvent
from .lane import Deliver, Desk, LaneConsumer, Refused, read
from .settle import Settler
from .tolerance import tolerate
from .topology import Topology
from .transport import try_every_address

__all__ = ["OtpBroker", "RabbitConfig", "open_broker"]

# for the worker and for commands alike: whoever uses RabbitMQ here imports this package
try_every_address()


@dataclass(frozen=True, slots=True)
class RabbitConfig:
    """What the broker room needs to know."""

    url: str = field(repr=False)
    shown_url: str
    queue: str
    prefix: str
    window: int
    backoff: Backoff
    default_expiry_minutes: float
    hash_key: bytes = field(repr=False)
    enabled: bool = True
    old_hash_keys: Sequence[bytes] = field(default=(), repr=False)
    """What other workers may still sign with, or have signed with."""
    events: bool = True
    """Whether each outcome is told."""


def open_broker(
    config: RabbitConfig, *, deliver: Deliver, made: MadeIds, refused: Refused, inject: Inject
) -> OtpBroker:
    """Wire the broker with its lanes. Nothing connects before `start`."""
    tolerate()
    topology = Topology(config.queue, config.prefix, config.backoff)
    broker = OtpBroker(config.url, shown_url=config.shown_url, topology=topology, enabled=config.enabled)
    broker.events.enabled = config.events
    settler = Settler(
        topology,
        config.backoff,
        publish=broker.confirmed,
        inject=inject,
        repair=broker.repair,
        key=config.hash_key,
    )
    reader = Reader(config.default_expiry_minutes, config.hash_key, made, config.old_hash_keys)
    desk = Desk(reader, settler, broker.events, deliver, refused, config.hash_key, config.old_hash_keys)
    broker.lanes = [
        _subscribe(broker, LaneConsumer(lane, queue, config.window, desk)) for lane, queue in topology.lanes.items()
    ]
    _document_publishers(broker)
    return broker


def _document_publishers(broker: OtpBroker) -> None:
    # They publish nothing themselves: they put our outgoing channels into the AsyncAPI document,
    # and give the in-memory test broker somewhere to take them.
    topology = broker.topology
    broker.publisher(
        exchange=topology.retry,
        routing_key="{rung}",
        title="retry",
        schema=OtpJob,
        description="A failed job on its way to a wait queue. The routing key is the wait in milliseconds.",
    )
    broker.publisher(
        topology.dead,
        title="dead",
        schema=OtpJob,
        description="Dead letters: the body as it came, with why and when it died in the headers.",
    )
    broker.publisher(
        exchange=topology.events,
        routing_key="otp.{outcome}",
        title="events",
        schema=JobEvent,
        description="One event for each job outcome; bind a queue of your own with `otp.#` or one outcome.",
    )


_TITLES: dict[Lane, tuple[str, str]] = {
    "high": ("sendOtpHigh", "The same job, for producers that can choose; served ahead of all other lanes."),
    "jobs": ("sendOtp", "Jobs: send this one-time code to this address."),
    "due": (
        "sendOtpDue",
        "Jobs whose wait is over; a lane of its own, so that retries and fresh jobs never starve each other.",
    ),
}


def _subscribe(broker: OtpBroker, lane: LaneConsumer) -> LaneConsumer:
    title, description = _TITLES[lane.lane]

    @broker.subscriber(
        broker.topology.consumed(lane.lane),
        ack_policy=AckPolicy.MANUAL,
        no_reply=True,
        decoder=_read,
        title=title,
        description=description,
    )
    async def send_otp(ask: OtpJob) -> None:  # pyright: ignore[reportUnusedFunction]
        """Bring one job to its end."""
        await lane.take(ask, broker.context.get_local("message"))

    return lane


async def _read(message: RabbitMessage) -> OtpJob | MalformedError:
    return read(message.body)
