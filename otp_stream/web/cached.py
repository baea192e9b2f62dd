"""What is the same for all visitors is made at most twice a second, however many requests ask for it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

LIFETIME_S = 0.5
"""How long a value is used. Making one takes milliseconds of the event loop, which also sends the codes."""

_K = TypeVar("_K", bound=Hashable)
_T = TypeVar("_T")


@dataclass(slots=True)
class Cached(Generic[_K, _T]):
    """Keeps values by key, and makes one value at a time. There must be few keys, because none is removed."""

    make: Callable[[_K], Awaitable[_T]]
    lifetime_s: Callable[[], float] = lambda: LIFETIME_S
    _made: dict[_K, tuple[float, _T]] = field(default_factory=dict[_K, tuple[float, _T]])
    _making: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def get(self, key: _K) -> _T:
        """Return the value, or make it if there is none within the lifetime. Requests that wait for it share it."""
        async with self._making:
            made_at, value = self._made.get(key, (float("-inf"), None))
            if value is None or time.monotonic() - made_at >= self.lifetime_s():
                value = await self.make(key)
                self._made[key] = time.monotonic(), value
            return value
