"""Messages of every kind; `make fuzz` publishes a hundred times as many."""

from conftest import Stage
from fuzz import fuzz


async def test_whatever_is_published_ends_once_blocks_no_other_and_shows_no_code(stage: Stage) -> None:
    report = await fuzz(stage, 1_000, seed=1)
    assert (report.ledger.ended, report.twice, report.ledger.leaks) == (1_000, {}, []), str(report)
    assert report.ledger.sent > 200, str(report)
    # `make fuzz` has the exact bound. Here it is for quadratic work, which takes seconds, on a busy machine.
    assert report.blocked_ms < 250, str(report)
