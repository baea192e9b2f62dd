"""Log lines: their format, when they are written, and that none raises."""

import asyncio
import gc
import io
import json
import logging
import os
import re
import select
import threading
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import structlog
from opentelemetry.util.re import parse_env_headers
from pamqp import encode

from otp_stream.audit_log import write_audit_fields
from otp_stream.core import line_limit
from otp_stream.core.job import Job
from otp_stream.core.otp_job import OtpJob
from otp_stream.telemetry import configure_logs, flush_logs, resource_attributes
from otp_stream.telemetry.current_span import CURRENT_SPAN
from otp_stream.telemetry.log_pipe import DROPPED, LogPipe

RESOURCE = resource_attributes("test")


class Stream(io.StringIO):
    """Counts the times that it was written to."""

    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)


def configure(stream: Stream, *, readable: bool = False) -> None:
    with redirect_stdout(stream):
        configure_logs(level="info", format="text" if readable else "json", resource=RESOURCE)


@pytest.fixture
def out() -> Iterator[Stream]:
    stream = Stream()
    kept, level = logging.root.handlers[:], logging.root.level
    yield stream
    structlog.reset_defaults()
    logging.root.handlers[:] = kept
    logging.root.setLevel(level)


class Span:
    """A span, and its own context."""

    trace_id, span_id, trace_flags = 0xA, 0xB, 1

    def get_span_context(self) -> "Span":
        return self


def test_lines_of_one_loop_iteration_are_written_at_once_and_in_order(out: Stream) -> None:
    configure(out)

    async def work() -> None:
        log = structlog.get_logger()
        for number in range(3):
            log.info("one", number=number)
        logging.getLogger("foreign").warning("two")
        assert out.writes == 0
        await asyncio.sleep(0)
        assert out.writes == 1

    asyncio.run(work())
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["one", "one", "one", "two"]
    assert [line.get("number") for line in lines] == [0, 1, 2, None]


def test_lines_before_the_loop_and_from_threads_are_written_as_they_come(out: Stream) -> None:
    configure(out)
    log = structlog.get_logger()
    log.info("before")
    assert out.writes == 1

    async def work() -> None:
        await asyncio.to_thread(log.info, "beside")
        assert '"beside"' in out.getvalue()

    asyncio.run(work())


def test_the_last_lines_of_a_loop_that_ends_are_written(out: Stream) -> None:
    configure(out)

    async def work() -> None:
        structlog.get_logger().info("last")

    asyncio.run(work())
    assert '"last"' in out.getvalue()


def test_a_readable_line_is_aligned_and_quotes_what_has_spaces(out: Stream) -> None:
    configure(out, readable=True)
    structlog.get_logger().info("job sent", job_id="j-1", attempt=1, error="not now\n", empty="", odd="\x1b[2J")
    line = out.getvalue()
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{6} ", line[:16])
    values = r"attempt=1 empty='' error='not now\n' job_id='j-1' odd='\x1b[2J'"
    assert line[16:] == f"[info     ] job sent                     {values}\n"
    assert line.count("\n") == 1


def test_a_readable_foreign_error_has_its_trace_below(out: Stream) -> None:
    configure(out, readable=True)
    try:
        int("here")
    except ValueError:
        logging.getLogger("foreign").exception("failed")
    assert "[error    ] failed" in out.getvalue()
    assert out.getvalue().rstrip().endswith("invalid literal for int() with base 10: 'here'")


def test_a_line_for_machines_has_time_level_and_span(out: Stream) -> None:
    configure(out)
    token = CURRENT_SPAN.set(Span())
    structlog.get_logger().warning("half a pair", text="\ud800", odd=object)
    CURRENT_SPAN.reset(token)
    line = json.loads(out.getvalue())
    assert line["timestamp"].endswith("Z")
    assert len(line["timestamp"]) == len("2026-11-25T16:54:25.123456Z")
    assert (line["level"], line["trace_id"], line["span_id"]) == ("warning", "a".zfill(32), "b".zfill(16))


