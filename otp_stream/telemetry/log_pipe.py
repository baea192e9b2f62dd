"""A thread that writes log lines, so that no job is blocked when nothing reads standard output.

A write to a pipe or terminal blocks when its buffer is full. Here only the thread blocks. Lines that it cannot write
yet are kept up to a limit. Lines beyond the limit are dropped and counted.
"""

import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress

LIMIT = 1 << 20
"""Maximum number of bytes kept for the reader, about 4,000 lines."""
RESERVED = LIMIT // 4
"""More bytes, for audit lines alone: no flood of other lines may have them dropped."""
_EXIT_S = 2.0
"""How long a process that ends waits for the reader, in total."""


class _Dropped:
    """The number of lines that this process did not write."""

    count = 0


DROPPED = _Dropped()


class LogPipe:
    """Writes lines to a file descriptor in order. `note` returns the line that reports how many were dropped."""

    def __init__(self, descriptor: int, note: Callable[[int], str], limit: int = LIMIT) -> None:
        # a duplicate, because the number of a closed descriptor may be reused for another file while the thread writes
        self._descriptor = os.dup(descriptor)
        self._note = note
        self._limit = limit
        self._changed = threading.Condition()
        self._waiting: list[bytes] = []
        self._size = 0
        """Bytes that are not written yet."""
        self._unreported = 0
        self._thread: threading.Thread | None = None
        self._flush_s = _EXIT_S

    def put(self, lines: bytes, *, audit: bool = False) -> None:
        """Queue lines, or drop them if the limit is reached; never blocks."""
        with self._changed:
            if self._size + len(lines) > self._limit + (RESERVED if audit else 0):
                count = lines.count(b"\n")
                self._unreported += count
                DROPPED.count += count
                return
            self._waiting.append(lines)
            self._size += len(lines)
            if self._thread is None:
                # a daemon, so that it does not delay the end of the process
                thread = threading.Thread(target=self._run, name="log", daemon=True)
                with suppress(RuntimeError):  # no more threads are available: the next line tries again
                    thread.start()
                    self._thread = thread
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until everything is written, for at most two seconds in all calls together."""
        began = time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: not self._size, self._flush_s)
        self._flush_s = max(self._flush_s - (time.monotonic() - began), 0)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                lines, self._waiting = b"".join(self._waiting), []
                unreported, self._unreported = self._unreported, 0
            if not self._write(lines):
                DROPPED.count += lines.count(b"\n")
            elif unreported:
                self._write(self._note(unreported).encode(errors="backslashreplace"))
            with self._changed:
                self._size -= len(lines)
                self._changed.notify_all()

    def _write(self, lines: bytes) -> bool:
        """Write all bytes. Returns `False` if there is no reader any more."""
        left = memoryview(lines)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # another process that shares the pipe has made it non-blocking
                select.select([], [self._descriptor], [])
            except OSError:
                return False
        return True
