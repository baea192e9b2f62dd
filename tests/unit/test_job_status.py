"""The status of a job, as the tables store it."""

from typing import get_args

import pytest

from otp_stream.core.decision import ENDINGS, Ack, Dead, Final, Park, Reason, Retry
from otp_stream.core.job_status import OUTCOMES, JobStatus
from otp_stream.core.outcome import Reply

UNKNOWN = Reply(550, "5.1.1", "no such user", "rcpt")
FULL = Reply(452, "4.2.2", "mailbox full", "rcpt")
BARE = Reply(550, None, "no", "rcpt")


@pytest.mark.parametrize(
    ("settlement", "expected"),
    [
        (Ack("sent"), JobStatus("sent", 7, 3)),
        (Ack("duplicate"), JobStatus("duplicate", 7, 2)),
        (Ack("superseded"), JobStatus("superseded", 7, 2)),
        (Retry(1000, 3, "error"), JobStatus("retrying", 7, 3)),
        (Park(1000), JobStatus("retrying", 7, 2)),
        (Retry(1000, 3, "error", reply=FULL), JobStatus("retrying", 7, 3, "mailbox")),
        (Dead("rejected", "error", 3, reply=UNKNOWN), JobStatus("rejected", 7, 3, "address")),
        (Dead("rejected", "error", 3, reply=BARE), JobStatus("rejected", 7, 3)),
        *((Dead(reason, "error", 3), JobStatus(reason, 7, 3)) for reason in get_args(Reason)),
    ],
)
def test_a_settlement_is_read_from_its_stored_status(settlement: Final, expected: JobStatus) -> None:
    status = JobStatus.of_settlement(settlement, 2, 7)
    assert status == expected
    assert JobStatus.from_ranked_value(status.ranked_value) == status
    assert len(status.ranked_value) <= 64


def test_every_outcome_is_one_of_three_states() -> None:
    assert set(OUTCOMES) == {"retrying", *ENDINGS}
    states = {it: JobStatus(it, 7).state for it in ("queued", *OUTCOMES)}
    assert {it for it, state in states.items() if state == "queued"} == {"queued", "retrying"}
    assert {it for it, state in states.items() if state == "sent"} == {"sent", "duplicate"}


@pytest.mark.parametrize("value", ["", "4", "4-sent", "4-sent-x-1-", "4-sent-1-2-3", "4-sent-1-2"])
def test_a_value_of_another_version_is_no_status(value: str) -> None:
    assert JobStatus.from_ranked_value(value) is None
