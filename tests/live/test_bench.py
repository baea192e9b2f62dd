"""The benchmark measures: small runs of it against a real broker."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench import micro
from bench.measure import drain, steady
from bench.systems import limited, ours


async def test_a_backlog_is_drained_and_measured(rabbitmq_url: str) -> None:
    run = await drain(limited(ours(), 300), "30 ms", rabbitmq_url)
    assert (run.jobs, run.lost, run.wrong, run.repeated) == (300, 0, 0, 0)
    # fifty connections and 30 ms a reply: no more than one mail in a round trip on each
    assert 0 < run.rate < 50 / 0.03
    assert run.cpu_s_per_1000 > 0
    assert run.memory_mib > 20


async def test_a_steady_rate_is_served_and_measured(rabbitmq_url: str) -> None:
    run = await steady(ours(), "instant", rabbitmq_url, rate=50, seconds=1)
    assert (run.lost, run.wrong, run.repeated) == (0, 0, 0)
    assert run.p50_ms is not None
    assert run.p99_ms is not None
    assert 0 < run.p50_ms <= run.p99_ms


def test_every_step_of_a_jobs_way_can_be_timed() -> None:
    for work in micro.steps().values():
        work()
    assert micro.took_us(micro.yardstick) > 0
