"""Messages of every kind; `make fuzz` publishes a hundred times as many."""

from conftest import Stage
from fuzz import fuzz


async def test_whatever_is_published_ends_once_blocks_no_other_and_shows_no_code(stage: Stage) -> None:
    report = await fuzz(stage, 1_000, seed=1)
    assert (report.ledger.ended, report.twice, report.ledger.leaks) == (1_000, {}, []), str(report)
    assert report.ledger.sent > 200, str(report)
    # twice the bound of `make fuzz`: a busy machine is slow, too
    assert report.blocked_ms < 100, str(report)