def test_a_character_that_the_stream_cannot_encode_costs_no_line(out: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(Stream, "encoding", "latin-1")
    monkeypatch.setattr(out, "write", lambda text: written.append(text.encode("latin-1")))
    configure(out)

    async def work() -> None:
        for word in ("one", "2 €", "three"):
            structlog.get_logger().info("logged", word=word)

    asyncio.run(work())
    assert [json.loads(line)["word"] for line in b"".join(written).decode("latin-1").splitlines()] == [
        "one", b"2 \\u20ac".decode("unicode_escape"), "three",
    ]  # fmt: skip


@pytest.mark.parametrize("readable", [True, False])
def test_a_logged_job_shows_no_code(out: Stream, *, readable: bool) -> None:
    configure(out, readable=readable)
    request = OtpJob(email="user@example.com", otp="739154")
    held = Job.from_request(
        request, job_id="j", lane="jobs", first_seen_ms=1, attempts_made=0, default_expiry_minutes=15
    )
    structlog.get_logger().info("careless", request=request, job=held, several=[request], named={"a": held})
    assert "739154" not in out.getvalue()
    assert "user@" not in out.getvalue()


@pytest.mark.parametrize("readable", [True, False])
def test_an_error_of_ours_can_have_its_trace(out: Stream, *, readable: bool) -> None:
    configure(out, readable=readable)
    try:
        int("here")
    except ValueError:
        structlog.get_logger().error("failed", exc_info=True)
    assert "invalid literal" in out.getvalue()


@pytest.mark.parametrize("readable", [True, False])
def test_a_line_of_asyncio_about_an_exception_quotes_no_job(out: Stream, *, readable: bool) -> None:
    configure(out, readable=readable)

    async def fail(text: str) -> None:
        raise KeyError(text)

    async def forget() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(int, "code 739154")
        unseen = asyncio.create_task(fail("739154"))
        await asyncio.sleep(0.01)
        del unseen
        gc.collect()

    asyncio.run(forget())
    output = re.sub(r":\d\d\.\d{6}", "", out.getvalue())  # the time may have these digits
    assert "739154" not in output
    for word in (
        "Exception in callback int",
        "Task exception was never retrieved",
        "ValueError",
        "KeyError",
        "in fail",
    ):
        assert word in output


def test_a_line_of_pamqp_about_the_headers_of_a_message_is_not_logged(out: Stream) -> None:
    configure(out)
    encode.field_table({"code 739154\n\x1b[2J" + "n" * 120: 1})
    flush_logs()
    assert not out.getvalue()


@pytest.mark.parametrize("readable", [True, False])
def test_a_line_of_opentelemetry_quotes_no_key(out: Stream, *, readable: bool) -> None:
    configure(out, readable=readable)
    key = "s3cret"
    parse_env_headers(f"api-key {key}", liberal=True)
    try:
        int(key)
    except ValueError:
        logging.getLogger("opentelemetry.sdk").exception("failed: %s", key)
    for word in ("Header format invalid!", "failed: %s", "ValueError"):
        assert word in out.getvalue()
    assert key not in out.getvalue()


def test_a_full_disk_raises_nothing(out: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(out)

    def full(_: str) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(out, "write", full)
    structlog.get_logger().info("lost")


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("123456")

    __str__ = __repr__


@pytest.mark.parametrize("readable", [False, True])
def test_a_line_that_cannot_be_rendered_raises_nothing_and_keeps_its_event(out: Stream, *, readable: bool) -> None:
    configure(out, readable=readable)
    structlog.get_logger("t").warning("it happened", what=Unprintable())
    assert "it happened" in out.getvalue()
    assert "123456" not in out.getvalue()


@pytest.mark.parametrize("name", ["level", "logger", "method_name"])
def test_a_field_may_have_any_name(out: Stream, name: str) -> None:
    configure(out)
    structlog.get_logger("t").warning("it happened", **{name: "x"})
    assert '"event":"it happened"' in out.getvalue().replace(": ", ":")


def test_a_closed_stream_raises_nothing(out: Stream) -> None:
    configure(out)
    log = structlog.get_logger("t")
    out.close()
    log.warning("it happened")


def note(count: int) -> str:
    return f"{count} dropped\n"


def read_all(descriptor: int, until: bytes) -> bytes:
    """Read until a text has come; fails after ten seconds."""
    found = b""
    while until not in found:
        assert select.select([descriptor], [], [], 10)[0], found[-200:]
        more = os.read(descriptor, 1 << 16)
        assert more, found[-200:]
        found += more
    return found


def test_a_pipe_that_is_not_read_drops_excess_lines_and_reports_their_number_later() -> None:
    reader, writer = os.pipe()
    pipe = LogPipe(writer, note, limit=200_000)
    before = DROPPED.count
    lines = [b"%06d %s\n" % (number, b"x" * 92) for number in range(5_000)]
    for line in lines:
        pipe.put(line)  # never waits, or this test does not end
    dropped = DROPPED.count - before
    assert 0 < dropped < 5_000
    found = read_all(reader, b"dropped\n")
    pipe.flush()
    pipe.put(b"again\n")
    found += read_all(reader, b"again\n")
    reported = re.findall(rb"^(\d+) dropped\n", found, re.MULTILINE)
    assert sum(map(int, reported)) == dropped
    kept = [line for line in found.splitlines(keepends=True) if b"dropped" not in line]
    # where the thread is late, there is room again for some of the last lines
    assert kept.pop() == b"again\n"
    assert kept == sorted(set(kept) & set(lines))
    assert len(kept) == len(lines) - dropped
    os.close(reader)
    os.close(writer)


def test_audit_lines_are_kept_while_others_are_dropped(out: Stream) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        with redirect_stdout(stream):
            configure_logs(level="info", format="json", resource=RESOURCE)
        before = DROPPED.count

        async def flood() -> None:
            for number in range(300):
                structlog.get_logger("flood").info("x" * 9_000)
                write_audit_fields({"action": "dead.list", "number": number})
                await asyncio.sleep(0)

        asyncio.run(flood())
        assert DROPPED.count > before
        structlog.get_logger("flood").info("the last one")
        found = read_all(reader, b'"number":299')
        if b"dropped" not in found:  # in the middle, if the thread was late
            found += read_all(reader, b"dropped")
    configure(out)  # a pipe that is closed must not stay in use
    assert re.findall(rb'"number":(\d+)', found) == [b"%d" % number for number in range(300)]
    os.close(reader)


def test_what_uvicorn_writes_about_requests_is_limited_and_counted(
    out: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(out)
    log = logging.getLogger("uvicorn.error")
    for _ in range(30):
        log.warning("Invalid HTTP request received.")
    log.error("another")
    lines = out.getvalue().splitlines()
    assert sum("Invalid HTTP request" in line for line in lines) == 10
    assert "another" in lines[-1]
    monkeypatch.setattr(line_limit, "WINDOW_S", 0)
    log.warning("Invalid HTTP request received.")
    assert "Invalid HTTP request received. (and 20 more like it since the last line)" in out.getvalue()


def test_all_lines_are_written_in_order_to_a_pipe_that_is_read() -> None:
    reader, writer = os.pipe()
    pipe = LogPipe(writer, note)
    for number in range(2_000):
        pipe.put(b"%d\n" % number)
    assert read_all(reader, b"\n1999\n") == b"".join(b"%d\n" % number for number in range(2_000))
    pipe.put(b"last\n")
    pipe.flush()
    assert os.read(reader, 100) == b"last\n"
    os.close(reader)
    os.close(writer)


def test_a_pipe_without_a_reader_fails_no_one_and_a_non_blocking_one_loses_nothing() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    pipe = LogPipe(writer, note)
    for number in range(20_000):
        pipe.put(b"%020d\n" % number)
    assert len(read_all(reader, b"%020d\n" % 19_999)) == 21 * 20_000
    pipe.flush()
    os.close(reader)
    before = DROPPED.count
    pipe.put(b"lost\n")
    pipe.flush()
    assert DROPPED.count == before + 1
    os.close(writer)


def test_flush_waits_for_a_reader_for_two_seconds_in_total() -> None:
    reader, writer = os.pipe()
    pipe = LogPipe(writer, note)
    pipe.put(b"x" * 500_000)
    began = time.monotonic()
    pipe.flush()
    assert 1.9 < time.monotonic() - began < 10
    began = time.monotonic()
    pipe.flush()
    assert time.monotonic() - began < 1
    os.close(reader)  # ends the thread's write
    pipe.flush()
    os.close(writer)


def test_a_second_start_writes_the_last_lines_of_loggers_that_were_used_before_it(out: Stream) -> None:
    assert out.writes == 0
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as stream, redirect_stdout(stream):
        configure_logs(level="info", format="json", resource=RESOURCE)
        log = structlog.get_logger()

        async def work() -> None:
            log.info("first")
            configure_logs(level="info", format="json", resource=RESOURCE)
            structlog.get_logger().info("second")
            log.info("last")
            flush_logs()

        asyncio.run(work())
        lines = os.read(reader, 10_000).decode().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["first", "second", "last"]
    os.close(reader)


def test_queued_lines_reach_no_other_file_that_reuses_the_descriptor() -> None:
    reader, writer = os.pipe()
    pipe = LogPipe(writer, note)
    pipe.put(b"x" * 500_000 + b"\n")
    assert os.read(reader, 1) == b"x"  # the thread writes, and the pipe is full
    other_reader, other_writer = os.pipe()
    os.dup2(other_writer, writer)  # as when it is closed and the next file gets its number
    read_all(reader, b"\n")
    pipe.put(b"last\n")
    assert read_all(reader, b"last\n") == b"last\n"
    os.set_blocking(other_reader, False)
    with pytest.raises(BlockingIOError):
        os.read(other_reader, 1)
    for descriptor in (reader, writer, other_reader, other_writer):
        os.close(descriptor)


def test_lines_wait_until_a_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    pipe = LogPipe(writer, note)

    def no_more(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more)
        pipe.put(b"one\n")
    pipe.put(b"two\n")
    assert read_all(reader, b"two\n") == b"one\ntwo\n"
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("readable", [True, False])
def test_lines_for_a_pipe_are_written_by_a_thread_and_the_last_ones_too(out: Stream, *, readable: bool) -> None:
    assert out.writes == 0
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="ascii") as stream, redirect_stdout(stream):
        configure_logs(level="info", format="text" if readable else "json", resource=RESOURCE)

        async def work() -> None:
            structlog.get_logger().info("logged", word="größer")
            flush_logs()

        asyncio.run(work())
        line = os.read(reader, 10_000).decode("ascii")
    assert "logged" in line
    assert "gr\\xf6" in line or "gr\\u00f6" in line
    os.close(reader)


@pytest.mark.parametrize("readable", [True, False])
def test_the_line_about_dropped_ones_looks_like_any_other(out: Stream, *, readable: bool) -> None:
    assert out.writes == 0
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as stream, redirect_stdout(stream):
        configure_logs(level="info", format="text" if readable else "json", resource=RESOURCE)
        for number in range(300):
            structlog.get_logger().info("x" * 10_000, number=number)
        found = b""
        while not re.search(rb"log lines were dropped.*\n", found):
            found += read_all(reader, b"\n")
    line = next(it for it in found.decode().splitlines() if "log lines were dropped" in it)
    if readable:
        assert "[warning  ] log lines were dropped: nothing read standard output dropped=" in line
    else:
        dropped = json.loads(line)
        assert (dropped["level"], dropped["event"].partition(":")[0]) == ("warning", "log lines were dropped")
        assert dropped["dropped"] > 0
        assert dropped["timestamp"]
    os.close(reader)


ECS = json.loads((Path(__file__).parent.parent / "ecs_logging_spec.json").read_text())


def test_a_line_by_elastic_common_schema_has_its_fields_and_all_others_are_ours(out: Stream) -> None:
    with redirect_stdout(out):
        configure_logs(level="info", format="ecs", resource=RESOURCE)
    token = CURRENT_SPAN.set(Span())
    log = structlog.get_logger()
    log.info("job sent", job_id="j-1", attempt=1, recipient="u***@example.com")
    CURRENT_SPAN.reset(token)
    log.error("job is dead-lettered", job_id="j-1", error="550 no")
    log.warning("health", figures={"a": 1})
    try:
        int("here")
    except ValueError:
        logging.getLogger("foreign").exception("failed")
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    for line in lines:
        for name, field in ECS["fields"].items():
            if field["required"]:
                assert isinstance(line[name], str)
            if "index" in field:
                assert list(line)[field["index"]] == name
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["@timestamp"])
        unknown = line.keys() - ECS["fields"].keys() - {*ECS["more_ecs_fields"]}
        assert all(it.startswith("otp.") for it in unknown)
    sent, dead, health, failed = lines
    assert (sent["trace.id"], sent["span.id"]) == ("a".zfill(32), "b".zfill(16))
    assert (sent["otp.job.id"], sent["otp.attempt"], sent["event.outcome"]) == ("j-1", 1, "success")
    assert (dead["error.message"], dead["event.outcome"], dead["log.level"]) == ("550 no", "failure", "error")
    assert "event.outcome" not in health
    assert (failed["log.logger"], failed["message"]) == ("foreign", "failed")
    assert "ValueError" in failed["error.stack_trace"]
    assert (sent["service.name"], sent["service.environment"], sent["event.dataset"]) == (
        "otp-stream", "test", "otp-stream.log",
    )  # fmt: skip


def test_lines_that_cannot_be_rendered_or_were_dropped_have_the_fields_of_the_schema_too(
    out: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    with redirect_stdout(out):
        configure_logs(level="info", format="ecs", resource=RESOURCE)

    class Broken:
        def __str__(self) -> str:
            raise KeyError

    structlog.get_logger().info("cannot be rendered", value=Broken())
    line = json.loads(out.getvalue())
    assert (line["message"], line["log.level"], line["otp.fields_not_logged"]) == (
        "cannot be rendered",
        "info",
        "KeyError",
    )
    assert line["ecs.version"]
