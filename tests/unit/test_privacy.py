"""docs/privacy.md states the durations that the code has."""

import re
from pathlib import Path

import pytest

from otp_stream.core.retention import Retention
from otp_stream.parts import _PROBE_FLAG_TTL_MS
from otp_stream.settings import Settings
from otp_stream.tables.inspect import FORGET_S
from otp_stream.tables.keys import KEEP_MS
from otp_stream.tables.redis_session import LEASE_S
from otp_stream.telemetry.stats import _RECENT_BAD, _RECENT_GOOD

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "privacy.md").read_text()
LUA = (ROOT / "otp_stream" / "tables" / "tables.lua").read_text()


def default(name: str) -> object:
    return Settings.model_fields[name].default


def row(what: str) -> str:
    return next(line for line in TEXT.splitlines() if line.startswith(f"| {what}"))


@pytest.mark.parametrize(
    ("what", "duration"),
    [
        ("RabbitMQ: jobs queue", f"({default('otp_expiry_minutes'):g} minutes)"),
        ("RabbitMQ: `otp.dead` |", f"{(Retention().keep_ms or 0) // 86_400_000} days"),
        ("RabbitMQ: `otp.dead`, malformed", f"{default('otp_expiry_minutes'):g} minutes"),
        ("Redis `job:`", f"{default('sent_ttl_hours'):g} hours"),
        ("Redis `job:`", f"{KEEP_MS // 60_000} minute more"),
        ("Redis `made:`", f"{default('sent_ttl_hours'):g} hours"),
        ("Redis `ranked:`", f"{default('sent_ttl_hours'):g} hours"),
        ("Redis `newest:`", f"{KEEP_MS // 60_000} minute more"),
        ("Redis `worker:`", f"{LEASE_S:g} seconds"),
        ("Redis `flag:`", f"{_PROBE_FLAG_TTL_MS // 1000} seconds, {FORGET_S} seconds"),
        ("memory of a worker: its page", f"last {_RECENT_GOOD} good and {_RECENT_BAD} other"),
    ],
)
def test_a_duration_is_that_of_the_code(what: str, duration: str) -> None:
    assert duration in row(what)


@pytest.mark.parametrize(
    ("what", "duration", "code"),
    [
        ("Redis `throttled`", "24 hours", r"'PEXPIRE', P \.\. 'throttled', DAY"),
        ("Redis `deployments`", "24 hours", r"'PEXPIRE', names \.\. 'deployments', DAY"),
        ("Redis `log:`", "25 hours", r"'log:' \.\. me, records, 'PX', DAY \+ 3600000"),
        ("Redis `rate:`", "10 minutes", r"'PEXPIRE', key, whole\(600000 "),
        ("Redis `limit:`", "a hundredth more", r"'PEXPIRE', key, \(SLICES \+ 1\) \* limit\.slice"),
    ],
)
def test_a_duration_is_that_of_the_script(what: str, duration: str, code: str) -> None:
    assert duration in row(what)
    assert re.search(code, LUA)
    assert "SLICES, DAY = 100, 86400000" in LUA


def test_every_kind_of_key_in_redis_is_listed() -> None:
    kinds = set(re.findall(r"(?:P|names) \.\. '([a-z]+):?'", LUA))
    assert {"job", "newest", "limit", "throttled", "stats"} <= kinds
    listed = {
        kind for line in TEXT.splitlines() if line.startswith("| Redis ") for kind in re.findall(r"`([a-z]+):?`", line)
    }
    assert kinds <= listed


def test_every_setting_in_the_table_exists() -> None:
    known = {name.upper() for name in Settings.model_fields}
    assert set(re.findall(r"`([A-Z][A-Z_]+[A-Z])`", TEXT)) - known <= {"DEL"}
