"""Read, replay and drop the messages of the dead-letter queue."""

from .dead_letter_queue import DeadLetterQueue, Summary, current_user
from .reader import StoredDeadLetter

__all__ = ["DeadLetterQueue", "StoredDeadLetter", "Summary", "current_user"]
