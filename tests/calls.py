"""Counts function calls, because a duration depends on how busy the machine is."""

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


def counted(work: Callable[[], T]) -> tuple[T, int]:
    """Return the result of `work`, and the number of function calls, including built-in functions."""
    calls = 0

    def note(_frame: FrameType, event: str, _value: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    before = sys.getprofile()
    gc.collect()
    gc.disable()  # its callbacks are calls, too, and Hypothesis has one
    sys.setprofile(note)
    try:
        result = work()
    finally:
        sys.setprofile(before)
        gc.enable()
    return result, calls
