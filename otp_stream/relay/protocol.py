"""One TCP connection to a relay: sends bytes, receives whole replies."""

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Sequence
from typing import cast

from otp_stream.core.outcome import UnavailableReason
from otp_stream.core.shown_secrets import ShownSecrets

from .parser import Answer, GarbageError, ReplyParser
from .tls_overhead import TlsOverhead

SESSION_ENDS = 421

_DEAD_PEER_MS = 20_000
"""If TCP acknowledges nothing for this long, the peer is gone. A slow relay still acknowledges, so the long reply times
of RFC 5321 are not affected."""


UNREQUESTED = "the relay sent a reply that no command asked for"


class RelayUnavailableError(Exception):
    """The relay cannot take any job at present; the text is for an operator and contains no secret."""

    def __init__(self, reason: UnavailableReason, text: str) -> None:
        super().__init__(text)
        self.reason: UnavailableReason = reason


class TlsFloodError(RelayUnavailableError):
    """The relay sends TLS without data, which takes the time of all mail."""

    def __init__(self, relay: str) -> None:
        text = f"{relay} sends TLS records without data (session tickets, for example); ask its operator"
        super().__init__("tls_failed", text)


class SmtpProtocol(asyncio.Protocol):
    """During the handshake `execute` returns each reply; afterwards `reply_received` is called for each one."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.parser = ReplyParser()
        self.shown = ShownSecrets()
        """What logins have shown to the relay, on this connection and on others."""
        self.lost: RelayUnavailableError | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.tls_overhead: TlsOverhead | None = None
        """`None` without TLS."""
        self._answers: deque[Answer] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport, and let the kernel detect a peer that is gone."""
        self.transport = cast("asyncio.Transport", transport)
        raw = transport.get_extra_info("socket")
        if raw is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_PEER_MS)

    def data_received(self, data: bytes) -> None:
        """Pass on all complete replies."""
        garbage: GarbageError | None = None
        try:
            answers = self.parser.feed(data)
        except GarbageError as error:
            # replies before it count: after a 250, the mail must not be sent again
            garbage, answers = error, error.before
        if self.tls_overhead is not None:
            self.tls_overhead.replied(len(data), len(answers))
        self.replies_received(answers, more=garbage is not None or self.parser.pending)
        if garbage is not None:
            self.abort(RelayUnavailableError("unreachable", str(garbage)))

    def replies_received(self, answers: Sequence[Answer], *, more: bool) -> None:  # noqa: ARG002 - subclasses use `more`
        """Handle the replies that arrived together. `more`: whether other bytes arrived behind them."""
        for code, text in answers:
            if self.lost is None:
                self.reply_received(code, text)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the wait for replies."""
        why = f": {getattr(exc, 'reason', None) or type(exc).__name__}" if exc else ""
        self.abort(RelayUnavailableError("unreachable", f"the connection was lost{why}"))
        if not self.closed.done():
            self.closed.set_result(None)

    def reply_received(self, code: int, text: str) -> None:
        """Store a reply for `execute`: the one that it waits for, and a 421."""
        if len(self._answers) > 1:
            self.abort(RelayUnavailableError("unreachable", UNREQUESTED))
            return
        self._answers.append((code, text))
        self._wake()

    def abort(self, error: RelayUnavailableError) -> None:
        """End the connection at once. The first error is kept as the reason."""
        if self.lost is None:
            self.lost = error
            self._wake()
            self.transport.abort()

    async def execute(self, command: bytes, timeout_s: float) -> Answer:
        """Send a command (empty for the greeting) and return the reply. Raises `RelayUnavailableError`.

        A reply that is already here is not the reply to this command. Only 421 may come at any time (RFC 5321 §3.8).
        """
        if command and self.lost is None:  # uvloop raises on a write to a closed transport
            if not self.quiet():
                if self._answers and self._answers[0][0] == SESSION_ENDS:
                    return self._answers.popleft()
                raise RelayUnavailableError("unreachable", UNREQUESTED)
            self.transport.write(command)
        try:
            async with asyncio.timeout(timeout_s):
                while not self._answers and self.lost is None:
                    self._waiter = asyncio.get_running_loop().create_future()
                    await self._waiter
        except TimeoutError:
            raise RelayUnavailableError("unreachable", f"no answer within {timeout_s:g} s") from None
        if self._answers:
            return self._answers.popleft()
        raise self.lost or RelayUnavailableError("unreachable", "the connection was lost")

    def check_tls(self, now: float, relay: str) -> None:
        """Abort if `relay` sends TLS without data. `now` is the monotonic clock."""
        if self.tls_overhead is not None and self.tls_overhead.is_excessive(now):
            self.abort(TlsFloodError(relay))

    def quiet(self) -> bool:
        """Whether no unexpected bytes have arrived."""
        return not self._answers and not self.parser.pending

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
