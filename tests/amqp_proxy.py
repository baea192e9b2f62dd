"""A proxy between a worker and RabbitMQ that parses frames, and can hold, drop, cut or delay them.

Faults are made here and at the relay, never by hooks in the product.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from event_loop import rounds
from rabbitmq import free_port

Way = Literal["to broker", "to worker"]
Method = tuple[int, int]
PUBLISH: Method = (60, 40)
CONSUME: Method = (60, 20)
CLOSE: Method = (10, 50)
CONSUMING: Method = (60, 21)
CANCELLED: Method = (60, 31)
DELIVER: Method = (60, 60)
ACK: Method = (60, 80)
"""An acknowledgement if the worker sends it, a publisher confirm if the broker sends it."""

_METHOD_FRAME = 1
_HEADER = 7


@dataclass
class Hold:
    """Holds the frames of one method, and everything after them on that connection."""

    way: Way
    method: Method
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class AmqpProxy:
    """Forwards connections at `port` to the broker at `host:upstream`."""

    host: str
    upstream: int
    port: int = 0
    holds: list[Hold] = field(default_factory=list)
    swallow: bool | Literal["publishing"] = False
    """Whether to drop everything, including the end of connections, on all of them or those that have published."""
    drip_s: float = 0
    """Seconds after each byte to the worker."""
    tear: Method | None = None
    """A method. The next frame of it to a worker is cut in the middle by a reset."""
    refuse: bool = False
    published: int = 0
    """Number of messages that the workers or clients have published."""
    closed: int = 0
    """Number of connections that the worker or client has closed with `connection.close`."""
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _ports: set[int] = field(default_factory=set)
    """The worker's side of each connection."""
    _publishing: set[int] = field(default_factory=set)
    """Connections on which a message was published."""
    _consumers: list[tuple[bytes, bytes, asyncio.StreamWriter]] = field(default_factory=list)
    """Channel and tag of each consumer, and the writer to its broker."""
    _ignored: tuple[Method, frozenset[int]] | None = None
    _brokers: dict[int, asyncio.StreamWriter] = field(default_factory=dict)
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        self.port = self.port or free_port()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        await rounds()
        self.cut()
        await rounds()

    def hold(self, way: Way, method: Method) -> Hold:
        """Hold the next frame of this method, and everything after it."""
        hold = Hold(way, method)
        self.holds.append(hold)
        return hold

    def release(self) -> None:
        """Let everything pass again."""
        for hold in self.holds:
            hold.let_go.set()
        self.holds.clear()
        self.swallow, self.drip_s, self.tear, self.refuse = False, 0, None, False
        self._ignored = None

    def ignore(self, method: Method) -> None:
        """Drop a request on every existing connection, which otherwise works. Later connections are not affected."""
        self._ignored = method, frozenset(self._ports)

    def forget(self) -> None:
        """Make the broker cancel every existing consumer, without notifying any worker."""
        for channel, tag, broker in self._consumers:
            cancel = b"\x00\x3c\x00\x1e" + tag + b"\x01"  # basic.cancel, no-wait
            broker.write(b"\x01" + channel + len(cancel).to_bytes(4, "big") + cancel + b"\xce")
        self._consumers.clear()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if not self.refuse:
                await self._pass_on(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(self.host, self.upstream)
        self._writers.add(up_writer)
        port: int = writer.get_extra_info("peername")[1]
        self._ports.add(port)
        self._brokers[port] = up_writer
        try:
            up_writer.write(await reader.readexactly(8))
            pumps = [
                asyncio.create_task(self._pump("to broker", reader, up_writer, port)),
                asyncio.create_task(self._pump("to worker", up_reader, writer, port)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            self._ports.discard(port)
            self._consumers = [it for it in self._consumers if it[2] is not up_writer]
            del self._brokers[port]
            self._writers.discard(up_writer)
            up_writer.transport.abort()

    async def _pump(self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(_HEADER)
                frame = head + await reader.readexactly(int.from_bytes(head[3:], "big") + 1)
                await self._maybe_hold(way, frame)
                if way == "to broker" and frame[0] == _METHOD_FRAME and _method(frame) == PUBLISH:
                    self._publishing.add(port)
                    self.published += 1
                self.closed += way == "to broker" and frame[0] == _METHOD_FRAME and _method(frame) == CLOSE
                if way == "to worker" and frame[0] == _METHOD_FRAME and _method(frame) == CONSUMING:
                    self._consumers.append((frame[1:3], frame[11:-1], self._brokers[port]))
                if self._swallows(port) or self._ignores(way, frame, port):
                    continue
                if way == "to worker" and frame[0] == _METHOD_FRAME and _method(frame) == self.tear:
                    self.tear = None
                    writer.write(frame[: len(frame) // 2])
                    await writer.drain()
                    return
                await self._write(way, writer, frame)

        while self._swallows(port):  # noqa: ASYNC110 - a test sets and clears a plain field
            await asyncio.sleep(0.05)

    def _swallows(self, port: int) -> bool:
        return self.swallow is True or (self.swallow == "publishing" and port in self._publishing)

    def _ignores(self, way: Way, frame: bytes, port: int) -> bool:
        if self._ignored is None or way == "to worker" or frame[0] != _METHOD_FRAME:
            return False
        method, ports = self._ignored
        return port in ports and _method(frame) == method

    async def _maybe_hold(self, way: Way, frame: bytes) -> None:
        for hold in self.holds:
            if frame[0] == _METHOD_FRAME and hold.way == way and hold.method == _method(frame):
                hold.reached.set()
                await hold.let_go.wait()

    async def _write(self, way: Way, writer: asyncio.StreamWriter, frame: bytes) -> None:
        if not self.drip_s or way == "to broker":
            writer.write(frame)
            await writer.drain()
            return
        for byte in frame:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(self.drip_s)


def _method(frame: bytes) -> Method:
    return int.from_bytes(frame[7:9], "big"), int.from_bytes(frame[9:11], "big")


@asynccontextmanager
async def amqp_proxy(url: str) -> AsyncIterator[tuple[AmqpProxy, str]]:
    """Open a proxy to the broker at `url`. Yields it, and the URL through it."""
    parts = urlsplit(url)
    proxy = AmqpProxy(parts.hostname or "127.0.0.1", parts.port or 5672)
    await proxy.start()
    try:
        yield proxy, f"amqp://{parts.username}:{parts.password}@127.0.0.1:{proxy.port}{parts.path}"
    finally:
        await proxy.stop()
