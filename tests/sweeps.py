"""Dead letters without a broker, and what a sweep does with them."""

import json
from typing import Any

from aio_pika import Message
from deliveries import Deliveries

from otp_stream.broker.headers import sign
from otp_stream.broker.message import Delivered
from otp_stream.broker.topology import Topology
from otp_stream.clock import now_ms
from otp_stream.core.backoff import Backoff
from otp_stream.core.retention import Retention
from otp_stream.core.sealing_keys import NO_KEYS, SealingKeys
from otp_stream.dead_letters import DeadLetterQueue
from otp_stream.dead_letters.sweep import Action, Sweep

KEY, MINUTE, DAY = b"k" * 32, 60_000, 86_400_000
CODE = "4938170625"
"""So long that no time in milliseconds has its digits by chance."""


class Queue:
    """The dead-letter queue, as a sweep sees it."""

    name = "otp.dead"

    def __init__(self) -> None:
        self.replaced: list[tuple[Message | None, str]] = []

    async def replace(self, message: Delivered, copy: Message | None, queue: str = "") -> None:
        self.replaced.append((copy, queue))


def dead_letter(
    *, died: int = 0, minutes: float = 15, key: bytes | None = KEY, body: bytes | None = None,
    deliveries: int = 0, expiration: str | None = None, **more: Any,
) -> Delivered:  # fmt: skip
    """Return a dead letter that died `died` milliseconds ago."""
    seen_ms = now_ms() - died
    if body is None:
        body = json.dumps(
            {"email": "ada@example.com", "otp": CODE, "jobId": "j-1", "metadata": {"expiryMinutes": minutes}}
        ).encode()
    headers: dict[str, Any] = {
        "x-otp-reason": "rejected", "x-otp-error": "550 no", "x-otp-job-id": "j-1", "x-otp-attempt": 1,
        "x-otp-first-seen": seen_ms, "x-otp-died-at": seen_ms,
    } | more  # fmt: skip
    headers = {name: value for name, value in headers.items() if value is not None}
    if key is not None:
        sign(headers, body, key)
    headers |= {"customer": f"code {CODE}", "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"}
    if deliveries:
        headers["x-delivery-count"] = deliveries
    return Deliveries().delivered(body, headers=headers, message_id=CODE, expiration=expiration)


async def swept(
    message: Delivered, retention: Retention | None = None, keys: SealingKeys = NO_KEYS
) -> tuple[Action, Message | None, Sweep]:
    topology = Topology("jobs", "otp", Backoff(1000, 30000, 3))
    queue = DeadLetterQueue(
        lambda: "amqp://localhost/", topology, 15, KEY, keys=lambda: keys, retention=retention or Retention()
    )
    sweep, fake = Sweep(queue), Queue()
    action = await sweep._handle(fake, queue.reader, message)  # type: ignore[arg-type] - the fake has what it uses
    assert len(fake.replaced) == (action != "kept")
    copy, target = fake.replaced[0] if fake.replaced else (None, "")
    assert target == (queue.topology.dead if copy else "")
    return action, copy, sweep
