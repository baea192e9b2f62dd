"""The event loop of the tests: at its end, it aborts the connections that their servers have accepted.

A worker that is killed, or a client that gives up, may have connected a moment before its test ends. Python warns of
a connection that no one closed at some later garbage collection, and fails the test that runs then.
"""

import asyncio
import socket
from typing import Any
from weakref import WeakSet


async def rounds() -> None:
    """Run a few iterations of the event loop.

    An accepted connection gets its task some iterations later, and an aborted one is closed in the next.
    """
    for _ in range(5):
        await asyncio.sleep(0)


class EventLoop(asyncio.SelectorEventLoop):
    """asyncio's event loop. What a test's clients leave open is still reported."""

    def __init__(self) -> None:
        super().__init__()
        # instead of weak references: a connection that its client has closed, and the test not, is not collected
        self._transports: dict[int, Any] = {}
        self._accepted: WeakSet[socket.socket] = WeakSet()

    def _accept_connection2(self, protocol_factory: Any, conn: socket.socket, *rest: Any) -> Any:
        # the task for the coroutine may be cancelled before it starts
        self._accepted.add(conn)
        return self._accept(protocol_factory, conn, *rest)

    async def _accept(
        self, protocol_factory: Any, conn: socket.socket, extra: Any, tls: Any, server: asyncio.Server, *rest: Any
    ) -> None:
        if server.is_serving():
            await super()._accept_connection2(protocol_factory, conn, extra, tls, server, *rest)
        else:  # asyncio fails here with an AssertionError, and leaves the socket open
            conn.close()

    def close(self) -> None:
        """Abort what is open, run what that schedules, and close the loop."""
        if not self.is_closed():
            for _ in range(3):  # a connection may be accepted meanwhile
                for transport in list(self._transports.values()):
                    if transport._server is not None:
                        transport.abort()
                self.run_until_complete(rounds())
            for accepted in self._accepted:
                accepted.close()
        super().close()
