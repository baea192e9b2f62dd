"""Log lines: JSON in production and staging, readable in development; never a code, never an address in the clear."""

import json
import logging
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog
from pydantic_core import to_json
from structlog.typing import EventDict, Processor, WrappedLogger

from .tracing import CURRENT

# These write what they send and receive at their lower levels, and with it addresses and codes.
_TALKATIVE = ("asyncio", "opentelemetry", "urllib3", "faststream", "mail", "otp_stream.rabbit")

# These tell once more, every second, what the broker room tells when it is news.
_ECHOES = ("aiormq", "aio_pika")


def configure_logs(*, level: str, readable: bool) -> None:
    """Send our lines and those of every library to standard output, one line each."""
    number = logging.getLevelNamesMapping()[level.upper()]
    output = cast("TextIO", _Output(sys.stdout))
    renderer = _console() if readable else structlog.processors.JSONRenderer(_dumps)
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if readable else "iso", utc=not readable),
    ]
    structlog.configure(
        processors=[*shared, _add_trace, renderer],
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

    A collector that lives and reads nothing still holds the process up once its pipe is full.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def _console() -> structlog.dev.ConsoleRenderer:
    return structlog.dev.ConsoleRenderer(
        colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=28
    )


def _dumps(value: Any, **_: Any) -> str:
    try:
        return to_json(value, fallback=str).decode()
    except ValueError:  # half a surrogate pair, which is no text
        return json.dumps(value, default=str)


def _add_trace(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    if current := CURRENT.get():
        event["trace_id"] = current.trace
        event["span_id"] = current.span
    return event
