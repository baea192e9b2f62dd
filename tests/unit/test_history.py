"""The history behind the charts and the list of recent jobs on the dashboard."""

from otp_stream.core.stats import Recent, Step
from otp_stream.telemetry.stats import STEP_MS, STEPS, History

NOW = 1_800_000_000_000
SILENT = 0, 0, 0, None, None, None


def recent(what: str, at_ms: int, number: int = 0) -> Recent:
    return Recent(at_ms, f"job-{number}", "jobs", "u***@example.com", "otp", what, 1)


def figures(step: Step) -> tuple[int | None, ...]:
    return step.sent, step.retried, step.dead, step.p50_ms, step.p95_ms, step.p99_ms


def test_a_step_counts_what_was_sent_retried_and_dead_and_how_long_mails_took() -> None:
    history = History()
    for took_ms in range(1, 101):
        history.mail_accepted(took_ms, NOW)
    for number, what in enumerate(("sent", "sent", "retry", "rejected", "malformed", "duplicate", "superseded")):
        history.add(recent(what, NOW, number))
    *before, last = history.steps(NOW + STEP_MS - 1)
    assert figures(last) == (2, 1, 2, 51, 97, 101)
    assert len(before) == STEPS - 1
    assert {figures(step) for step in before} == {SILENT}


def test_times_are_true_to_a_sixtieth_however_long() -> None:
    history = History()
    for took_ms in (3, 900, 65_432, 7_000_000):
        history.mail_accepted(took_ms, NOW)
        step = history.steps(NOW)[-1]
        assert step.p99_ms is not None
        assert abs(step.p99_ms - took_ms) <= took_ms / 60


def test_the_oldest_steps_are_evicted() -> None:
    history = History()
    for number in range(STEPS + 20):
        history.add(recent("sent", NOW + number * STEP_MS))
    steps = history.steps(NOW + (STEPS + 19) * STEP_MS)
    assert [step.sent for step in steps] == [1] * STEPS
    assert [step.at_ms for step in steps] == sorted(step.at_ms for step in steps)
    later = history.steps(NOW + (STEPS + 19 + 3) * STEP_MS)
    assert [step.sent for step in later] == [1] * (STEPS - 3) + [0] * 3
    assert {figures(step) for step in history.steps(NOW + 2 * STEPS * STEP_MS + 100 * STEP_MS)} == {SILENT}


def test_a_clock_that_was_set_back_does_not_stop_the_charts() -> None:
    history = History()
    history.add(recent("sent", NOW + 86_400_000))
    history.add(recent("sent", NOW))
    history.add(recent("sent", NOW + STEP_MS))
    history.add(recent("sent", NOW + STEP_MS - 1))  # two clocks of one machine may differ by a moment
    assert [step.sent for step in history.steps(NOW + STEP_MS)[-2:]] == [1, 2]


def test_failed_jobs_stay_listed_however_many_succeed() -> None:
    history = History()
    history.add(recent("rejected", NOW, 1))
    for number in range(100):
        history.add(recent("sent", NOW + 1 + number, number))
    kept = history.recent()
    assert [it.what for it in kept] == ["sent"] * 10 + ["rejected"]
    assert [it.at_ms for it in kept] == sorted((it.at_ms for it in kept), reverse=True)
