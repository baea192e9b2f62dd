"""This machine's clock against that of Redis, and what the clocks of other workers say about the two."""

import json

import pytest
from structlog.testing import capture_logs

from otp_stream.clock import MachineClock
from otp_stream.core.tables_state import ClockState, WorkerSeen
from otp_stream.tables import clock_check
from otp_stream.tables.clock_check import ClockCheck
from otp_stream.tables.redis_script import encode_worker, read_workers

HOUR = 3_600_000
TIME = 1_700_000_000_000
"""The right time."""


class SkewedClock(MachineClock):
    """A clock that is ahead."""

    def __init__(self, ahead_ms: int) -> None:
        super().__init__(lambda: (TIME + self.ahead_ms) * 1_000_000)
        self.ahead_ms = ahead_ms


@pytest.fixture
def elapsed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Stop the monotonic clock, and return what it shows."""
    now = [1_000.0]
    monkeypatch.setattr(clock_check, "monotonic", lambda: now[0])
    monkeypatch.setattr("otp_stream.clock._monotonic_ms", lambda: round(now[0] * 1000))
    return now


def worker(clock_ahead_ms: int | None, name: str = "host:1") -> WorkerSeen:
    return WorkerSeen(name, "1", "consuming", "closed", 0, 0, clock_ahead_ms=clock_ahead_ms)


def look(check: ClockCheck, clock: SkewedClock, *others: int | None, server_ms: int = TIME) -> ClockState:
    check.measure(clock.uncorrected_ms(), server_ms)
    itself = worker(check.state.ahead_ms, "own:1")
    check.judge(itself.name, [itself, *(worker(it, f"host{at}:1") for at, it in enumerate(others))])
    return check.state


@pytest.mark.parametrize("ahead_ms", [HOUR, -60_000])
@pytest.mark.parametrize("others", [(0, 0), (0, -4_000, None), (0, 3, HOUR)])
def test_a_clock_is_corrected_if_two_and_most_other_hosts_agree_with_redis(
    elapsed: list[float], ahead_ms: int, others: tuple[int | None, ...]
) -> None:
    clock = SkewedClock(ahead_ms)
    with capture_logs() as logs:
        assert look(ClockCheck(clock), clock, *others) == ClockState(ahead_ms, corrected=True)
    assert clock.now_ms() == TIME
    assert [it["log_level"] for it in logs] == ["error"]
    clock.ahead_ms = 0  # someone sets the clock, and Redis does not answer
    elapsed[0] += 10
    assert clock.now_ms() == TIME + 10_000


@pytest.mark.parametrize("ahead_ms", [HOUR, -60_000])
@pytest.mark.parametrize("others", [(), (None,), (0,), (0, HOUR), (HOUR,), (HOUR, HOUR, 0), (0, 0, HOUR, HOUR)])
def test_a_clock_is_only_reported_if_nothing_shows_that_it_is_wrong(
    elapsed: list[float], ahead_ms: int, others: tuple[int | None, ...]
) -> None:
    clock = SkewedClock(ahead_ms)
    check = ClockCheck(clock)
    with capture_logs() as logs:
        for _ in range(20):
            assert look(check, clock, *others) == ClockState(ahead_ms)
            elapsed[0] += 1
    assert clock.now_ms() == TIME + ahead_ms
    assert [(it["log_level"], it["ahead_ms"]) for it in logs] == [("error", ahead_ms)]


def test_workers_on_one_host_have_one_clock(elapsed: list[float]) -> None:
    clock = SkewedClock(HOUR)
    check = ClockCheck(clock)
    check.measure(clock.uncorrected_ms(), TIME)
    check.judge("own:1", [worker(0, f"{host}:{pid}") for host in ("own", "redis") for pid in range(4)])
    elapsed[0] += 10
    assert clock.now_ms() == TIME + HOUR
    check.judge("own:1", [worker(0, "redis:1"), worker(0, "other:1"), *(worker(HOUR, f"own:{it}") for it in range(4))])
    assert clock.now_ms() == TIME


def test_a_clock_of_redis_that_is_set_corrects_no_worker(elapsed: list[float]) -> None:
    clock = SkewedClock(0)
    check = ClockCheck(clock)
    assert look(check, clock, 0, 0) == ClockState(0)
    wrong_ms = TIME + HOUR
    for _ in range(5):  # the others have not reported yet that they differ, too
        assert not look(check, clock, 0, 0, server_ms=wrong_ms).corrected
        elapsed[0] += 0.5
    for _ in range(20):
        assert not look(check, clock, -HOUR, -HOUR, server_ms=wrong_ms).corrected
        elapsed[0] += 0.5
    assert clock.now_ms() == TIME


def test_a_clock_that_is_set_while_the_worker_runs_is_corrected(elapsed: list[float]) -> None:
    clock = SkewedClock(0)
    check = ClockCheck(clock)
    look(check, clock, 0, 0)
    clock.ahead_ms = HOUR
    while elapsed[0] < 1_002.9:
        assert not look(check, clock, 0, 0).corrected
        elapsed[0] += 0.5
    assert look(check, clock, 0, 0).corrected


def test_a_correction_lasts_until_the_clock_is_right_or_most_others_differ_as_well(elapsed: list[float]) -> None:
    clock = SkewedClock(HOUR)
    check = ClockCheck(clock)
    assert look(check, clock, 0, 0).corrected
    elapsed[0] += 100
    assert look(check, clock, server_ms=TIME).corrected  # no other worker runs any more
    assert not look(check, clock, HOUR, HOUR, 0).corrected
    assert clock.now_ms() == TIME + HOUR
    elapsed[0] += 100
    assert look(check, clock, 0, 0).corrected
    clock.ahead_ms = -2
    with capture_logs() as logs:
        assert look(check, clock, 0, 0) == ClockState(-2)
    assert clock.now_ms() == TIME - 2
    assert not check.differs
    assert [it["log_level"] for it in logs] == ["info"]


def test_a_correction_does_not_follow_each_measurement(elapsed: list[float]) -> None:
    clock = SkewedClock(HOUR)
    check = ClockCheck(clock)
    look(check, clock, 0, 0)
    look(check, clock, 0, 0, server_ms=TIME - 200)
    assert clock.now_ms() == TIME
    look(check, clock, 0, 0, server_ms=TIME - 2_000)
    assert clock.now_ms() == TIME - 2_000


def test_no_clock_is_corrected_by_more_than_a_day(elapsed: list[float]) -> None:
    clock = SkewedClock(25 * HOUR)
    check = ClockCheck(clock)
    look(check, clock, 0, 0)
    elapsed[0] += 100
    assert look(check, clock, 0, 0) == ClockState(25 * HOUR)


def test_a_slow_reply_says_nothing_about_the_time(elapsed: list[float]) -> None:
    clock = SkewedClock(0)
    check = ClockCheck(clock)
    for sent_ms in (TIME - 20_000, TIME + 20_000):
        check.measure(sent_ms, TIME - 10_000)
        check.judge("own:1", [worker(0, "a:1"), worker(0, "b:1")])
        assert check.state == ClockState()


def test_the_clock_of_another_worker_is_read_also_from_versions_without_it() -> None:
    about = encode_worker(worker(-7))
    before = {name: value for name, value in json.loads(about).items() if name != "clock_ahead_ms"}
    reply = b"ok:" + json.dumps([[5, about], [5, json.dumps(before)]]).encode()
    assert [it.clock_ahead_ms for it in read_workers(reply)] == [-7, None]
