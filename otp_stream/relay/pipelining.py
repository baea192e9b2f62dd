"""What all connections to one relay have learned of its support for pipelining."""

_MOST_LOST = 3


class PipeliningSupport:
    """Some relays announce PIPELINING and lose commands, or refuse an envelope that is sent ahead."""

    def __init__(self) -> None:
        self.works: bool | None = None
        """Whether the relay answers pipelined commands; `None` before the first answer."""
        self.ahead = True
        """Whether to send an envelope behind the content of the mail before it."""
        self._lost = 0

    def ahead_lost(self) -> None:
        """Count an envelope sent ahead that may have caused a refusal or the end of the session."""
        self._lost += 1
        if self._lost >= _MOST_LOST:
            self.ahead = False

    def ahead_accepted(self) -> None:
        """Count only losses in a row."""
        self._lost = 0
