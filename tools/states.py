"""The states of a job, found by asking `decide` what it does with every outcome under every circumstance."""

from collections.abc import Iterator
from typing import assert_never, get_args

from otp_stream.core.backoff import Backoff
from otp_stream.core.decision import Ack, Dead, Ending, Hold, Park, Reason, Retry, Settlement, decide
from otp_stream.core.outcome import (
    Accepted,
    Broken,
    Deferred,
    Lapsed,
    Outcome,
    Rejected,
    Reply,
    Unavailable,
    Uncertain,
)
from otp_stream.delivery import HOLD_LIMIT_MS

_BACKOFF = Backoff(1_000, 30_000, 3, retry_greylisted=True)
_NOW = 0
_FAR, _SOON, _PAST = 900_000, 500, -1

_OUTCOMES: dict[str, tuple[str, Outcome]] = {
    "250": ("sending", Accepted(Reply(250, None, "", "body"))),
    "4xx": ("sending", Deferred(Reply(451, None, "", "rcpt"))),
    "5xx": ("sending", Rejected(Reply(550, None, "", "rcpt"))),
    "no word after the final dot": ("sending", Uncertain("", "relay")),
    "no connection, login refused or throttled": ("sending", Unavailable("unreachable", "")),
    f"no turn within {HOLD_LIMIT_MS // 60_000} minutes": ("held", Lapsed()),
    "template or data failed": ("held", Broken("")),
}
# what is told of it, attempts made, end of the code's life, whether an uncertain mail may be sent again
_CIRCUMSTANCES: list[tuple[str, int, int, bool]] = [
    ("", 0, _FAR, True),
    ("no attempt left", 3, _FAR, True),
    ("SMTP_UNCERTAIN=dead", 0, _FAR, False),
    ("the next try would be too late", 0, _SOON, True),
    ("its code has expired", 0, _PAST, True),
]


def transitions() -> list[str]:
    """Return every way out of `held` and `sending` that `decide` knows, as lines of a Mermaid state diagram."""
    ways: dict[tuple[str, str], dict[str, list[str]]] = {}
    for source, target, outcome, circumstance in _transitions():
        ways.setdefault((source, target), {}).setdefault(circumstance, []).append(outcome)
    return [f"  {source} --> {target}: {_told(found)}" for (source, target), found in ways.items()]


def _told(found: dict[str, list[str]]) -> str:
    return " / ".join(
        " or ".join(outcomes) + (f" ({circumstance})" if circumstance else "")
        for circumstance, outcomes in found.items()
    )


def _transitions() -> Iterator[tuple[str, str, str, str]]:
    for told, (source, outcome) in _OUTCOMES.items():
        known: set[str] = set()
        for circumstance, attempts_made, expires_ms, resend in _CIRCUMSTANCES:
            target = _target(_settle(outcome, attempts_made, expires_ms, resend=resend))
            if target not in known:
                yield source, target, told, circumstance
            known.add(target)


def _settle(outcome: Outcome, attempts_made: int, expires_ms: int, *, resend: bool) -> Settlement:
    return decide(
        outcome,
        attempts_made=attempts_made,
        now_ms=_NOW,
        expires_ms=expires_ms,
        backoff=_BACKOFF,
        fraction=0.0,
        may_resend=resend,
    )


def _target(settlement: Settlement) -> str:
    match settlement:
        case Ack(ending):
            return ending
        case Dead(reason):
            return reason
        case Retry() | Park():
            return "waiting"
        case Hold():
            return "held"
        case _:
            assert_never(settlement)


_ENDS = {
    "sent": "the relay said 250",
    "duplicate": "its `jobId` was sent before",
    "superseded": "a newer code for the same person took its place",
    "malformed": "it is no job",
    "expired": "its code outlived its time",
    "rejected": "the relay said 5xx to this recipient or message",
    "retries_exhausted": "the relay said 4xx once too often",
    "throttled": "over a limit",
    "crashed": "template, data or our code failed",
}


def job_states() -> str:
    """Return the page with the diagram and every end."""
    good, bad = get_args(Ending), get_args(Reason)
    told = "\n".join(
        f"| `{name}` | {'acknowledged' if name in good else '`otp.dead`'} | {_ENDS[name]} |" for name in (*good, *bad)
    )
    ways = "\n".join(transitions())
    ends = "\n".join(f"  {name} --> [*]" for name in (*good, *bad))
    return f"""\
# The states of a job

Made from the code: `make generate` asks `decide` in `otp_stream/core/decision.py`, the only place where a job's fate is
chosen after an attempt, what it does with every outcome under every circumstance.

```mermaid
stateDiagram-v2
  [*] --> queued: published
  queued --> held: delivered, within the window
  held --> malformed: cannot be read
  held --> expired: admit
  held --> duplicate: admit
  held --> superseded: admit
  held --> throttled: admit
  held --> sending: its turn at the relay
{ways}
  waiting --> held: otp.retry.due
{ends}
```

`queued`, `waiting`: the broker has it. `held`, `sending`: this worker has it, unacknowledged; if the worker dies, the
broker gives it to another. An attempt is counted for `4xx`, `5xx`, `250` and where no word came after the final dot.

| ends as | then | because |
|---|---|---|
{told}

Every end is a confirmed publish first (for `otp.dead`) and the acknowledgement second.
"""
