"""Compares this machine's clock with that of Redis, and corrects it if the other workers' clocks agree with Redis."""

from collections.abc import Iterable
from time import monotonic

import structlog

from otp_stream.clock import MachineClock
from otp_stream.core.job import CLOCK_TOLERANCE_MS
from otp_stream.core.tables_state import ClockState, WorkerSeen

_SLOWEST_MS = 1_000
"""A slower reply says too little about the time."""
_LASTING_S = 3.0
"""If the clock of Redis is set, all clocks differ from it at once. Within this time, all workers have reported it."""
_WITNESSES = 2
"""How many other hosts must agree with Redis at least: one of them may be the machine of Redis, with the same clock."""
_CORRECTED_LIMIT_MS = 24 * 3_600_000
"""Someone between this worker and Redis can forge the replies: this limits for how long an expired code is sent."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class ClockCheck:
    """Compares a clock with that of Redis.

    Two clocks that differ do not show which one is wrong. If two other hosts with workers agree with Redis, and more do
    than do not, this machine's is.
    """

    def __init__(self, machine: MachineClock) -> None:
        self._machine = machine
        self.state = ClockState()
        self._differs_since: float | None = None
        self._is_first = True

    @property
    def differs(self) -> bool:
        """Whether the clocks differ, or did when they were last judged."""
        return _differs(self.state.ahead_ms) or self._differs_since is not None

    def measure(self, sent_ms: int, server_ms: int) -> None:
        """Compare the clock of Redis in a reply with the machine's at the request, and now."""
        received_ms = self._machine.uncorrected_ms()
        if 0 <= received_ms - sent_ms <= _SLOWEST_MS:
            ahead_ms = (sent_ms + received_ms) // 2 - server_ms
            self.state = ClockState(ahead_ms, corrected=self.state.corrected)

    def judge(self, name: str, workers: Iterable[WorkerSeen]) -> None:
        """Correct the machine's clock, or trust it, by how far the clocks of other hosts are ahead of Redis.

        `name` is that of this worker.
        """
        is_first, self._is_first = self._is_first, False
        ahead_ms = self.state.ahead_ms
        if ahead_ms is None:
            return
        if not _differs(ahead_ms):
            if self._differs_since is not None:
                _log.info("this machine's clock agrees with that of Redis again")
            self._differs_since = None
            self._trust()
            return
        now_s = monotonic()
        appeared = self._differs_since is None
        if self._differs_since is None:
            self._differs_since = now_s
        differing = {
            _host(it.name): _differs(it.clock_ahead_ms)
            for it in workers
            if it.clock_ahead_ms is not None and _host(it.name) != _host(name)
        }
        differ = sum(differing.values())
        agree = len(differing) - differ
        if differ > agree:
            self._trust()
        elif (
            agree >= _WITNESSES
            and agree > differ
            and abs(ahead_ms) <= _CORRECTED_LIMIT_MS
            and (is_first or self.state.corrected or now_s - self._differs_since >= _LASTING_S)
        ):
            self._correct(ahead_ms)
        if appeared and not self.state.corrected:
            _log.error(
                "this machine's clock differs from that of Redis: codes expire early or late if it is wrong. Run "
                "timedatectl set-ntp true on both machines",
                ahead_ms=ahead_ms,
            )

    def _correct(self, ahead_ms: int) -> None:
        self._machine.correct(ahead_ms)
        if not self.state.corrected:
            self.state = ClockState(ahead_ms, corrected=True)
            _log.error(
                "this machine's clock is wrong, because those of most other hosts agree with that of Redis, whose time "
                "is used instead. Run timedatectl set-ntp true",
                ahead_ms=ahead_ms,
            )

    def _trust(self) -> None:
        self._machine.trust()
        self.state = ClockState(self.state.ahead_ms)


def _differs(ahead_ms: int | None) -> bool:
    return ahead_ms is not None and abs(ahead_ms) > CLOCK_TOLERANCE_MS


def _host(name: str) -> str:
    """Return the host of a worker, `host:pid`."""
    return name.rpartition(":")[0]
