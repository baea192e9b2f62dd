"""The connection that consumes. It reads deliveries directly from the received bytes.

aiormq takes three awaits for each of a delivery's three frames, decodes all their fields and starts a task, which took
longer than composing the e-mail. It still reads all other frames.
"""

import sys
import time
from collections.abc import Callable, Iterable
from struct import Struct
from typing import Any, SupportsIndex, cast

import structlog
from aio_pika import Connection, RobustConnection
from aiormq import Channel
from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

from otp_stream.core.otp_job import MAX_BODY_BYTES
from otp_stream.core.sealed_body import is_sealed

from .frames import BODY, END, HEAD, HEADER, HEARTBEAT, METHOD, Acks
from .memory_limit import LargeParts, MemoryLimit
from .message import LARGEST_HEADER, Delivered
from .transport import MAX_FRAME, FrameReader, Streams, connect
from .unacked_limit import UnackedLimit

_DELIVER = b"\x00\x3c\x00\x3c"
_SIZE = Struct(">Q")
_HEARTBEAT = HEAD.pack(HEARTBEAT, 0, 0) + bytes((END,))
_HEARTBEAT_EVERY_S = 1.0
_MAX_JOB = MAX_BODY_BYTES * 4 // 3 + 16 * 1024
"""Bytes of the largest job, sealed as a whole: base64 makes it longer, and a header precedes it."""
_MAX_BODY = 1024 * 1024
"""Bytes of a body that is kept. Of a larger one, only the size is kept: producers can publish bodies of 128 MiB."""
_MAX_SEALED = _MAX_BODY * 4 // 3 + 16 * 1024
"""The same for a sealed body."""
_SMALL_HEADER = 512
"""Bytes of a content header that is always kept as it is."""
_READ_HEADER = 20
"""Bytes of memory for each byte of a content header, as it was received and read, if it has the shortest entries."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class DeliveryAssembler:
    """Assembles the deliveries of one channel from their frames and passes them to `receive`."""

    def __init__(
        self, channel: Channel, acks: Acks, receive: Callable[[Delivered], object], large: LargeParts | None = None
    ) -> None:
        self._channel, self._acks, self._receive = channel, acks, receive
        self._large = large or LargeParts()
        self._reserved: object | None = None
        self._unread = False
        """Whether there is no memory to read all headers of the message that is being received."""
        self._dropped = 0
        """Size of the body that is being received, if it is too large to keep."""
        self._method: bytes | None = None
        self._header: bytes | None = None
        self._missing = 0
        self._body: bytes | bytearray = b""
        self.limit = UnackedLimit(acks)

    def take(self, kind: int, payload: bytes) -> bool:
        """Process a frame. Returns `False` if it belongs to no delivery.

        Raises `AMQPConnectionError` for what would take memory without end.
        """
        if kind == METHOD:
            if payload[:4] != _DELIVER:
                return False
            self._method = payload
            self._header = None
            return True
        if self._method is None:
            return False
        if kind == HEADER:
            self._header = payload
            self._missing = size = _SIZE.unpack_from(payload, 4)[0]
            self._body = b""
            self._dropped = 0
            self._reserved = None
            self._unread = False
            if _SMALL_HEADER < len(payload) <= LARGEST_HEADER:
                reserved = self._large.headers.reserve(len(payload) * _READ_HEADER)
                self._reserved, self._unread = reserved, reserved is None
            if size > _MAX_JOB:
                reserved = None if size > _MAX_SEALED else self._large.bodies.reserve(size)
                self._reserved, self._dropped = (self._reserved, reserved), 0 if reserved else size
        else:
            self._add(payload)
        if self._missing <= 0:
            self._deliver()
        return True

    def _add(self, payload: bytes) -> None:
        """Add a part of the body. A list of parts would take many times their size if each of them is short."""
        self._missing -= len(payload)
        if not payload or self._missing < 0:
            raise AMQPConnectionError("a body that is not as long as its header says; is it RabbitMQ?")
        if self._dropped:
            return
        if not self._body:
            self._body = payload  # almost always all of it
            return
        if isinstance(self._body, bytes):
            self._body = bytearray(self._body)
        self._body += payload

    def _deliver(self) -> None:
        method, header, body = self._method, self._header, bytes(self._body)
        self._method = self._header = None
        self._body = b""
        reserved, self._reserved = self._reserved, None
        if method is None or header is None:
            return
        self.limit.add()
        if len(body) > _MAX_BODY and not is_sealed(body):
            self._dropped, body, reserved = len(body), b"", None
        try:
            self._receive(
                Delivered(self._channel, self._acks, method, header, body, self._dropped, reserved, unread=self._unread)
            )
        except Exception as error:  # noqa: BLE001 - an error in one message must not close the connection
            _log.error("delivery not received", error=type(error).__name__)


class DeliveryReader(FrameReader):
    """Reads the broker's bytes: deliveries go to the assembler of their channel, all other frames to aiormq."""

    def __init__(self) -> None:
        super().__init__()
        self.received = 0
        """Bytes received so far."""
        self._assemblers: dict[int, DeliveryAssembler] = {}
        self._rest = b""
        self._invalid = False
        self._heartbeat_at = 0.0

    def deliver(self, channel: Channel, assembler: DeliveryAssembler) -> None:
        """Pass the deliveries of a channel to `assembler` from now on."""
        self._assemblers[channel.number] = assembler

    def expect(self, channel: Channel, prefetch: int) -> None:
        """Limit the deliveries of a channel that is about to consume with this prefetch count."""
        self._assemblers[channel.number].limit.expect(prefetch)

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        """Receive bytes from the connection."""
        if self.exception() is not None:
            return
        if self._invalid:
            super().feed_data(data)
            return
        new = bytes(data)
        self.received += len(new)
        whole = self._rest + new if self._rest else new
        passed: list[bytes] = []
        try:
            at = self._split(whole, passed)
        except AMQPConnectionError as error:
            self._rest = b""
            self.set_exception(error)  # aiormq, which reads from here, closes the connection
            return
        self._rest = b"" if self._invalid else whole[at:]
        if at and not passed:
            # aiormq closes a connection from which it receives nothing, and the broker sends no heartbeats while it
            # sends deliveries
            now = time.monotonic()
            if now - self._heartbeat_at >= _HEARTBEAT_EVERY_S:
                self._heartbeat_at = now
                passed.append(_HEARTBEAT)
        if passed:
            super().feed_data(b"".join(passed))

    def _split(self, data: bytes, passed: list[bytes]) -> int:
        """Take each complete frame; add those for aiormq to `passed`. Returns where the first incomplete one begins."""
        assemblers, length = self._assemblers, len(data)
        at = 0
        while length - at >= 7:
            kind, channel, size = HEAD.unpack_from(data, at)
            end = at + 7 + size
            if kind not in {METHOD, HEADER, BODY, HEARTBEAT} or size > MAX_FRAME or (end < length and data[end] != END):
                # these are not AMQP frames: aiormq reports the error
                self._invalid = True
                passed.append(data[at:])
                return length
            if end >= length:
                break
            assembler = assemblers.get(channel)
            if assembler is None or not assembler.take(kind, data[at + 7 : end]):
                passed.append(data[at : end + 1])
            at = end + 1
        return at

    def feed_eof(self) -> None:
        """Pass on the end of the stream."""
        if self._rest:
            super().feed_data(self._rest)
            self._rest = b""
        super().feed_eof()


