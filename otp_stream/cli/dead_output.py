"""The output of `otp-stream dead`: tables for people, JSON for programs."""

import base64
import json
from typing import Any

from rich.table import Table

from otp_stream.core.dead_letter import DeadLetter, Group, outline
from otp_stream.core.dead_letter_filter import DeadLetterFilter
from otp_stream.core.erasure import read_outline
from otp_stream.core.times import in_words, iso
from otp_stream.dead_letters import StoredDeadLetter, Summary, current_user

from . import output

UNVERIFIED = (
    "{} of them are unverified: their headers have no valid signature. They come from a previous version, a worker "
    "with another SECRET_KEY or anyone who may publish, and may be wrong"
)

ERASED = "It cannot be replayed: the code was erased when it expired. DEAD_LETTER_CODES=keep keeps later ones"


def group_table(groups: list[Group], now_ms: int) -> Table:
    """Return a row for each cause."""
    table = Table(box=None, pad_edge=False, header_style="bold", caption=" ")
    for title in ("Count", "Expired"):
        table.add_column(title, justify="right")
    for title in ("Reason", "Relay", "Domain", "Newest", "Error of the newest"):
        table.add_column(title, overflow="fold")
    for it in groups:
        table.add_row(
            output.count(it.count), output.count(it.expired), *map(output.plain, it.cause), _ago(it.newest_ms, now_ms),
            output.plain(it.error),
        )  # fmt: skip
    return table


def each_table(dead_letters: list[DeadLetter], now_ms: int) -> Table:
    """Return a row for each dead letter."""
    table = Table(box=None, pad_edge=False, header_style="bold", caption=" ")
    for title in ("Job", "Recipient", "Reason", "Relay", "Attempts", "Died", "Code"):
        table.add_column(title, overflow="fold")
    for it in dead_letters:
        row = (
            it.job_id,
            it.recipient,
            it.reason if it.verified else f"{it.reason} (unverified)",
            it.code,
            str(it.attempt),
            _ago(it.died_ms, now_ms),
            _lifetime(it, now_ms),
        )
        table.add_row(*map(output.plain, row))
    return table


def fields_table(fields: dict[str, Any]) -> Table:
    """Return a row for each field of one dead letter."""
    table = Table(box=None, show_header=False, pad_edge=False, caption=" ")
    for name, value in fields.items():
        shown = json.dumps(value, ensure_ascii=False, indent=2) if isinstance(value, dict) else str(value)
        table.add_row(name, output.plain(shown))
    return table


def group_json(group: Group) -> dict[str, Any]:
    """Return a group as JSON."""
    cause = group.cause
    return {
        "reason": cause.reason, "code": cause.code, "domain": cause.domain, "deadLetters": group.count,
        "expired": group.expired, "codesErased": group.erased,
        "oldest": _at(group.oldest_ms), "newest": _at(group.newest_ms), "error": group.error,
    }  # fmt: skip


def dead_letter_json(it: DeadLetter, now_ms: int) -> dict[str, Any]:
    """Return a dead letter as JSON, without its body."""
    return {
        "jobId": it.job_id, "recipient": it.recipient, "reason": it.reason, "code": it.code, "error": it.error,
        "attempt": it.attempt, "template": it.template, "bytes": it.size, "died": _at(it.died_ms),
        "firstSeen": _at(it.first_seen_ms), "expires": _at(it.expires_ms), "expired": it.is_expired(now_ms),
        "codeErased": _at(it.erased_ms), "allowed": _at(it.allowed_ms), "verified": it.verified,
        "replayed": it.replay and {"at": iso(it.replay.at_ms), "by": it.replay.by},
    }  # fmt: skip


def message_json(it: StoredDeadLetter, now_ms: int, *, raw: bool = False) -> dict[str, Any]:
    """Return a dead letter with the outline of its body; with `raw` also the body, base64, with codes and addresses."""
    is_outline = it.dead_letter.erased_ms is not None and it.request is None and it.dead_letter.verified
    content = read_outline(it.message.body) if is_outline else outline(it.message.body)
    fields = dead_letter_json(it.dead_letter, now_ms) | {"content": content}
    if raw:
        fields["body"] = None if it.message.dropped else base64.b64encode(it.message.body).decode()
    return fields


def print_audit(
    action: str,
    number: int,
    *,
    which: DeadLetterFilter,
    summary: Summary,
    now_ms: int,
    as_json: bool,
    fresh: bool = False,
    dry_run: bool,
    finished: bool = True,
) -> None:
    """Print what was done, as one line that can be kept or as JSON."""
    audit = {
        "at": iso(now_ms), "by": current_user(), "did": action, "deadLetters": number, "which": str(which),
        "expiredStay": summary.expired, "erasedStay": summary.erased, "freshExpiry": fresh,
        "notRead": summary.not_read, "dryRun": dry_run, "finished": finished,
    }  # fmt: skip
    if as_json:
        output.write_json(audit)
        return
    audit_line = " ".join(f"{name}={json.dumps(value)}" for name, value in audit.items())
    output.results().print(output.plain(audit_line), soft_wrap=True)
    if finished and not number and not summary.expired:
        text = f"No dead letter matches{of_those_read(summary.not_read)}: otp-stream dead list shows all"
        output.console.print(text, style="yellow", soft_wrap=True)


def staying_text(summary: Summary) -> str:
    """Return how many selected dead letters a replay leaves in the queue, and why; empty if none."""
    expired, erased = summary.expired - summary.erased, summary.erased
    texts = [f"{output.count(expired)} with an expired code stay (--fresh-expiry sends them, too)"] if expired else []
    texts += [f"{output.count(erased)} stay, because the code was erased when it expired"] if erased else []
    return "; ".join(texts)


def of_those_read(not_read: int) -> str:
    """Return a remark if some dead letters were not read."""
    return f" (of those read; {output.count(not_read)} more were not read)" if not_read else ""


def _ago(at_ms: int | None, now_ms: int) -> str:
    return "" if at_ms is None else f"{in_words(now_ms - at_ms)} ago"


def _at(at_ms: int | None) -> str | None:
    return None if at_ms is None else iso(at_ms)


def _lifetime(it: DeadLetter, now_ms: int) -> str:
    if it.erased_ms is not None:
        return "erased"
    if it.expires_ms is None:
        return ""
    return "expired" if it.is_expired(now_ms) else f"{in_words(it.expires_ms - now_ms)} left"
