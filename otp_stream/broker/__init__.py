"""All RabbitMQ: queues and exchanges, lanes, settlements, dead letters, events."""

from .broker import OtpBroker
from .config import RabbitConfig
from .subscriber import Incoming
from .transport import patch_aiormq

__all__ = ["Incoming", "OtpBroker", "RabbitConfig"]

# for the worker and for commands alike: all of them import this package before they connect
patch_aiormq()
