"""Read, replay and drop the messages of the dead-letter queue."""

from .dead_letter_queue import DeadLetterQueue, current_user
from .reader import StoredDeadLetter
from .summary import Summary

__all__ = ["DeadLetterQueue", "StoredDeadLetter", "Summary", "current_user"]
