"""Limits the lines of uvicorn, which any client can cause by an invalid request."""

import logging
import time

from otp_stream.core.line_limit import LineLimit

_MOST = 10
_MAX_TEXTS = 50
_LOGGER = "uvicorn.error"


class _Limited(logging.Filter):
    """Admits ten lines of each text in a minute. The next one has the number of those that were left out."""

    def __init__(self) -> None:
        super().__init__()
        self._limits: dict[str, LineLimit] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        text = str(record.msg)
        if text not in self._limits and len(self._limits) >= _MAX_TEXTS:
            text = ""
        limit = self._limits.setdefault(text, LineLimit(_MOST))
        if not limit.admits(time.monotonic()):
            return False
        if left_out := limit.take_left_out():
            record.msg = f"{str(record.msg).rstrip()} (and {left_out} more like it since the last line)"
        return True


def limit_uvicorn() -> None:
    """Limit its lines, and start counting again."""
    logger = logging.getLogger(_LOGGER)
    for it in [it for it in logger.filters if isinstance(it, _Limited)]:
        logger.removeFilter(it)
    logger.addFilter(_Limited())
