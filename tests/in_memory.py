"""The application on FastStream's in-memory broker, with a scripted relay."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from faststream import AckPolicy
from faststream.rabbit import RabbitExchange, RabbitMessage, RabbitQueue, TestRabbitBroker
from smtp_relay import ScriptedRelay

from otp_stream.app import build
from otp_stream.broker import OtpBroker
from otp_stream.settings import load, settings
from otp_stream.worker import OtpStream

SECRET_KEY = "0123456789abcdef0123456789abcdef"

# cached, because stretching the key takes as long as the rest of the application's start
settings._stretched = cache(settings._stretched)


@dataclass
class Stream:
    """An application under test, and the messages that it published."""

    app: OtpStream
    relay: ScriptedRelay
    retries: list[RabbitMessage] = field(default_factory=list[RabbitMessage])
    dead: list[RabbitMessage] = field(default_factory=list[RabbitMessage])
    events: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @property
    def broker(self) -> OtpBroker:
        return self.app.parts.broker

    async def publish(self, job: Any, queue: str = "service_send_otp", **properties: Any) -> None:
        """Publish a job and wait until it is settled."""
        await self.broker.publish(job, queue, **properties)

    @property
    def recipients(self) -> list[str]:
        return [mail.recipient for mail in self.relay.accepted]

    @property
    def outcomes(self) -> list[str]:
        return [event["outcome"] for event in self.events]

    def listen(self) -> None:
        """Subscribe to everything that the application publishes."""
        topology = self.broker.topology
        self._collect(RabbitQueue(topology.dead), None, self.dead)
        for ms in topology.backoff.waits_ms:
            self._collect(RabbitQueue(topology.wait_queue(ms), routing_key=str(ms)), topology.retry, self.retries)

        @self.broker.subscriber(RabbitQueue("listener", routing_key="otp.#"), topology.events)
        async def listener(event: dict[str, Any]) -> None:  # pyright: ignore[reportUnusedFunction]
            self.events.append(event)

    def _collect(self, queue: RabbitQueue, exchange: RabbitExchange | None, messages: list[RabbitMessage]) -> None:
        async def as_bytes(message: RabbitMessage) -> bytes:
            return message.body

        @self.broker.subscriber(queue, exchange, ack_policy=AckPolicy.MANUAL, decoder=as_bytes)
        async def collect(_: bytes) -> None:  # pyright: ignore[reportUnusedFunction]
            messages.append(self.broker.context.get_local("message"))


Start = Callable[..., Awaitable[Stream]]


def starter(stack: AsyncExitStack) -> Start:
    """Return a function that starts an application, which `stack` stops."""

    async def start(extend: Callable[[OtpBroker], None] = lambda _: None, **values: Any) -> Stream:
        """Start it with settings by field name. `extend` is called before, for example to register middlewares."""
        relay = await stack.enter_async_context(ScriptedRelay())
        defaults = {
            "_env_file": None, "app_env": "staging", "worker": True, "secret_key": SECRET_KEY,
            "sender_email": "Example <no-reply@example.com>", "smtp_host": "127.0.0.1", "smtp_port": relay.port,
            "smtp_tls": "none", "smtp_auth": "none",
        }  # fmt: skip
        loaded, problems = load(**defaults | values)
        assert problems == []
        stream = Stream(build(loaded, problems), relay)
        stack.push_async_callback(stream.app.parts.composer.close)
        stack.push_async_callback(stream.app.parts.relay.close)
        extend(stream.broker)
        stream.listen()
        await stack.enter_async_context(TestRabbitBroker(stream.broker))
        return stream

    return start
