"""Log lines: JSON in production and staging, readable in development; never a code, never an address in the clear."""

import asyncio
import atexit
import json
import logging
import sys
from contextlib import suppress
from datetime import UTC, datetime
from types import NoneType
from typing import Any, TextIO, cast

import structlog
from pydantic_core import to_json
from structlog.typing import EventDict, Processor, WrappedLogger

from .tracing import CURRENT

# These write what they send and receive at their lower levels, and with it addresses and codes.
_TALKATIVE = ("asyncio", "opentelemetry", "urllib3", "faststream", "mail", "otp_stream.rabbit")

_PLAIN = (str, int, float, NoneType)

# These tell once more, every second, what the broker room tells when it is news.
_ECHOES = ("aiormq", "aio_pika")


def configure_logs(*, level: str, readable: bool) -> None:
    """Send our lines and those of every library to standard output, one line each."""
    number = logging.getLevelNamesMapping()[level.upper()]
    output = cast("TextIO", _Output(sys.stdout))
    people = _console() if sys.stdout.isatty() else _readable
    renderer = people if readable else structlog.processors.JSONRenderer(_dumps)
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        _stamp_for_people if readable else _stamp,
    ]
    structlog.configure(
        processors=[*shared, _add_trace, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(output),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=number, force=True)
    for name in _ECHOES:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


class _Output:
    """A stream that fails nobody: a full disk or a dead collector behind standard output must keep no code back.

    A collector that lives and reads nothing still holds the process up once its pipe is full. Lines of one turn of the
    event loop are written at its end, at once: a write for each line took as long as to make it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._due_in: asyncio.AbstractEventLoop | None = None
        """The loop that will write them. One that ended may have left that to the next."""
        atexit.register(self._send)

    def write(self, text: str) -> int:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # before it runs, after its end, or in another thread
            self._put(text)
        else:
            self._lines.append(text)
            if self._due_in is not loop:
                self._due_in = loop
                loop.call_soon(self._send)
        return len(text)

    def flush(self) -> None:
        """Do nothing: each line is flushed in time."""

    def _send(self) -> None:
        lines, self._lines = self._lines, []
        self._due_in = None
        if lines:
            self._put("".join(lines))

    def _put(self, text: str) -> None:
        with suppress(OSError):
            try:
                self._stream.write(text)
            except UnicodeError:  # one word that this stream cannot write must not take the others with it
                encoding = self._stream.encoding or "utf-8"
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()


def _console() -> structlog.dev.ConsoleRenderer:
    return structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback, pad_event_to=28)


def _readable(_: WrappedLogger, __: str, event: EventDict) -> str:
    """Render as the console does, without its colours and in a sixth of its time."""
    at, level, what = event.pop("timestamp", ""), event.pop("level", ""), event.pop("event", "")
    trace = event.pop("exception", None)
    pairs = " ".join([f"{name}={_shown(value)}" for name, value in sorted(event.items())])
    line = f"{at} [{level:<8}] {what:<28} {pairs}".rstrip()
    return f"{line}\n{trace}" if trace else line


def _shown(value: object) -> str:
    return value if isinstance(value, str) and value.isprintable() and " " not in value and value else repr(value)


def _stamp(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    event["timestamp"] = datetime.now(UTC).isoformat(timespec="microseconds")[:-6] + "Z"
    return event


def _stamp_for_people(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    event["timestamp"] = datetime.now().time().isoformat("microseconds")  # noqa: DTZ005 - the clock on their wall
    return event


def _dumps(value: Any, **_: Any) -> str:
    # what is no plain value is shown by its own word: the encoder would open it, and jobs hide their codes in `repr`
    shown = {
        name: it if isinstance(it, _PLAIN) else json.loads(json.dumps(it, default=str)) for name, it in value.items()
    }
    try:
        return to_json(shown).decode()
    except ValueError:  # half a surrogate pair, which is no text
        return json.dumps(shown)


def _add_trace(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    if current := CURRENT.get():
        event["trace_id"] = current.trace
        event["span_id"] = current.span
    return event