class _StreamFactory(TransportFactory):
    def __init__(self) -> None:
        self.deliveries: DeliveryReader | None = None

    async def create(self, url: URL, **kwargs: Any) -> Streams:
        reader = DeliveryReader()
        streams = await connect(reader, url, **kwargs)
        self.deliveries = reader
        return streams


class ConsumingConnection(RobustConnection):
    """A connection whose deliveries bypass aiormq."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.large = LargeParts()
        self._factory = _StreamFactory()
        self.kwargs["transport_factory"] = self._factory

    @property
    def deliveries(self) -> DeliveryReader | None:
        """The reader of the current connection."""
        return self._factory.deliveries

    async def take(self, receive: Callable[[Delivered], object], prefetch: int) -> Channel:
        """Open a channel whose deliveries are passed to `receive`, for a consumer with this prefetch count."""
        channel = await _take(self, self.deliveries, receive, self.large)
        if self.deliveries is not None:
            self.deliveries.expect(channel, prefetch)
        return channel


class PlainConsumingConnection(Connection):
    """Such a connection for one operation: it does not reconnect."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._factory = _StreamFactory()
        self.kwargs["transport_factory"] = self._factory

    async def take(self, receive: Callable[[Delivered], object]) -> Channel:
        """Open a channel whose deliveries are passed to `receive`."""
        # one that reads dead letters keeps all their headers, for a replay; its window is small
        return await _take(self, self._factory.deliveries, receive, LargeParts(headers=MemoryLimit(sys.maxsize)))

    def expect(self, channel: Channel, prefetch: int) -> None:
        """Limit the deliveries of a channel that is about to consume with this prefetch count."""
        if self._factory.deliveries is not None:
            self._factory.deliveries.expect(channel, prefetch)

    @property
    def received(self) -> int:
        """Bytes received so far."""
        return self._factory.deliveries.received if self._factory.deliveries else 0


async def _take(
    connection: Connection,
    deliveries: DeliveryReader | None,
    receive: Callable[[Delivered], object],
    large: LargeParts | None = None,
) -> Channel:
    transport = connection.transport and connection.transport.connection
    if transport is None or deliveries is None:
        raise ConnectionError("not connected")
    channel = cast("Channel", await transport.channel(publisher_confirms=False))
    deliveries.deliver(channel, DeliveryAssembler(channel, Acks(channel), receive, large))
    return channel
