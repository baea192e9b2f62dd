"""Sliding windows for limits: how many jobs with one key arrived, by slice of time."""

from struct import Struct

from otp_stream.core.admission import Limit

SLICES = 100
"""Slices of a window. A limit is never exceeded, and admits the next job late by at most a hundredth of its period."""

Window = bytes
"""The jobs with one key by slice: their sum, then pairs of slice and count, in order of time.

Most recipients have a window with one job. It takes 64 bytes; objects would take 400.
"""

EMPTY: Window = bytes(4)
_SUM, _SLICE = Struct("<I"), Struct("<QI")


def slice_ms(limit: Limit) -> int:
    """Return the length of one slice of the limit's window."""
    return -(-limit.period_ms // SLICES)


def jobs_in(window: Window) -> int:
    """Return the number of jobs in a window."""
    return _SUM.unpack_from(window)[0]


def advance(window: Window, slice_: int) -> Window:
    """Return the window that ends with this slice, without earlier slices that are no longer in it.

    If the clock was set back, later slices count in this one; otherwise they would count until the clock catches up.
    """
    start, total = _SUM.size, jobs_in(window)
    while start < len(window):
        at, jobs = _SLICE.unpack_from(window, start)
        if at >= slice_ - SLICES:
            break
        start, total = start + _SLICE.size, total - jobs
    if start < len(window) and last_slice(window) > slice_:
        return _merged(window[start:], total, slice_)
    return window if start == _SUM.size else _SUM.pack(total) + window[start:]


def _merged(slices: bytes, total: int, last: int) -> Window:
    """Return the window with these slices, of which those from `last` on are one."""
    before = [it for it in _SLICE.iter_unpack(slices) if it[0] < last]
    after = total - sum(jobs for _, jobs in before)
    return _SUM.pack(total) + b"".join(_SLICE.pack(*it) for it in (*before, (last, after)))


def add_job(window: Window, slice_: int) -> Window:
    """Return the window with one more job in its last slice."""
    total, before, jobs = jobs_in(window), window[_SUM.size :], 0
    if before:
        last, in_last = _SLICE.unpack_from(before, len(before) - _SLICE.size)
        # if the clock was set back, the job counts in the latest slice
        if last >= slice_:
            before, slice_, jobs = before[: -_SLICE.size], last, in_last
    return _SUM.pack(total + 1) + before + _SLICE.pack(slice_, jobs + 1)


def last_slice(window: Window) -> int:
    """Return the last slice with jobs. The window must not be empty."""
    return _SLICE.unpack_from(window, len(window) - _SLICE.size)[0]


def free_from(window: Window, limit: int) -> int:
    """Return the slice from which a full window has room for one more job."""
    over = jobs_in(window) - limit + 1
    for slice_, jobs in _SLICE.iter_unpack(window[_SUM.size :]):
        over -= jobs
        if over <= 0:
            return slice_ + SLICES + 1
    raise AssertionError("a window that is not full has room at once")
