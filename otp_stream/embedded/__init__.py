"""A small broker and a mail inbox in this process, for trying things out. Nothing here outlives the process."""

from .amqp import EmbeddedBroker
from .inbox import Inbox

__all__ = ["EmbeddedBroker", "Inbox"]
