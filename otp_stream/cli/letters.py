"""Dead letters as the command line shows them: for people, and for programs."""

import shlex
import time
from typing import Any

from rich.table import Table
from rich.text import Text

from otp_stream.broker.letters import Found
from otp_stream.core.letter import Group, Letter, outline
from otp_stream.core.letter import words as cause_words

from . import say


def group_table(groups: list[Group], now_ms: int) -> Table:
    """Return a row for each cause."""
    table = Table(box=None, pad_edge=False, header_style="bold", caption=" ")
    for title in ("Letters", "Expired"):
        table.add_column(title, justify="right")
    for title in ("Reason", "Relay", "Domain", "Newest", "What was said"):
        table.add_column(title, overflow="fold")
    for it in groups:
        table.add_row(
            say.count(it.count), say.count(it.stale), it.cause.reason, it.cause.code, Text(it.cause.domain),
            _ago(it.newest_ms, now_ms), Text(it.error),
        )  # fmt: skip
    return table


def each_table(letters: list[Letter], now_ms: int) -> Table:
    """Return a row for each letter."""
    table = Table(box=None, pad_edge=False, header_style="bold", caption=" ")
    for title in ("Job", "Recipient", "Reason", "Relay", "Attempts", "Died", "Code"):
        table.add_column(title, overflow="fold")
    for it in letters:
        died = _ago(it.died_ms, now_ms)
        table.add_row(Text(it.job_id), Text(it.recipient), it.reason, it.code, str(it.attempt), died, _life(it, now_ms))
    return table


def words(group: Group) -> str:
    """Return the words that mean this group."""
    return shlex.join(f"{name}={value}" for name, value in cause_words(group.cause).items())


def group_json(group: Group) -> dict[str, Any]:
    """Return a cause for programs."""
    cause = group.cause
    return {
        "reason": cause.reason, "code": cause.code, "domain": cause.domain, "letters": group.count,
        "expired": group.stale, "oldest": iso(group.oldest_ms), "newest": iso(group.newest_ms), "error": group.error,
    }  # fmt: skip


def letter_json(letter: Letter, now_ms: int) -> dict[str, Any]:
    """Return a letter for programs."""
    return {
        "jobId": letter.job_id, "recipient": letter.recipient, "reason": letter.reason, "code": letter.code,
        "error": letter.error, "attempt": letter.attempt, "template": letter.template, "bytes": letter.size,
        "died": iso(letter.died_ms), "firstSeen": iso(letter.first_seen_ms), "expires": iso(letter.expires_ms),
        "expired": letter.stale(now_ms), "allowed": iso(letter.allowed_ms),
        "replayed": letter.replay and {"at": iso(letter.replay.at_ms), "by": letter.replay.by},
    }  # fmt: skip


def whole_json(found: Found, now_ms: int) -> dict[str, Any]:
    """Return a letter and what its body looks like."""
    return letter_json(found.letter, now_ms) | {"content": outline(found.message.body)}


def _ago(at_ms: int | None, now_ms: int) -> str:
    return "" if at_ms is None else f"{_span(max(now_ms - at_ms, 0))} ago"


def _span(ms: int) -> str:
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000)):
        if ms >= 2 * size:
            return f"{ms // size} {unit}"
    return f"{ms // 1000} s"


def iso(at_ms: int | None) -> str | None:
    """Return a moment (milliseconds since 1970) as `2026-01-31T12:00:00Z`."""
    return None if at_ms is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_ms / 1000))


def _life(letter: Letter, now_ms: int) -> str:
    if letter.expires_ms is None:
        return ""
    return "expired" if letter.stale(now_ms) else f"{_span(letter.expires_ms - now_ms)} left"
