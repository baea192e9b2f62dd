"""Channels of the embedded broker: publishing, consuming and acknowledging."""

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from pamqp import body, commands, header
from pamqp.commands import Basic

from .store import BrokerError, Message, Queue, VirtualHost

FRAME_MAX = 131_072
_REPLY_TO = "amq.rabbitmq.reply-to"


class Connection(Protocol):
    """The connection of a channel."""

    store: VirtualHost

    def send(self, channel: int, *frames: Any) -> None:
        """Write frames."""
        ...


@dataclass(slots=True)
class _Publishing:
    """A message whose frames have not all arrived."""

    method: Basic.Publish
    properties: Basic.Properties = field(default_factory=Basic.Properties)
    size: int = 0
    body: bytearray = field(default_factory=bytearray)


class Channel:
    """One channel, with its consumers and unacked messages."""

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection, self.number = connection, number
        self.prefetch = 0
        self.unacked: dict[int, tuple[Queue, Message, _Consumer | None]] = {}
        self._consumers: dict[str, _Consumer] = {}
        self._tags = itertools.count(1)
        self._names = itertools.count(1)
        self._confirms: itertools.count[int] | None = None
        self._publishing: _Publishing | None = None
        self._refused = False

    def handle(self, it: Any) -> bool:
        """Execute a method. Returns whether the channel is closed."""
        if isinstance(it, commands.Channel.Close):
            self.close()
            self._send(commands.Channel.CloseOk())
            return True
        if isinstance(it, commands.Channel.CloseOk):
            return True
        if not self._refused:
            try:
                self._execute(it)
            except BrokerError as error:
                self._refuse(error, it)
        return False

    def close(self) -> None:
        """Cancel the consumers, and requeue unacked messages."""
        for consumer in self._consumers.values():
            consumer.cancel()
        self._consumers.clear()
        self._settle(0, multiple=True, then=Queue.requeue)

    def deliver(self, consumer: "_Consumer", queue: Queue, message: Message) -> None:
        """Send a message to a consumer of this channel."""
        tag = next(self._tags)
        if not consumer.no_ack:
            self.unacked[tag] = (queue, message, consumer)
            consumer.unacked += 1
        deliver = Basic.Deliver(consumer.tag, tag, message.redelivered, message.exchange, message.routing_key)
        self._send(deliver, *_content(message))

    def _send(self, *frames: Any) -> None:
        self.connection.send(self.number, *frames)

    def _refuse(self, error: BrokerError, it: Any) -> None:
        self._refused = True
        self.close()
        index = getattr(it, "index", 0)
        self._send(commands.Channel.Close(error.code, str(error), index >> 16, index & 0xFFFF))

    def _execute(self, it: object) -> None:
        method = _METHODS.get(type(it))
        if method is None:
            raise BrokerError(540, f"NOT_IMPLEMENTED - {getattr(it, 'name', type(it).__name__)} by the embedded broker")
        answer = method(self, it)
        if answer is not None and not getattr(it, "nowait", False):
            self._send(answer)

    def qos(self, it: Basic.Qos) -> Any:
        self.prefetch = it.prefetch_count
        return Basic.QosOk()

    def select(self, _: commands.Confirm.Select) -> Any:
        self._confirms = self._confirms or itertools.count(1)
        return commands.Confirm.SelectOk()

    def declare_exchange(self, it: commands.Exchange.Declare) -> Any:
        if it.passive:
            self.connection.store.exchange(it.exchange)
        else:
            self.connection.store.declare_exchange(it.exchange, it.exchange_type)
        return commands.Exchange.DeclareOk()

    def delete_exchange(self, it: commands.Exchange.Delete) -> Any:
        self.connection.store.exchanges.pop(it.exchange, None)
        return commands.Exchange.DeleteOk()

    def declare_queue(self, it: commands.Queue.Declare) -> Any:
        if it.queue == _REPLY_TO:
            return commands.Queue.DeclareOk(it.queue, 0, 0)
        store = self.connection.store
        if it.passive:
            queue = store.queue(it.queue)
        else:
            name = it.queue or f"amq.gen-{id(self):x}-{next(self._names)}"
            owner = self.connection if it.exclusive else None
            queue = store.declare_queue(name, it.arguments or {}, owner)
        return commands.Queue.DeclareOk(queue.name, len(queue.ready), len(queue.consumers))

    def bind(self, it: commands.Queue.Bind) -> Any:
        self.connection.store.queue(it.queue)
        bound = (it.routing_key, it.queue)
        bindings = self.connection.store.exchange(it.exchange).bindings
        if bound not in bindings:
            bindings.append(bound)
        return commands.Queue.BindOk()

    def unbind(self, it: commands.Queue.Unbind) -> Any:
        with contextlib.suppress(ValueError):
            self.connection.store.exchange(it.exchange).bindings.remove((it.routing_key, it.queue))
        return commands.Queue.UnbindOk()

    def purge(self, it: commands.Queue.Purge) -> Any:
        queue = self.connection.store.queue(it.queue)
        count = len(queue.ready)
        queue.ready.clear()
        return commands.Queue.PurgeOk(count)

    def delete_queue(self, it: commands.Queue.Delete) -> Any:
        return commands.Queue.DeleteOk(self.connection.store.delete_queue(it.queue))

    def consume(self, it: Basic.Consume) -> Any:
        queue = self.connection.store.queue(it.queue)
        tag = it.consumer_tag or f"amq.ctag-{next(self._names)}"
        consumer = self._consumers[tag] = _Consumer(self, queue, tag, it.no_ack, self.prefetch)
        self._send(Basic.ConsumeOk(tag))
        queue.consumers.append(consumer)
        queue.dispatch()

    def cancel(self, it: Basic.Cancel) -> Any:
        if (consumer := self._consumers.pop(it.consumer_tag or "", None)) is not None:
            consumer.cancel()
        return Basic.CancelOk(it.consumer_tag)

    def get(self, it: Basic.Get) -> Any:
        queue = self.connection.store.queue(it.queue)
        if not queue.ready:
            return Basic.GetEmpty()
        message, tag = queue.ready.popleft(), next(self._tags)
        if not it.no_ack:
            self.unacked[tag] = (queue, message, None)
        get_ok = Basic.GetOk(tag, message.redelivered, message.exchange, message.routing_key, len(queue.ready))
        self._send(get_ok, *_content(message))
        return None

    def ack(self, it: Basic.Ack) -> Any:
        self._settle(it.delivery_tag, multiple=it.multiple, then=_drop)

    def nack(self, it: Basic.Nack) -> Any:
        self._settle(it.delivery_tag, multiple=it.multiple, then=Queue.requeue if it.requeue else Queue.dead_letter)

    def reject(self, it: Basic.Reject) -> Any:
        self._settle(it.delivery_tag or 0, multiple=False, then=Queue.requeue if it.requeue else Queue.dead_letter)

    def _settle(self, tag: int, *, multiple: bool, then: Callable[[Queue, Message], None]) -> None:
        tags = [known for known in self.unacked if known <= tag or tag == 0] if multiple else [tag]
        if not multiple and tag not in self.unacked:
            raise BrokerError(406, f"PRECONDITION_FAILED - unknown delivery tag {tag}")
        touched: dict[str, Queue] = {}
        for known in reversed(tags):  # so that requeued messages keep their order
            queue, message, consumer = self.unacked.pop(known)
            if consumer is not None:
                consumer.unacked -= 1
            touched[queue.name] = queue
            then(queue, message)
        for queue in touched.values():
            queue.dispatch()

    def publish(self, it: Basic.Publish) -> Any:
        self._publishing = _Publishing(it)

    def content_header(self, it: header.ContentHeader) -> Any:
        if (publishing := self._publishing) is not None:
            publishing.properties, publishing.size = it.properties or Basic.Properties(), it.body_size
            if not it.body_size:
                self._route(publishing)

    def content_body(self, it: body.ContentBody) -> Any:
        if (publishing := self._publishing) is not None:
            publishing.body += it.value
            if len(publishing.body) >= publishing.size:
                self._route(publishing)

    def _route(self, publishing: _Publishing) -> None:
        self._publishing = None
        method = publishing.method
        message = Message(method.exchange, method.routing_key, publishing.properties, bytes(publishing.body))
        routed = self.connection.store.publish(message)
        if not routed and method.mandatory:
            self._send(Basic.Return(312, "NO_ROUTE", method.exchange, method.routing_key), *_content(message))
        if self._confirms is not None:
            self._send(Basic.Ack(next(self._confirms)))


