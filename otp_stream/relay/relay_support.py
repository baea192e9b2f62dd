"""What a worker has learned about a relay's extensions: some offer one that does not work."""

from collections import deque
from time import monotonic

from .pending_send import PendingSend

_MAX_LOST = 3
_MAX_TRIALS = 2
_CUT_PERIOD_S = 600.0
_CUT_APART_S = 1.0
"""Connections that are lost within this time, as at a restart of the relay, count as one."""


class RelaySupport:
    """Whether PIPELINING and CHUNKING work at a relay, and whether a mail may be sent behind another one."""

    def __init__(self, *, careful: bool) -> None:
        self.pipelining: bool | None = None
        """Whether the relay answers pipelined commands; `None` before the first answer."""
        self.chunking: bool | None = None
        """Whether the relay takes content by BDAT; `None` before the first answer."""
        self.chunking_probe: PendingSend | None = None
        """The mail that tries BDAT, while it is unknown whether that works."""
        self.ahead = True
        """Whether to send before the reply to what was sent before: an envelope behind the content of another mail, a
        chunk behind its envelope."""
        self.careful = careful
        """Whether to send a content after the replies to its envelope, so that a mail can leave a slow relay."""
        self._trials_lost = 0
        self._lost = 0
        self._cuts: deque[float] = deque()

    @property
    def content_ahead(self) -> bool:
        """Whether to send a chunk before the replies to its envelope."""
        return self.ahead and not self.careful

    def ahead_lost(self) -> None:
        """Count an envelope sent ahead that may have caused a refusal or the end of the session."""
        self._lost += 1
        if self._lost >= _MAX_LOST:
            self.ahead = False

    def ahead_accepted(self) -> None:
        """Reset the count, because only consecutive losses matter."""
        self._lost = 0

    def cut(self) -> None:
        """Count a connection that the relay closed while a chunk was on its way, which makes its mail uncertain."""
        now = monotonic()
        if self._cuts and now - self._cuts[-1] < _CUT_APART_S:
            return
        self._cuts.append(now)
        while now - self._cuts[0] > _CUT_PERIOD_S:
            self._cuts.popleft()
        if len(self._cuts) >= _MAX_LOST:
            self.ahead = False

    def may_chunk(self, pending: PendingSend) -> bool:
        """Return whether this mail is sent by BDAT. The first one tries it, alone."""
        if self.chunking is None and self.chunking_probe is None:
            self.chunking_probe = pending
        return self.chunking is True or self.chunking_probe is pending

    def trial_lost(self) -> None:
        """Count a first chunk without a reply: a relay that cannot take BDAT may end the connection."""
        self._trials_lost += 1
        if self._trials_lost >= _MAX_TRIALS:
            self.chunking = False

    def mail_ended(self, pending: PendingSend) -> None:
        """Let another mail try BDAT, if this one has tried it without a result."""
        if self.chunking_probe is pending:
            self.chunking_probe = None
