"""Time limits of tests, which are longer on a slow machine."""

import os
import time

_VARIABLE = "OTP_TEST_PATIENCE"
_ADDITIONS = 1_000_000
_USUAL_S = 0.065
"""CPU time of the additions on the machine for which the time limits are made."""
_MARGIN = 2.0
"""Because a machine that shares its processor can become slower during a run."""
_MOST = 6.0


def measure() -> float:
    """Set the factor of all time limits in this process and those that it starts. Returns it."""
    slowness = min(_additions_s() for _ in range(3)) / _USUAL_S
    factor = round(min(max(slowness, 1.0) * _MARGIN, _MOST), 1)
    os.environ[_VARIABLE] = str(factor)
    return factor


def deadline(timeout_s: float) -> float:
    """Return when to give up, as `time.monotonic`."""
    return time.monotonic() + limit(timeout_s)


def limit(timeout_s: float) -> float:
    """Return a time limit for this machine."""
    return timeout_s * float(os.environ.get(_VARIABLE, "1"))


def _additions_s() -> float:
    since = time.process_time()
    total = 0
    for number in range(_ADDITIONS):
        total += number
    return time.process_time() - since
