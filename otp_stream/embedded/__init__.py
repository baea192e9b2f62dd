"""A small broker and an e-mail inbox in this process, for `make run`. Everything is lost when the process exits."""

from .amqp import EmbeddedBroker

__all__ = ["EmbeddedBroker"]
