"""Limits wrong tokens: by client, and more strictly for each client while many clients send them."""

import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from otp_stream.core.client_network import network_of

WINDOW_S = 60.0
_BY_CLIENT = 10
_IN_TOTAL = 100
"""Wrong tokens of all clients within a minute, from which on each client may send one only."""
_MAX_ENTRIES = 1_000


@dataclass(slots=True)
class GuessLimit:
    """Counts the wrong tokens of the last minute.

    It refuses no client because of others: from a new address, the right token is accepted at the first try.
    """

    _failures: OrderedDict[str, list[float]] = field(default_factory=OrderedDict[str, list[float]])
    """Times of the last wrong tokens, by network."""
    _all: deque[float] = field(default_factory=lambda: deque[float](maxlen=_IN_TOTAL))
    """Times of the last wrong tokens of all clients."""

    def is_blocked(self, client: str) -> bool:
        """Return whether a client has sent too many wrong tokens within the last minute."""
        since = time.monotonic() - WINDOW_S
        many = len(self._all) == _IN_TOTAL and self._all[0] > since
        times = [at for at in self._failures.get(network_of(client), ()) if at > since]
        return len(times) >= (1 if many else _BY_CLIENT)

    def record(self, client: str) -> None:
        """Count a wrong token."""
        network, now = network_of(client), time.monotonic()
        self._all.append(now)
        self._failures[network] = [*self._failures.pop(network, ()), now][-_BY_CLIENT:]
        if len(self._failures) > _MAX_ENTRIES:
            self._failures.popitem(last=False)
