"""Log lines: JSON in production and staging, readable in development. They never contain codes or full addresses."""

import asyncio
import atexit
import json
import logging
import os
import re
import stat
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from types import NoneType
from typing import Any, TextIO, cast

import structlog
from pydantic_core import to_json
from structlog.typing import EventDict, Processor, WrappedLogger

from otp_stream.telemetry_errors import ERRORS

from .current_span import CURRENT_SPAN
from .log_pipe import LogPipe

# At debug and info level, these loggers write what they send and receive, including addresses and codes.
_WARNINGS_ONLY = ("asyncio", "opentelemetry", "urllib3", "faststream", "mail", "otp_stream.rabbit")

_PLAIN = (str, int, float, NoneType)

# These loggers repeat every second what the broker package logs once.
_SILENCED = ("aiormq", "aio_pika")

_outputs: list["_Output"] = []
"""The current output, if there is one."""


def configure_logs(*, level: str, readable: bool) -> None:
    """Write our log entries and those of every library to standard output, one line each."""
    number = logging.getLevelNamesMapping()[level.upper()]
    if readable:
        timestamper = structlog.processors.TimeStamper("%H:%M:%S.%f", utc=False)
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stdout.isatty(),
            exception_formatter=structlog.dev.plain_traceback,
            pad_event_to=28,
            repr_native_str=True,  # a value must not control the terminal
        )
    else:
        timestamper = structlog.processors.TimeStamper("iso")
        renderer = structlog.processors.JSONRenderer(_dumps)
    shared: list[Processor] = [structlog.processors.add_log_level, timestamper]
    output = cast("TextIO", _output(sys.stdout, partial(_dropped_line, [*shared, renderer])))
    structlog.configure(
        processors=[*shared, _add_trace, structlog.processors.format_exc_info, renderer],
        wrapper_class=_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(output),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                _without_texts,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=number, force=True)
    for name in _SILENCED:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in _WARNINGS_ONLY:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


def _output(stream: TextIO, note: Callable[[int], str]) -> "_Output":
    """Return the output to a stream. A second call returns the same one, because loggers cache their first output."""
    if not _outputs or _outputs[-1].stream is not stream:
        flush_logs()
        _outputs[:] = [_Output(stream, note)]
    return _outputs[-1]


def _dropped_line(processors: Iterable[Processor], count: int) -> str:
    event: Any = {"event": "log lines were dropped: nothing read standard output", "dropped": count}
    for process in processors:
        event = process(None, "warning", event)
    return f"{event}\n"


def _bound_logger(level: int) -> type:
    """Return a logger class whose calls never raise: a job must not fail because a line cannot be written."""
    filtering = cast("Any", structlog.make_filtering_bound_logger(level))

    def write(logger: Any, level: str, event: str | None = None, **fields: Any) -> None:
        try:
            filtering._proxy_to_logger(logger, level, event, **fields)  # noqa: SLF001 - meant to be overridden
        except Exception as error:  # noqa: BLE001 - no error may reach the caller
            ERRORS.count += 1
            with suppress(Exception):
                line = {"level": level, "event": str(event)[:200], "fields_not_logged": type(error).__name__}
                logger._logger.msg(json.dumps(line))  # noqa: SLF001 - past the processors that failed

    return type("BoundLogger", (filtering,), {"_proxy_to_logger": write})


class _Output:
    """A text stream that never raises or blocks: neither a full disk nor a slow log collector may delay a code.

    The lines of one iteration of the event loop are written together at its end, because a write for each line takes as
    long as rendering it. A thread writes to a pipe or terminal; a file is written directly, because it does not block.
    """

    def __init__(self, stream: TextIO, note: Callable[[int], str]) -> None:
        self.stream = stream
        self._encoding = stream.encoding or "utf-8"
        self._pipe = _pipe(stream, note)
        self._lines: list[str] = []
        self._due_in: asyncio.AbstractEventLoop | None = None
        """The loop that will write the lines. If it is closed before that, the next loop writes them."""
        atexit.register(self.finish)

    def write(self, text: str) -> int:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no loop runs, or this is another thread
            self._put(text)
        else:
            self._lines.append(text)
            if self._due_in is not loop:
                self._due_in = loop
                loop.call_soon(self._send)
        return len(text)

    def flush(self) -> None:
        """Do nothing. Lines are flushed at the end of the loop's iteration."""

    def finish(self) -> None:
        """Write the remaining lines. Waits only briefly for the reader."""
        self._send()
        if self._pipe:
            self._pipe.flush()

    def _send(self) -> None:
        lines, self._lines = self._lines, []
        self._due_in = None
        if lines:
            self._put("".join(lines))

    def _put(self, text: str) -> None:
        if self._pipe:
            self._pipe.put(text.encode(self._encoding, "backslashreplace"))
            return
        with suppress(OSError, ValueError):  # ValueError: the stream is closed
            try:
                self.stream.write(text)
            except UnicodeError:  # the stream's encoding lacks a character, but the rest of the text must be written
                self.stream.write(text.encode(self._encoding, "backslashreplace").decode(self._encoding))
            self.stream.flush()


def _pipe(stream: TextIO, note: Callable[[int], str]) -> LogPipe | None:
    """Return a thread that writes to the stream if it is a pipe or terminal, where a write may block."""
    with suppress(OSError, ValueError):
        descriptor = stream.fileno()
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            stream.flush()
            return LogPipe(descriptor, note)
    return None


def flush_logs() -> None:
    """Write the remaining lines. `atexit` does not do that if a signal ends the process."""
    if _outputs:
        _outputs[-1].finish()


def _without_texts(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Remove texts of exceptions and arguments from foreign lines: they may quote a job or a password."""
    name = str(event.get("logger"))
    if name == "asyncio":
        event["event"] = re.split(r"[\n(<]", str(event["event"]), maxsplit=1)[0].strip()
    elif name.startswith("opentelemetry"):
        event["event"] = str(event["_record"].msg)
    else:
        return event
    error = (event.pop("exc_info", None) or (None, None))[1]
    if isinstance(error, BaseException):
        event["error"] = type(error).__name__
        event["exception"] = "".join(traceback.format_tb(error.__traceback__)).rstrip()
    return event


def _dumps(value: Any, **_: Any) -> str:
    # other values are converted by `str`, because the encoder would dump their fields, and only `repr` hides codes
    shown = {
        name: it if isinstance(it, _PLAIN) else json.loads(json.dumps(it, default=str)) for name, it in value.items()
    }
    try:
        return to_json(shown).decode()
    except ValueError:  # a lone surrogate, which UTF-8 cannot encode
        return json.dumps(shown)


def _add_trace(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    if span := CURRENT_SPAN.get():
        context = span.get_span_context()
        event["trace_id"] = f"{context.trace_id:032x}"
        event["span_id"] = f"{context.span_id:016x}"
    return event
