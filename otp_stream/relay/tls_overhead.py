"""How many bytes of TLS a relay sends besides its replies.

OpenSSL handles session tickets and other messages without data by itself, and takes a second for a megabyte of small
ones, in which the event loop does nothing else.
"""

import contextlib
import socket
import sys

_FREE = 32_768
"""Bytes that any connection may have: after the handshake, servers send two tickets, which may contain our
certificate."""
_PER_REPLY = 512
"""TLS adds up to 85 bytes to each of its records, and a relay may send a reply in several."""
_CHECK_S = 0.25
_BYTES_RECEIVED = 128
"""The offset of `tcpi_bytes_received` in `struct tcp_info` (linux/tcp.h): a number of 8 bytes."""


class TlsOverhead:
    """Compares what the kernel has received on a connection with the replies in it, on Linux."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._allowed = (_received(sock) or 0) + _FREE
        self._next_check = 0.0

    def replied(self, size: int, replies: int) -> None:
        """Count decrypted bytes, and the replies that they completed."""
        self._allowed += size + _PER_REPLY * replies

    def is_excessive(self, now: float) -> bool:
        """Whether there are too many other bytes. Checked a few times a second. `now` is the monotonic clock."""
        if now < self._next_check:
            return False
        self._next_check = now + _CHECK_S
        received = _received(self._sock)
        return received is not None and received > self._allowed


def _received(sock: socket.socket) -> int | None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # it is closed
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED + 8)
            return int.from_bytes(info[_BYTES_RECEIVED:], sys.byteorder)
    return None
