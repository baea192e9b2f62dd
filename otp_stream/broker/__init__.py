"""RabbitMQ: queues and exchanges, consumers, settlements, events."""

from .broker import OtpBroker
from .config import RabbitConfig
from .subscriber import Incoming
from .transport import patch_aiormq, patch_pamqp

__all__ = ["Incoming", "OtpBroker", "RabbitConfig"]

# the worker and the commands import this package before they connect
patch_aiormq()
patch_pamqp()