@dataclass(slots=True, eq=False)
class _Consumer:
    channel: Channel
    queue: Queue
    tag: str
    no_ack: bool
    prefetch: int
    unacked: int = 0

    def has_room(self) -> bool:
        return self.no_ack or not self.prefetch or self.unacked < self.prefetch

    def deliver(self, queue: Queue, message: Message) -> None:
        self.channel.deliver(self, queue, message)

    def cancel(self) -> None:
        with contextlib.suppress(ValueError):
            self.queue.consumers.remove(self)


def _drop(_: Queue, __: Message) -> None:
    """Do nothing with an acked message."""


def _content(message: Message) -> list[header.ContentHeader | body.ContentBody]:
    size = FRAME_MAX - 8
    parts = [message.body[at : at + size] for at in range(0, len(message.body), size)]
    return [
        header.ContentHeader(0, len(message.body), message.properties),
        *(body.ContentBody(part) for part in parts),
    ]


_METHODS = cast(
    "dict[type, Callable[[Channel, Any], Any]]",
    {
        Basic.Qos: Channel.qos,
        Basic.Consume: Channel.consume,
        Basic.Cancel: Channel.cancel,
        Basic.Get: Channel.get,
        Basic.Ack: Channel.ack,
        Basic.Nack: Channel.nack,
        Basic.Reject: Channel.reject,
        Basic.Publish: Channel.publish,
        header.ContentHeader: Channel.content_header,
        body.ContentBody: Channel.content_body,
        commands.Confirm.Select: Channel.select,
        commands.Exchange.Declare: Channel.declare_exchange,
        commands.Exchange.Delete: Channel.delete_exchange,
        commands.Queue.Declare: Channel.declare_queue,
        commands.Queue.Bind: Channel.bind,
        commands.Queue.Unbind: Channel.unbind,
        commands.Queue.Purge: Channel.purge,
        commands.Queue.Delete: Channel.delete_queue,
    },
)
