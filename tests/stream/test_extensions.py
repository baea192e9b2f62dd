"""Middlewares, dependencies and codecs that an operator registers, on FastStream's in-memory broker."""

import json
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from deliveries import NoTelemetry, searched
from faststream import AckPolicy, BaseMiddleware, Depends
from faststream.exceptions import SetupError
from faststream.message import StreamMessage
from faststream.rabbit import RabbitBroker
from in_memory import Start, Stream
from structlog.testing import capture_logs

from otp_stream.broker import OtpBroker, RabbitConfig
from otp_stream.core.backoff import Backoff
from otp_stream.core.otp_job import OtpJob

JOB: dict[str, Any] = {"email": "user@example.com", "otp": "123456", "jobId": "j-1"}
Next = Callable[[Any], Awaitable[Any]]


class Recorder(BaseMiddleware):
    """Records what passes through it."""

    consumed: list[Any]
    published: list[str]

    async def consume_scope(self, call_next: Next, msg: StreamMessage[Any]) -> Any:
        self.consumed.append(await msg.decode())
        return await call_next(msg)

    async def publish_scope(self, call_next: Next, cmd: Any) -> Any:
        self.published.append(cmd.destination)
        return await call_next(cmd)


@pytest.fixture
def recorder() -> type[Recorder]:
    return type("Recorder", (Recorder,), {"consumed": [], "published": []})


async def test_a_middleware_sees_each_typed_job_and_what_is_published(
    start_stream: Start, recorder: type[Recorder]
) -> None:
    stream = await start_stream(lambda broker: broker.add_middleware(recorder))
    stream.relay.then("rcpt", "550 5.1.1 no such user")
    await stream.publish(JOB)
    await stream.publish(JOB | {"jobId": "j-2"})
    jobs = [it for it in recorder.consumed if isinstance(it, OtpJob)]
    assert [(it.email, it.job_id) for it in jobs] == [("user@example.com", "j-1"), ("user@example.com", "j-2")]
    assert {"otp.dead", "otp.rejected", "otp.sent"} <= set(recorder.published)
    assert stream.outcomes == ["rejected", "sent"]


async def test_a_malformed_message_passes_the_middlewares_and_is_dead_lettered(start_stream: Start) -> None:
    seen: list[object] = []

    class Watching(BaseMiddleware):
        async def on_receive(self) -> None:
            seen.append(self.msg)

    stream = await start_stream(lambda broker: broker.add_middleware(Watching))
    await stream.publish(b'{"email": "user@example.com", "otp": 123456}')
    assert seen
    assert stream.outcomes == ["malformed"]
    assert stream.dead[0].headers["x-otp-error"].startswith("otp: ")


async def test_a_middleware_that_fails_costs_no_job_and_quotes_no_code(start_stream: Start) -> None:
    class Failing(BaseMiddleware):
        async def consume_scope(self, call_next: Next, msg: StreamMessage[Any]) -> Any:
            if isinstance(await msg.decode(), OtpJob):
                raise LookupError(msg.body)  # noqa: TRY004 - a bug, of any type
            return await call_next(msg)

    stream = await start_stream(lambda broker: broker.add_middleware(Failing))
    with capture_logs() as logs:
        await stream.publish(JOB)
    (dead_letter,) = stream.dead
    assert dead_letter.headers["x-otp-reason"] == "crashed"
    assert dead_letter.headers["x-otp-error"] == "internal error: LookupError"
    assert json.loads(dead_letter.body) == JOB
    assert "123456" not in searched(dead_letter.headers) + str(logs)


async def test_a_middleware_that_fails_after_the_job_was_sent_changes_nothing(start_stream: Start) -> None:
    class Failing(BaseMiddleware):
        async def consume_scope(self, call_next: Next, msg: StreamMessage[Any]) -> Any:
            await call_next(msg)
            if isinstance(await msg.decode(), OtpJob):
                raise LookupError  # noqa: TRY004 - a bug, of any type

    stream = await start_stream(lambda broker: broker.add_middleware(Failing))
    await stream.publish(JOB)
    assert stream.outcomes == ["sent"]
    assert stream.dead == []


