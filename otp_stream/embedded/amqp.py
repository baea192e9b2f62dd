"""A small AMQP 0-9-1 server on loopback: enough of RabbitMQ to run the worker and its producers without one."""

import asyncio
from typing import Any
from urllib.parse import urlsplit

from pamqp import base, body, commands, constants, exceptions, frame, header, heartbeat

from otp_stream import __version__

from .channel import FRAME_MAX, Channel
from .store import VirtualHost

_HEARTBEAT_S = 30


class EmbeddedBroker:
    """Listens on `host:port` from `start` to `stop`. It accepts any user and password, so use loopback only."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.store = VirtualHost()
        self._server: asyncio.Server | None = None
        self._connections: dict[_Connection, asyncio.Task[None]] = {}

    @classmethod
    def at(cls, url: str) -> "EmbeddedBroker":
        """Return a broker that listens at this URL."""
        parts = urlsplit(url)
        return cls(parts.hostname or "127.0.0.1", parts.port or 5672)

    async def start(self) -> None:
        """Start listening. Port 0 means any free port."""
        self._server = await asyncio.start_server(self._serve, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close every connection and stop listening."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.abort()
        await asyncio.gather(*self._connections.values(), return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self.store, reader, writer)
        self._connections[connection] = asyncio.ensure_future(connection.run())
        try:
            await self._connections[connection]
        except (OSError, asyncio.IncompleteReadError, exceptions.PAMQPException):
            pass  # the client disconnected, or does not speak AMQP, which ends only its own connection
        finally:
            connection.end()
            del self._connections[connection]
            writer.close()


class _Connection:
    def __init__(self, store: VirtualHost, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.store = store
        self._reader, self._writer = reader, writer
        self._channels: dict[int, Channel] = {}
        self._heartbeats: asyncio.Task[None] | None = None

    def send(self, channel: int, *frames: base.Frame | header.ContentHeader | body.ContentBody) -> None:
        if not self._writer.is_closing():
            self._writer.write(b"".join(frame.marshal(it, channel) for it in frames))

    def abort(self) -> None:
        self._writer.transport.abort()

    def end(self) -> None:
        if self._heartbeats is not None:
            self._heartbeats.cancel()
        for channel in list(self._channels.values()):
            channel.close()
        for name in [queue.name for queue in self.store.queues.values() if queue.owner is self]:
            self.store.delete_queue(name)

    async def run(self) -> None:
        if await self._reader.readexactly(8) != b"AMQP\x00\x00\x09\x01":
            self._writer.write(b"AMQP\x00\x00\x09\x01")
            return
        self.send(0, _start_method())
        while (found := await self._read()) is not None:
            number, it = found
            if number == 0:
                if not self._handle_connection_method(it):
                    return
            elif isinstance(it, commands.Channel.Open):
                self._channels[number] = Channel(self, number)
                self.send(number, commands.Channel.OpenOk())
            elif (channel := self._channels.get(number)) is not None and channel.handle(it):
                del self._channels[number]

    async def _read(self) -> tuple[int, Any] | None:
        try:
            head = await self._reader.readexactly(constants.FRAME_HEADER_SIZE)
        except asyncio.IncompleteReadError:
            return None
        size = int.from_bytes(head[3:7], "big")
        rest = await self._reader.readexactly(size + 1)
        _, number, it = frame.unmarshal(head + rest)
        return number, it

    def _handle_connection_method(self, it: object) -> bool:
        """Return whether the connection stays open."""
        match it:
            case commands.Connection.StartOk():
                self.send(0, commands.Connection.Tune(2047, FRAME_MAX, _HEARTBEAT_S))
            case commands.Connection.TuneOk():
                if it.heartbeat:
                    self._heartbeats = asyncio.get_running_loop().create_task(self._send_heartbeats(it.heartbeat / 2))
            case commands.Connection.Open():
                self.send(0, commands.Connection.OpenOk())
            case commands.Connection.Close():
                self.send(0, commands.Connection.CloseOk())
                return False
            case _:
                pass
        return True

    async def _send_heartbeats(self, interval_s: float) -> None:
        while not self._writer.is_closing():
            await asyncio.sleep(interval_s)
            self._writer.write(heartbeat.Heartbeat().marshal())


def _start_method() -> commands.Connection.Start:
    capabilities = (
        "publisher_confirms",
        "basic.nack",
        "consumer_cancel_notify",
        "exchange_exchange_bindings",
        "per_consumer_qos",
    )
    properties: dict[str, Any] = {
        "product": "otp-stream embedded broker",
        "version": __version__,
        "capabilities": dict.fromkeys(capabilities, True),
    }
    return commands.Connection.Start(0, 9, properties, "PLAIN", "en_US")
