"""Read, replay and drop the messages of the dead-letter queue."""

from .dead_letter_queue import DeadLetterQueue, Summary, current_user
from .reader import StoredDeadLetter
from .sweeper import Sweeper

__all__ = ["DeadLetterQueue", "StoredDeadLetter", "Summary", "Sweeper", "current_user"]
