"""A Redis or a RabbitMQ that quotes the password that it was shown."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from unittest.mock import AsyncMock

import aio_pika
import pytest
from aio_pika.exceptions import ChannelClosed, ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.exceptions import ChannelAccessRefused, ConnectionClosed, ConnectionNotAllowed
from rabbitmq import until
from structlog.testing import capture_logs

from otp_stream.broker import settle
from otp_stream.broker.audit_queue import AuditCollector
from otp_stream.broker.declares import QueueAwayError, TopologyError, on_channel
from otp_stream.broker.queue_inspect import inspect_queue
from otp_stream.broker.state_tracker import StateTracker
from otp_stream.client import CONNECTION_ERRORS, ClientError, OtpClient, OtpJob
from otp_stream.connection_errors import broker_text
from otp_stream.tables.redis_client import RedisUnavailableError, connected
from otp_stream.tables.redis_connection import error_text
from otp_stream.tables.redis_pipeline import RedisPipeline

PASSWORD = "Sup3r/Passw0rd"
WRITTEN = "Sup3r%2FPassw0rd"
UNKNOWN = "ERR unknown command 'AUTH', with args beginning with: 'otp' 'Sup3r/Pass"


async def _refuse(error: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(4096)
    writer.write(f"-{error}\r\n".encode())
    await writer.drain()
    writer.close()


@asynccontextmanager
async def redis_that_replies(error: str) -> AsyncIterator[str]:
    """Return the URL of a Redis that replies with an error."""
    async with await asyncio.start_server(partial(_refuse, error), "127.0.0.1", 0) as server:
        yield f"redis://otp:{WRITTEN}@127.0.0.1:{server.sockets[0].getsockname()[1]}/0"


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (f"ERR invalid password {PASSWORD} or {WRITTEN}, " + "long " * 60, "invalid password *** or ***, long"),
        ("ERR long " * 21 + PASSWORD, "ERR long"),
        (UNKNOWN, "unknown command 'AUTH'"),
    ],
)
async def test_no_password_is_shown_that_redis_quotes(error: str, shown: str) -> None:
    async with redis_that_replies(error) as url:
        lost: asyncio.Queue[str] = asyncio.Queue()
        pipeline = RedisPipeline(
            lambda: url, prefix="t:", worker="w", on_connected=_nothing, on_lost=lambda error, _: lost.put_nowait(error)
        )
        running = asyncio.create_task(pipeline.run())
        try:
            texts = [await asyncio.wait_for(lost.get(), 10), pipeline.error or ""]
        finally:
            running.cancel()
        with pytest.raises(RedisUnavailableError) as raised:
            await asyncio.to_thread(_connect, url)
        texts.append(str(raised.value))
    assert all(shown in text for text in texts)
    assert not [text for text in texts if "Passw" in text or "Sup3r" in text or len(text) > 300]


async def _nothing() -> None:
    """Do nothing."""


def _connect(url: str) -> None:
    with connected(url) as client:
        client.execute("PING")


def test_no_value_of_another_program_is_shown() -> None:
    with pytest.raises(ValueError, match="evil") as raised:
        int("evil.example 739154")
    assert "evil" not in error_text(raised.value)
    assert error_text(OSError("reset")) == "OSError: reset"


@pytest.mark.parametrize("error", [ConnectionClosed, ConnectionNotAllowed, OSError])
def test_no_password_is_shown_that_rabbitmq_quotes(error: Callable[..., BaseException]) -> None:
    urls = iter([f"amqp://otp:{it}@mq/" for it in ("earlier-passw0rd", WRITTEN)])
    tracker = StateTracker(lambda: next(urls), "amqp://mq", lambda: None)
    for _ in range(2):
        tracker.connection_lost(None, error(320, f"earlier-passw0rd, {PASSWORD} and\n\x1b[31m{WRITTEN}"))
    text = tracker.state.error or ""
    assert "***, *** and" in text
    assert text.isprintable()


async def _refused_declare(error: BaseException) -> str:
    with pytest.raises(TopologyError) as raised:
        await on_channel(AsyncMock(), "otp.dead", AsyncMock(side_effect=error))
    return str(raised.value)


async def _refused_queue(error: BaseException) -> str:
    channel = AsyncMock()
    channel.declare_queue.side_effect = error
    with pytest.raises((QueueAwayError, ChannelClosed)) as raised:
        await inspect_queue(AsyncMock(channel=AsyncMock(return_value=channel)), "otp.dead", {})
    return broker_text(raised.value)


async def _refused_publish(error: BaseException) -> str:
    return settle.error_text(error)


async def _refused_audit(error: BaseException) -> str:
    connection: Any = AsyncMock()
    connection.take.side_effect = error
    collector = AuditCollector("otp.audit", [b"key"])
    with capture_logs() as logs:
        running = asyncio.create_task(collector.run(lambda: connection))

        async def logged() -> bool:
            return bool(logs)

        await until(logged, "a line")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return str(logs[0]["error"])


async def _refused_producer(error: BaseException) -> str:
    client = OtpClient("amqp://mq/")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "_connected", AsyncMock(return_value=AsyncMock(publish=AsyncMock(side_effect=error))))
        with pytest.raises(ClientError) as raised:
            await client.publish(OtpJob(email="user@example.com", otp="123456", job_id="1"))
    return str(raised.value)


@pytest.mark.parametrize(
    "shown", [_refused_declare, _refused_queue, _refused_publish, _refused_audit, _refused_producer]
)
@pytest.mark.parametrize("kind", [ChannelPreconditionFailed, ChannelNotFoundEntity, ChannelAccessRefused])
async def test_no_password_is_shown_that_rabbitmq_quotes_when_it_closes_a_channel(
    shown: Callable[[BaseException], Awaitable[str]], kind: type[ChannelClosed]
) -> None:
    with pytest.raises(CONNECTION_ERRORS):
        await aio_pika.connect(f"amqp://otp:{WRITTEN}@127.0.0.1:1/", timeout=5)
    text = await shown(kind(f"REFUSED - {PASSWORD} and\n\x1b[31m{WRITTEN}"))
    assert "REFUSED - *** and" in text
    assert text.isprintable()
