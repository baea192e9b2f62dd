"""Log lines: what they look like, when they are written, and that none fails anybody."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from contextlib import redirect_stdout

import pytest
import structlog

from otp_stream.core.job import OtpJob, carry
from otp_stream.watch import configure_logs
from otp_stream.watch.tracing import CURRENT


class Stream(io.StringIO):
    """Counts the times that it was written to."""

    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)


def configure(stream: Stream, *, readable: bool = False) -> None:
    with redirect_stdout(stream):
        configure_logs(level="info", readable=readable)


@pytest.fixture
def out() -> Iterator[Stream]:
    stream = Stream()
    kept, level = logging.root.handlers[:], logging.root.level
    yield stream
    structlog.reset_defaults()
    logging.root.handlers[:] = kept
    logging.root.setLevel(level)


class Span:
    trace, span = "a" * 32, "b" * 16


def test_lines_of_one_turn_are_written_at_once_and_in_order(out: Stream) -> None:
    configure(out)

    async def turn() -> None:
        log = structlog.get_logger()
        for number in range(3):
            log.info("one", number=number)
        logging.getLogger("foreign").warning("two")
        assert out.writes == 0
        await asyncio.sleep(0)
        assert out.writes == 1

    asyncio.run(turn())
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["one", "one", "one", "two"]
    assert [line.get("number") for line in lines] == [0, 1, 2, None]


def test_lines_before_the_loop_and_from_threads_are_written_as_they_come(out: Stream) -> None:
    configure(out)
    log = structlog.get_logger()
    log.info("before")
    assert out.writes == 1

    async def turn() -> None:
        await asyncio.to_thread(log.info, "beside")
        assert '"beside"' in out.getvalue()

    asyncio.run(turn())


def test_the_last_lines_of_a_loop_that_ends_are_written(out: Stream) -> None:
    configure(out)

    async def turn() -> None:
        structlog.get_logger().info("last")

    asyncio.run(turn())
    assert '"last"' in out.getvalue()


def test_a_line_for_people_is_aligned_and_quotes_what_has_spaces(out: Stream) -> None:
    configure(out, readable=True)
    structlog.get_logger().info("job sent", job_id="j-1", attempt=1, error="not now\n", empty="")
    line = out.getvalue()
    assert line[15:] == " [info    ] job sent                     attempt=1 empty='' error='not now\\n' job_id=j-1\n"
    assert line.count("\n") == 1


def test_a_foreign_error_for_people_has_its_trace_below(out: Stream) -> None:
    configure(out, readable=True)
    try:
        int("here")
    except ValueError:
        logging.getLogger("foreign").exception("failed")
    assert "[error   ] failed" in out.getvalue()
    assert out.getvalue().rstrip().endswith("invalid literal for int() with base 10: 'here'")


def test_a_line_for_machines_has_time_level_and_span(out: Stream) -> None:
    configure(out)
    token = CURRENT.set(Span())
    structlog.get_logger().warning("half a pair", text="\ud800", odd=object)
    CURRENT.reset(token)
    line = json.loads(out.getvalue())
    assert line["timestamp"].endswith("Z")
    assert len(line["timestamp"]) == len("2026-11-25T16:54:25.123456Z")
    assert (line["level"], line["trace_id"], line["span_id"]) == ("warning", Span.trace, Span.span)


def test_a_word_that_the_stream_cannot_write_takes_no_line_with_it(
    out: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(Stream, "encoding", "latin-1")
    monkeypatch.setattr(out, "write", lambda text: written.append(text.encode("latin-1")))
    configure(out)

    async def turn() -> None:
        for word in ("one", "2 €", "three"):
            structlog.get_logger().info("said", word=word)

    asyncio.run(turn())
    assert [json.loads(line)["word"] for line in b"".join(written).decode("latin-1").splitlines()] == [
        "one", b"2 \\u20ac".decode("unicode_escape"), "three",
    ]  # fmt: skip


@pytest.mark.parametrize("readable", [True, False])
def test_a_job_that_somebody_logs_shows_no_code(out: Stream, *, readable: bool) -> None:
    configure(out, readable=readable)
    ask = OtpJob(email="user@example.com", otp="739154")
    held = carry(ask, job_id="j", lane="jobs", first_seen_ms=1, attempts_made=0, default_expiry_minutes=15)
    structlog.get_logger().info("careless", ask=ask, job=held, several=[ask], named={"a": held})
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


def test_a_full_disk_fails_nobody(out: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(out)

    def full(_: str) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(out, "write", full)
    structlog.get_logger().info("lost")
