"""Limits log lines that strangers can cause."""

from collections import deque

WINDOW_S = 60.0


class LineLimit:
    """Admits a number of lines in each minute, and counts those that are left out."""

    def __init__(self, most: int) -> None:
        self._admitted = deque[float](maxlen=most)
        self._left_out = 0

    def admits(self, now_s: float) -> bool:
        """Return whether to write a line at this time; if not, count it. The time is monotonic."""
        full = len(self._admitted) == self._admitted.maxlen
        if full and now_s - self._admitted[0] < WINDOW_S:
            self._left_out += 1
            return False
        self._admitted.append(now_s)
        return True

    def take_left_out(self) -> int:
        """Return how many lines were left out since the last call."""
        count, self._left_out = self._left_out, 0
        return count
