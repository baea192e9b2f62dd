"""Dead letters as the command line shows them: for people, and for programs."""

from typing import Any

from rich.table import Table

from otp_stream.broker.letters import Found
from otp_stream.core.dead_letter import Group, Letter, outline
from otp_stream.core.times import in_words, iso

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
            say.count(it.count), say.count(it.stale), *map(say.plain, it.cause), _ago(it.newest_ms, now_ms),
            say.plain(it.error),
        )  # fmt: skip
    return table


def each_table(letters: list[Letter], now_ms: int) -> Table:
    """Return a row for each letter."""
    table = Table(box=None, pad_edge=False, header_style="bold", caption=" ")
    for title in ("Job", "Recipient", "Reason", "Relay", "Attempts", "Died", "Code"):
        table.add_column(title, overflow="fold")
    for it in letters:
        row = (
            it.job_id,
            it.recipient,
            it.reason if it.verified else f"{it.reason} (unverified)",
            it.code,
            str(it.attempt),
            _ago(it.died_ms, now_ms),
            _life(it, now_ms),
        )
        table.add_row(*map(say.plain, row))
    return table


def group_json(group: Group) -> dict[str, Any]:
    """Return a cause for programs."""
    cause = group.cause
    return {
        "reason": cause.reason, "code": cause.code, "domain": cause.domain, "letters": group.count,
        "expired": group.stale, "oldest": _at(group.oldest_ms), "newest": _at(group.newest_ms), "error": group.error,
    }  # fmt: skip


def letter_json(letter: Letter, now_ms: int) -> dict[str, Any]:
    """Return a letter for programs."""
    return {
        "jobId": letter.job_id, "recipient": letter.recipient, "reason": letter.reason, "code": letter.code,
        "error": letter.error, "attempt": letter.attempt, "template": letter.template, "bytes": letter.size,
        "died": _at(letter.died_ms), "firstSeen": _at(letter.first_seen_ms), "expires": _at(letter.expires_ms),
        "expired": letter.stale(now_ms), "allowed": _at(letter.allowed_ms),
        "verified": letter.verified,
        "replayed": letter.replay and {"at": iso(letter.replay.at_ms), "by": letter.replay.by},
    }  # fmt: skip


def whole_json(found: Found, now_ms: int) -> dict[str, Any]:
    """Return a letter and what its body looks like."""
    return letter_json(found.letter, now_ms) | {"content": outline(found.message.body)}


def _ago(at_ms: int | None, now_ms: int) -> str:
    return "" if at_ms is None else f"{in_words(now_ms - at_ms)} ago"


def _at(at_ms: int | None) -> str | None:
    return None if at_ms is None else iso(at_ms)


def _life(letter: Letter, now_ms: int) -> str:
    if letter.expires_ms is None:
        return ""
    return "expired" if letter.stale(now_ms) else f"{in_words(letter.expires_ms - now_ms)} left"
