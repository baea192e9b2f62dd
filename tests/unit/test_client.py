"""The producer API, without a broker: what it publishes, which events it yields, and which connection it closes."""

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic, sleep
from types import SimpleNamespace
from typing import Any

import pytest
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused
from opentelemetry.baggage import set_baggage
from opentelemetry.context import attach, detach
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context
from semantic_conventions import SCHEMA_URL, attributes, span_faults

from otp_stream.client import (
    ClientError,
    JobEvent,
    Metadata,
    OtpClient,
    OtpJob,
    OutcomeUnknownError,
    SyncOtpClient,
    otp_client,
)  # fmt: skip
from otp_stream.client.link import Link


@dataclass
class FakeConnection:
    is_closed: bool = False

    async def close(self) -> None:
        self.is_closed = True


@dataclass
class FakeChannel:
    """A channel whose publishes end when the test ends them."""

    is_closed = False

    bodies: list[bytes] = field(default_factory=list[bytes])
    headers: list[dict[str, Any] | None] = field(default_factory=list[dict[str, Any] | None])
    confirms: list[asyncio.Future[None]] = field(default_factory=list[asyncio.Future[None]])

    async def basic_publish(self, body: bytes, *, properties: Any, **_: Any) -> None:
        self.bodies.append(body)
        self.headers.append(properties.headers)
        self.confirms.append(asyncio.get_running_loop().create_future())
        await self.confirms[-1]


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the connections that clients open from now on."""
    opened: list[Any] = []

    async def open_(_: str) -> Any:
        link = Link(FakeConnection(), FakeChannel())  # type: ignore[arg-type]
        opened.append(link)
        return link

    async def subscribe(*_: Any) -> None:
        pass

    monkeypatch.setattr(Link, "open", open_)
    monkeypatch.setattr(Link, "subscribe", subscribe)
    return opened


async def soon(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)


async def receive(link: Any, body: bytes) -> None:
    await link._receive(SimpleNamespace(body=body))


def event(job_id: str, outcome: str, **more: Any) -> bytes:
    return json.dumps({"jobId": job_id, "outcome": outcome, "attempt": 1, "at": 1, **more}).encode()


async def test_a_published_job_is_read_as_the_same_job(links: list[Any]) -> None:
    job = OtpJob(
        email="ada@example.com", otp="739154", job_id="j-1", timestamp=1_767_225_600_000, priority="high",
        metadata=Metadata.model_validate({"userName": "Ada", "expiryMinutes": 7, "colour": "red"}),
    )  # fmt: skip
    publishing = asyncio.create_task(OtpClient().publish(job))
    await soon(lambda: bool(links) and bool(links[0].publishing.confirms))
    links[0].publishing.confirms[0].set_result(None)
    await publishing
    assert OtpJob.from_bytes(links[0].publishing.bodies[0], strict=True) == job


async def test_a_publish_that_fails_late_does_not_close_the_connection_of_the_next(links: list[Any]) -> None:
    one = OtpClient()
    first, second = (asyncio.create_task(one.publish(b"{}")) for _ in range(2))
    await soon(lambda: bool(links) and len(links[0].publishing.confirms) == 2)
    links[0].publishing.confirms[0].set_exception(ConnectionError("secret"))
    with pytest.raises(ClientError, match=r"connection to RabbitMQ was lost \(ConnectionError\)"):
        await first
    assert links[0].connection.is_closed
    third = asyncio.create_task(one.publish(b"{}"))
    await soon(lambda: len(links) == 2 and len(links[1].publishing.confirms) == 1)
    links[0].publishing.confirms[1].set_exception(TimeoutError())
    with pytest.raises(ClientError, match="has not replied within 10 s"):
        await second
    assert not links[1].connection.is_closed
    links[1].publishing.confirms[0].set_result(None)
    await third


@pytest.mark.parametrize(
    "url", ["", "localhost", "amqp://h:99999/", "amqp://u:739154@h:x/", "http://localhost:5672/", "embedded://"]
)
def test_an_invalid_url_is_an_error_at_once_that_does_not_quote_it(url: str) -> None:
    with pytest.raises(ValueError, match=r"^url (must start with amqp:// or amqps://|has a port)") as error:
        OtpClient(url)
    assert "739154" not in str(error.value)


async def test_a_refused_publish_is_an_error_with_the_text_of_rabbitmq(links: list[Any]) -> None:
    client = OtpClient()
    publishing = asyncio.create_task(client.publish(b"{}"))
    await soon(lambda: bool(links and links[0].publishing.confirms))
    refusal = "ACCESS_REFUSED - access to exchange 'amq.default' refused"
    links[0].publishing.confirms[0].set_exception(ChannelAccessRefused(refusal))
    with pytest.raises(ClientError, match=f"refused to publish to the queue service_send_otp: {refusal}"):
        await publishing


async def test_the_events_of_one_job_end_with_its_final_outcome_and_those_of_all_jobs_do_not(links: list[Any]) -> None:
    one = OtpClient()
    async with one.follow("j-1") as events, one.follow() as all_events:
        for body in (
            b"no JSON", b"[]", event("j-1", "unknown"), event("j-2", "sent"), event("j-1", "retrying", delayMs=5),
            event("j-1", "rejected", replyCode=550), event("j-3", "sent"),
        ):  # fmt: skip
            await receive(links[0], body)
        own: list[JobEvent] = [it async for it in events]
        assert [(it.outcome, it.delay_ms, it.reply_code) for it in own] == [
            ("retrying", 5, None),
            ("rejected", None, 550),
        ]
        assert [(await anext(all_events)).job_id for _ in range(4)] == ["j-2", "j-1", "j-1", "j-3"]
    assert not links[0].followers


async def test_a_lost_connection_ends_the_events_with_an_error(links: list[Any]) -> None:
    async with OtpClient().follow("j-1") as events:
        await receive(links[0], event("j-1", "retrying"))
        links[0]._end()
        assert (await anext(events)).outcome == "retrying"
        with pytest.raises(ClientError, match="the outcome is unknown"):
            await anext(events)


async def test_send_returns_the_final_event_of_the_job_that_it_published(links: list[Any]) -> None:
    sending = asyncio.create_task(OtpClient().send(OtpJob(email="ada@example.com", otp="739154")))
    await soon(lambda: bool(links and links[0].publishing.confirms))
    job_id = json.loads(links[0].publishing.bodies[0])["jobId"]
    links[0].publishing.confirms[0].set_result(None)
    for outcome in ("retrying", "rejected"):
        await receive(links[0], event("another", "sent"))
        await receive(links[0], event(job_id, outcome))
    assert ((found := await sending).outcome, found.job_id) == ("rejected", job_id)


@pytest.mark.parametrize(
    ("confirm", "text"),
    [(True, "RabbitMQ has the job, but no worker has reported"), (False, "RabbitMQ has not confirmed the job")],
)
async def test_send_ends_at_its_deadline_with_the_id_of_the_job(links: list[Any], *, confirm: bool, text: str) -> None:
    sending = asyncio.create_task(OtpClient().send(OtpJob(email="a@example.com", otp="739154"), timeout_s=0.05))
    await soon(lambda: bool(links and links[0].publishing.confirms))
    if confirm:
        links[0].publishing.confirms[0].set_result(None)
    with pytest.raises(OutcomeUnknownError, match=f"{text}.* within 0.05 s") as error:
        await sending
    assert error.value.job_id == json.loads(links[0].publishing.bodies[0])["jobId"]
    assert not links[0].followers


async def test_send_refuses_a_job_id_that_events_do_not_have_and_makes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="job_id: contains the address or the code") as error:
        await OtpClient().send(OtpJob(email="a@example.com", otp="739154", job_id="login-a@example.com"))
    assert "a@example.com" not in str(error.value)
    ids = iter(["0123-0000-4567", "ab-4711-cd", "ab-4712-cd"])
    monkeypatch.setattr("otp_stream.client.otp_client.uuid4", lambda: SimpleNamespace(hex=next(ids)))
    assert otp_client._with_id(OtpJob(email="a@example.com", otp="0000")).job_id == "ab-4711-cd"


async def test_a_job_has_the_trace_context_of_the_current_span(links: list[Any]) -> None:
    context = SpanContext(trace_id=1, span_id=2, is_remote=False, trace_flags=TraceFlags(1))
    token = attach(set_span_in_context(NonRecordingSpan(context), set_baggage("email", "a@example.com")))
    first = asyncio.create_task(OtpClient().publish(b"{}"))
    detach(token)
    second = asyncio.create_task(OtpClient().publish(b"{}"))
    await soon(lambda: len(links) == 2 and all(it.publishing.headers for it in links))
    assert [it.publishing.headers for it in links] == [[{"traceparent": f"00-{1:032x}-{2:016x}-01"}], [None]]
    for it in links:
        it.publishing.confirms[0].set_result(None)
    await asyncio.gather(first, second)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Return what an application that uses OpenTelemetry exports."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("opentelemetry.trace.get_tracer", provider.get_tracer)
    return exporter


async def test_a_publish_is_a_span_whose_context_the_job_has(links: list[Any], spans: InMemorySpanExporter) -> None:
    publishing = asyncio.create_task(OtpClient(exchange="otp.jobs").publish(b'{"otp": "7391540826"}'))
    await soon(lambda: len(links) == 1 and bool(links[0].publishing.headers))
    links[0].publishing.confirms[0].set_result(None)
    await publishing
    failing = asyncio.create_task(OtpClient().publish(b"{}"))
    await soon(lambda: len(links) == 2 and bool(links[1].publishing.headers))
    links[1].publishing.confirms[0].set_exception(ConnectionResetError("7391540826"))
    with pytest.raises(ClientError):
        await failing
    exported = encode_spans(spans.get_finished_spans()).resource_spans[0].scope_spans[0]
    first, second = exported.spans
    assert list(span_faults([first, second])) == []
    assert exported.schema_url == SCHEMA_URL
    assert (first.name, second.name) == ("publish otp.jobs:service_send_otp", "publish service_send_otp")
    ids = f"{first.trace_id.hex()}-{first.span_id.hex()}"
    assert links[0].publishing.headers[0]["traceparent"][3:52] == ids
    assert attributes(first)["messaging.message.body.size"] == 21
    assert attributes(second)["error.type"] == "ConnectionResetError"
    assert "7391540826" not in str(exported)  # its times may have the digits of a shorter one


def test_a_call_ends_with_an_error_when_another_thread_closes_the_client(links: list[Any]) -> None:
    client = SyncOtpClient()
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(client.publish, b"{}") for _ in range(2)]
        ended = monotonic() + 10
        while not (links and len(links[0].publishing.confirms) == 2):
            assert monotonic() < ended
            sleep(0.001)
        client.close()
        for call in calls:
            with pytest.raises(ClientError, match="closed during the call"):
                call.result(10)
    assert links[0].connection.is_closed
    client.close()


def test_an_invalid_argument_of_the_blocking_client_is_an_error_at_once() -> None:
    with pytest.raises(ValueError, match=r"^url must start with"):
        SyncOtpClient("localhost")


@pytest.mark.parametrize(
    ("level", "argument", "records"),
    [
        (logging.ERROR, DeliveredMessage(None, None, b"739154", None), 0),  # type: ignore[arg-type]
        (logging.DEBUG, "frame with 739154", 0),
        (logging.WARNING, "blocked", 1),
    ],
)
def test_aiormq_logs_no_message_of_a_producer(
    caplog: pytest.LogCaptureFixture, level: int, argument: object, records: int
) -> None:
    OtpClient()
    for name in (None, "aiormq"):  # a worker's log, which another test may have configured, silences it
        caplog.set_level(logging.DEBUG, name)
    logging.getLogger("aiormq.channel").log(level, "unhandled %r", argument)
    assert len(caplog.records) == records


def test_a_producer_needs_neither_faststream_nor_the_command_line() -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(['faststream', 'typer', 'rich', 'uvicorn', 'redis']))"
    subprocess.run([sys.executable, "-c", f"{blocked}; import otp_stream.client"], check=True)
