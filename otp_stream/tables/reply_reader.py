"""Reads the replies of Redis to the script."""

import asyncio
from collections.abc import Callable

from .redis_connection import error_text, reply_text

_REPLY_LIMIT = 4 << 20
"""Maximum bytes of a reply. What the script returns is far shorter, unless another program has written our keys."""
_LONGEST_NUMBER, _LONGEST_LINE = 8, 64 << 10
"""In bytes; a line is an error."""


class ReplyReader(asyncio.Protocol):
    """Parses the script's replies: a bulk string for each call, or an error. Streams would take twice as long."""

    def __init__(self, on_reply: Callable[[bytes], object], on_failure: Callable[[str], object]) -> None:
        self._on_reply, self._on_failure = on_reply, on_failure
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        """Report each complete reply."""
        self._buffer += data
        while (line_end := self._buffer.find(b"\r\n")) >= 0:
            kind, line = self._buffer[:1], self._buffer[1:line_end]
            if kind != b"$":
                self._on_failure(reply_text(line.decode(errors="replace")))
                return
            # no other number: a negative one would be read again and again
            if not line.isdigit() or len(line) > _LONGEST_NUMBER or int(line) > _REPLY_LIMIT:
                size = line[:_LONGEST_NUMBER].decode(errors="replace")
                self._on_failure(f"a reply of {size!r} bytes; does another program write its keys?")
                return
            start = line_end + 2
            end = start + int(line)
            if len(self._buffer) < end + 2:
                return
            reply, self._buffer = self._buffer[start:end], self._buffer[end + 2 :]
            self._on_reply(reply)
        if len(self._buffer) > _LONGEST_LINE:
            self._on_failure("a reply without an end of line; is it Redis?")

    def connection_lost(self, exc: Exception | None) -> None:
        """Report why the connection ended."""
        self._on_failure(error_text(exc) if exc else "it closed the connection")