async def test_a_middleware_that_does_not_call_the_handler_leaves_a_dead_letter(start_stream: Start) -> None:
    class Dropping(BaseMiddleware):
        async def consume_scope(self, call_next: Next, msg: StreamMessage[Any]) -> Any:
            return None if isinstance(await msg.decode(), OtpJob) else await call_next(msg)

    stream = await start_stream(lambda broker: broker.add_middleware(Dropping))
    await stream.publish(JOB)
    (dead_letter,) = stream.dead
    assert dead_letter.headers["x-otp-reason"] == "crashed"
    assert "did not call the handler" in dead_letter.headers["x-otp-error"]


async def test_a_middleware_that_calls_the_handler_twice_sends_and_settles_once(start_stream: Start) -> None:
    class Repeating(BaseMiddleware):
        async def consume_scope(self, call_next: Next, msg: StreamMessage[Any]) -> Any:
            await call_next(msg)
            return await call_next(msg) if isinstance(await msg.decode(), OtpJob) else None

    stream = await start_stream(lambda broker: broker.add_middleware(Repeating))
    await stream.publish(JOB)
    assert stream.recipients == ["user@example.com"]
    assert stream.outcomes[0] == "sent"
    assert set(stream.outcomes) == {"sent"}


async def test_a_dependency_runs_before_each_job(start_stream: Start) -> None:
    called: list[str] = []

    async def dependency() -> None:
        called.append("dependency")

    def extend(broker: RabbitBroker) -> None:
        broker.config.broker_config.broker_dependencies = (Depends(dependency),)

    stream = await start_stream(extend)
    await stream.publish(JOB)
    assert called[0] == "dependency"
    assert stream.outcomes == ["sent"]


@pytest.mark.parametrize("option", [{"ack_policy": AckPolicy.ACK}, {"no_reply": True}, {"exchange": "jobs"}])
def test_an_option_that_a_lane_does_not_have_is_an_error(option: dict[str, Any]) -> None:
    broker = OtpBroker(
        RabbitConfig("amqp://localhost", "", "jobs", "otp", 1, Backoff(1_000, 30_000, 3), 15, b"key"),
        made=SimpleNamespace(),
        telemetry=NoTelemetry(),
    )
    (name,) = option
    with pytest.raises(SetupError, match=name):
        broker.subscriber("jobs", **option)
    with pytest.raises(SetupError, match="exchange"):
        broker.subscriber("jobs", "another exchange")


async def test_a_second_handler_of_a_lane_is_an_error(stream: Stream) -> None:
    with pytest.raises(SetupError, match="has a handler already"):
        stream.broker.subscriber("service_send_otp")
    await stream.publish(JOB)
    assert stream.outcomes == ["sent"]


class Colons:
    """A codec for `address:code`, as a producer without JSON may write it."""

    async def decode(self, msg: StreamMessage[Any]) -> Any:
        if msg.body.startswith(b"{"):
            return json.loads(msg.body)
        email, _, otp = msg.body.decode().partition(":")
        return {"email": email, "otp": otp}

    async def encode(self, msg: Any, serializer: Any) -> tuple[bytes, str | None]:
        return (msg, None) if isinstance(msg, bytes) else (json.dumps(msg).encode(), "application/json")


def use_colons(broker: RabbitBroker) -> None:
    for subscriber in broker.subscribers:
        subscriber.add_call(parser_=None, decoder_=None, dependencies_=(), codec_=Colons())


async def test_a_codec_reads_another_format(start_stream: Start) -> None:
    stream = await start_stream(use_colons)
    await stream.publish(b"user@example.com:123456")
    (mail,) = stream.relay.accepted
    assert mail.recipient == "user@example.com"
    assert b"123456" in mail.content


async def test_a_codec_that_returns_no_job_dead_letters_the_message(start_stream: Start) -> None:
    stream = await start_stream(use_colons)
    await stream.publish(b"user:123456")
    (dead_letter,) = stream.dead
    assert dead_letter.headers["x-otp-reason"] == "malformed"
    assert "email" in dead_letter.headers["x-otp-error"]
    assert "123456" not in searched(dead_letter.headers)
