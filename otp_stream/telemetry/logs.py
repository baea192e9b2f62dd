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
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from itertools import groupby
from operator import itemgetter
from types import NoneType
from typing import Any, Literal, Protocol, TextIO, cast

import structlog
from pydantic_core import to_json
from structlog.typing import EventDict, Processor, WrappedLogger

from otp_stream.audit_log import AUDIT_LOGGER
from otp_stream.telemetry_errors import ERRORS, observe

from .current_span import CURRENT_SPAN
from .field_names import ecs_fields
from .log_limit import limit_uvicorn
from .log_pipe import LogPipe
from .opened import opened

# At debug and info level, these loggers write what they send and receive, including addresses and codes.
_WARNINGS_ONLY = ("asyncio", "opentelemetry", "urllib3", "faststream", "mail", "otp_stream.rabbit")

_PLAIN = (str, int, float, NoneType)

# These loggers repeat every second what the broker package logs once, or quote a producer's message and headers.
_SILENCED = ("aiormq", "aio_pika", "pamqp")

_outputs: list["_Output"] = []
"""The current output, if there is one."""


LogFormat = Literal["json", "text", "ecs"]


def configure_logs(*, level: str, format: LogFormat, resource: Mapping[str, str]) -> None:  # noqa: A002 - as the setting
    """Write our log entries and those of every library to standard output, one line each, and export them by OTLP.

    `resource` are the attributes of this process, which `ecs` shows and the export uses.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    if format == "text":
        timestamper = structlog.processors.TimeStamper("%H:%M:%S.%f", utc=False)
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stdout.isatty(),
            exception_formatter=structlog.dev.plain_traceback,
            pad_event_to=28,
            repr_native_str=True,  # a value must not control the terminal
        )
    else:
        timestamper = structlog.processors.TimeStamper("iso")
        named = partial(ecs_fields, service=resource) if format == "ecs" else None
        renderer = structlog.processors.JSONRenderer(partial(_dumps, named=named))
    shared: list[Processor] = [structlog.processors.add_log_level, timestamper]
    output = _output(sys.stdout, partial(_dropped_line, [*shared, renderer]))
    last: list[Processor] = [structlog.processors.format_exc_info, _export, renderer]
    structlog.configure(
        processors=[*shared, _add_trace, *last],
        wrapper_class=_bound_logger(number, [*shared, renderer]),
        logger_factory=partial(_logger, output),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(cast("TextIO", output))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                _without_texts,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *last,
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=number, force=True)
    limit_uvicorn()
    for name in _SILENCED:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in _WARNINGS_ONLY:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    if not _exports and (export := opened("logs", partial(_open_export, resource))) is not None:
        _exports.append(export)


class _LogExport(Protocol):
    def add(self, event: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


_exports: list[_LogExport] = []
"""The export of log lines, if there is one."""


def _open_export(resource: Mapping[str, str]) -> _LogExport:
    from .otlp_logs import LogExport  # noqa: PLC0415 - slow to import, and used only if lines are exported

    return LogExport.open(resource)


def close_log_export() -> None:
    """Export the remaining lines, for at most a few seconds. Later ones go to standard output only."""
    while _exports:
        _exports.pop().close()


def _export(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    for export in _exports:
        observe(export.add, event)
    return event


def _output(stream: TextIO, note: Callable[[int], str]) -> "_Output":
    """Return the output to a stream. A second call returns the same one, because loggers cache their first output."""
    if not _outputs or _outputs[-1].stream is not stream:
        flush_logs()
        _outputs[:] = [_Output(stream, note)]
    return _outputs[-1]


def _logger(output: "_Output", *names: str) -> structlog.WriteLogger:
    return structlog.WriteLogger(cast("TextIO", _AuditOutput(output) if names == (AUDIT_LOGGER,) else output))


def _line(processors: Iterable[Processor], level: str, **fields: str | int) -> str:
    event: Any = fields
    for process in processors:
        event = process(None, level, event)
    return f"{event}"


def _dropped_line(processors: Iterable[Processor], count: int) -> str:
    text = "log lines were dropped: nothing read standard output"
    return f"{_line(processors, 'warning', event=text, dropped=count)}\n"


def _bound_logger(level: int, processors: Iterable[Processor]) -> type:
    """Return a logger class whose calls never raise: a job must not fail because a line cannot be written."""
    filtering = cast("Any", structlog.make_filtering_bound_logger(level))

    def write(logger: Any, level: str, event: str | None = None, /, **fields: Any) -> None:
        try:
            filtering._proxy_to_logger(logger, level, event, **fields)  # noqa: SLF001 - meant to be overridden
        except Exception as error:  # noqa: BLE001 - no error may reach the caller
            ERRORS.count += 1
            with suppress(Exception):
                kind = type(error).__name__
                line = _line(processors, level, event=str(event)[:200], fields_not_logged=kind)
                logger._logger.msg(line)  # noqa: SLF001 - past the processors that failed

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
        self._lines: list[tuple[str, bool]] = []
        """Each with whether it is an audit line."""
        self._due_in: asyncio.AbstractEventLoop | None = None
        """The loop that will write the lines. If it is closed before that, the next loop writes them."""
        atexit.register(self.finish)

    def write(self, text: str, *, audit: bool = False) -> int:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no loop runs, or this is another thread
            self._put(text, audit)
        else:
            self._lines.append((text, audit))
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
        for audit, group in groupby(lines, key=itemgetter(1)):
            self._put("".join(text for text, _ in group), audit)

    def _put(self, text: str, audit: bool) -> None:  # noqa: FBT001 - private
        if self._pipe:
            self._pipe.put(text.encode(self._encoding, "backslashreplace"), audit=audit)
            return
        with suppress(OSError, ValueError):  # ValueError: the stream is closed
            try:
                self.stream.write(text)
            except UnicodeError:  # the stream's encoding lacks a character, but the rest of the text must be written
                self.stream.write(text.encode(self._encoding, "backslashreplace").decode(self._encoding))
            self.stream.flush()


class _AuditOutput:
    """The same stream for audit lines."""

    def __init__(self, output: _Output) -> None:
        self._output = output

    def write(self, text: str) -> int:
        return self._output.write(text, audit=True)

    def flush(self) -> None:
        """Do nothing, as the stream."""


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


def _dumps(value: Any, named: Callable[[Any], dict[str, Any]] | None = None, **_: Any) -> str:
    # other values are converted by `str`, because the encoder would dump their fields, and only `repr` hides codes
    shown = {
        name: it if isinstance(it, _PLAIN) else json.loads(json.dumps(it, default=str)) for name, it in value.items()
    }
    shown = named(shown) if named is not None else shown
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
