"""Reads the bodies of HTTP requests. Few of those without a valid token wait at once, because they fill the memory."""

import asyncio
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field

from starlette.requests import Request

from .core.client_network import network_of

MOST_WAITING = 32
"""Requests without a valid token that wait for their bodies, each of up to 64 KiB, for up to 10 seconds."""


class BodyTooLargeError(Exception):
    """A body that is larger than it may be."""


class TooManyBodiesError(Exception):
    """A request that has waited for its body the longest, while too many others wait for theirs."""


@dataclass(eq=False, slots=True)
class _Waiting:
    network: str
    timeout: asyncio.Timeout
    is_refused: bool = False


@dataclass(slots=True)
class Bodies:
    """Reads bodies."""

    most: int = MOST_WAITING
    _waiting: dict[_Waiting, None] = field(default_factory=dict[_Waiting, None])
    """In the order in which they came."""

    async def read(self, request: Request, *, most_bytes: int, timeout_s: float, is_known: bool = False) -> bytes:
        """Return the body. `is_known` is whether the request has a valid token, so that it is not limited.

        Raises `BodyTooLargeError`, `TimeoutError`, `TooManyBodiesError` and `ClientDisconnect`.
        """
        waiting = None
        try:
            async with asyncio.timeout(timeout_s) as timeout:
                if not is_known:
                    waiting = self._add(request, timeout)
                return await _read(request, most_bytes)
        except TimeoutError:
            if waiting is not None and waiting.is_refused:
                raise TooManyBodiesError from None
            raise
        finally:
            if waiting is not None:
                self._waiting.pop(waiting, None)

    def _add(self, request: Request, timeout: asyncio.Timeout) -> _Waiting:
        """Add a request. If there are too many, refuse the oldest of the client network that has most.

        The new one is not refused, because the body of an honest request arrives within a round trip.
        """
        added = _Waiting(network_of(request.client.host) if request.client else "", timeout)
        self._waiting[added] = None
        if len(self._waiting) > self.most:
            networks = Counter(it.network for it in self._waiting)
            most = max(networks.values())
            oldest = next(it for it in self._waiting if networks[it.network] == most)
            del self._waiting[oldest]
            oldest.is_refused = True
            oldest.timeout.reschedule(0)
        return added


async def _read(request: Request, most_bytes: int) -> bytes:
    body = bytearray()
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > most_bytes:
                raise BodyTooLargeError
    return bytes(body)
