"""Limits the unacked deliveries of a channel: another server in place of RabbitMQ would ignore the prefetch count."""

from aiormq.exceptions import AMQPConnectionError

from .frames import Acks


class UnackedLimit:
    """Counts the deliveries of one channel. There is no limit until a consumer is expected."""

    def __init__(self, acks: Acks) -> None:
        self._acks = acks
        self._delivered = self._prefetch = 0
        self._most: int | None = None

    def expect(self, prefetch: int) -> None:
        """Limit the unacked deliveries to those of now and those of the next consumer.

        There may also be some of the consumer before it, if the reply to its cancel is missing, and twice as many of
        the next one: a rejected delivery counts until its `basic.nack` is written, and another may replace it before.
        """
        self._most = self._delivered - self._acks.settled + self._prefetch + 2 * prefetch
        self._prefetch = prefetch

    def add(self) -> None:
        """Count a delivery. Raises `AMQPConnectionError` if it is one too many."""
        self._delivered += 1
        if self._most is not None and self._delivered - self._acks.settled > self._most:
            raise AMQPConnectionError("more unacked messages than the prefetch count allows; is it RabbitMQ?")
