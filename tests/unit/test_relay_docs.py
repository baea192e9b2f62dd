"""The tables of docs/relays.md: the worker does with each reply what its row says."""

import re
from pathlib import Path
from typing import get_args

import pytest

from otp_stream.core.outcome import Deferred, Rejected, Stage, Unavailable, UnavailableReason
from otp_stream.relay.reply import classify, handshake_reason, to_reply

TEXT = (Path(__file__).parents[2] / "docs/relays.md").read_text()
ROWS: list[tuple[str, str]] = re.findall(r"^\| `(\d{3} [^`]*)` \| `(\w+)` \| .+ \|$", TEXT, re.MULTILINE)
REASONS: tuple[str, ...] = get_args(UnavailableReason)
OF_MAIL: tuple[Stage, ...] = ("rcpt", "data", "body")
HANDSHAKE: dict[int, Stage] = {421: "greeting", 432: "auth", 450: "greeting", 454: "auth", 534: "auth", 535: "auth"}
"""Where else a reply with this code may come."""


def outcome(line: str, stage: Stage) -> str:
    reply = to_reply((int(line[:3]), line[4:]), stage, sender="otp@example.com", login="otp")
    if stage in {"greeting", "auth"}:
        return handshake_reason(reply)
    match classify(reply):
        case Unavailable(reason):
            return reason
        case Deferred():
            return "retry"
        case Rejected():
            return "rejected"
        case other:
            return repr(other)


@pytest.mark.parametrize(("line", "documented"), ROWS)
def test_a_documented_reply_has_the_documented_outcome(line: str, documented: str):
    stages = OF_MAIL
    if documented in REASONS:
        stages = (*stages, "mail", HANDSHAKE.get(int(line[:3]), "mail"))
    assert {stage: outcome(line, stage) for stage in stages} == dict.fromkeys(stages, documented)


def test_every_row_about_a_reply_is_tested():
    headers = re.findall(r"^\| reply \| worker \| fix \|$", TEXT, re.MULTILINE)
    rows = [line for line in TEXT.splitlines() if line.startswith("| `") and line[3:6].isdigit()]
    assert len(ROWS) == len(rows) > 40
    assert len(headers) == 8
    assert {documented for _, documented in ROWS} == {*REASONS, "retry", "rejected"}
