"""Decides what happens to a job: `admit` and `refuse` before an attempt, `decide` after it. Nothing else decides."""

from dataclasses import dataclass, field, replace
from typing import Literal, assert_never, get_args

from .admission import Refusal, SentBefore, Superseded, Throttled, Unknown
from .backoff import Backoff
from .greylisting import is_greylisting
from .otp_job import KeyMissingError, MalformedError
from .outcome import (
    Accepted,
    Crashed,
    Deferred,
    Outcome,
    RecipientUnavailable,
    Rejected,
    Reply,
    Route,
    TimedOut,
    Unavailable,
    Uncertain,
)
from .times import iso

Ending = Literal["sent", "duplicate", "superseded"]
"""How a job ends without a dead letter: it is acknowledged."""

Reason = Literal["malformed", "key_missing", "expired", "rejected", "retries_exhausted", "throttled", "crashed"]
"""Why a job is in the dead-letter queue (`x-otp-reason`). Dashboards depend on these words."""

GOOD: tuple[str, ...] = get_args(Ending)
REASONS: tuple[str, ...] = get_args(Reason)
ENDINGS = (*GOOD, *REASONS)


@dataclass(frozen=True, slots=True)
class Ack:
    """Done: acknowledge."""

    ending: Ending
    route: Route | None = field(default=None, compare=False)
    """The relay that accepted the mail."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again after `delay_ms`; `attempt` is the number of attempts made so far, this one included."""

    delay_ms: int
    attempt: int
    error: str
    uncertain: str | None = None
    """The relay that may have accepted the mail. Such a mail is sent again only once."""
    reply: Reply | None = field(default=None, compare=False)
    """The relay's reply, if it gave one."""
    route: Route | None = field(default=None, compare=False)
    """The relay that the outcome is from."""


@dataclass(frozen=True, slots=True)
class Park:
    """Wait in the broker instead of in this worker, without counting an attempt: the job waited here for too long."""

    delay_ms: int


@dataclass(frozen=True, slots=True)
class Dead:
    """Dead-letter the job; `error` contains no secret, `attempt` is the number of attempts made."""

    reason: Reason
    error: str
    attempt: int
    allowed_ms: int | None = None
    """For `throttled`: when the job would be allowed (milliseconds since 1970)."""
    reply: Reply | None = field(default=None, compare=False)
    """The relay's reply, if it gave one."""
    route: Route | None = field(default=None, compare=False)
    """The relay that the outcome is from, if there was one."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Keep the job unacked while the circuit breaker is open, without counting an attempt."""


Final = Ack | Retry | Park | Dead
Settlement = Final | Hold


def admit(*, now_ms: int, expires_ms: int, attempts_made: int) -> Dead | None:
    """Check a job before any work is spent on it; `None` admits it."""
    return expired(now_ms, expires_ms, attempts_made) if now_ms >= expires_ms else None


def refuse(refusal: Refusal, *, attempts_made: int, now_ms: int, expires_ms: int, backoff: Backoff) -> Final:
    """Return the settlement of a job that the tables refuse."""
    match refusal:
        case SentBefore():
            return Ack("duplicate")
        case Superseded():
            return Ack("superseded")
        case Throttled(limit, allowed_ms):
            error = f"over {limit.name.upper()}_LIMIT={limit}: allowed again at {iso(allowed_ms)}"
            return Dead("throttled", error, attempts_made, allowed_ms)
        case Unknown():
            return _wait_in_broker(attempts_made, now_ms, expires_ms, backoff)
        case _:
            assert_never(refusal)


def decide(
    outcome: Outcome,
    *,
    attempts_made: int,
    now_ms: int,
    expires_ms: int,
    backoff: Backoff,
    fraction: float,
    may_resend: bool = True,
) -> Settlement:
    """Return the settlement of a job after an attempt.

    `attempts_made` counts the attempts before this one; times are milliseconds since 1970; `fraction` in [0, 1) scales
    the jitter. With `may_resend`, a mail that the relay may have accepted is sent once more.
    """
    match outcome:
        case Accepted(_, route):
            return Ack("sent", route)
        case Rejected(reply, route):
            return Dead("rejected", str(reply), attempts_made + 1, reply=reply, route=route)
        case Crashed(error):
            return crashed(error, attempts_made)
        case Deferred(reply, route):
            again = _retry(str(reply), attempts_made, now_ms, expires_ms, backoff, fraction, reply)
            return replace(again, route=route)
        case RecipientUnavailable(error, reply, route):
            text = f"{error}; the relay takes other mail"
            again = _retry(text, attempts_made, now_ms, expires_ms, backoff, fraction, reply)
            return replace(again, route=route)
        case Uncertain(error, relay, route) if may_resend:
            again = replace(_retry(error, attempts_made, now_ms, expires_ms, backoff, fraction), route=route)
            return replace(again, uncertain=relay) if isinstance(again, Retry) else again
        case Uncertain(error, _, route):
            text = f"the relay may have taken it, and it is not sent again: {error}"
            return Dead("retries_exhausted", text, attempts_made + 1, route=route)
        case Unavailable():
            return expired(now_ms, expires_ms, attempts_made) if now_ms >= expires_ms else Hold()
        case TimedOut(briefly):
            return _wait_in_broker(attempts_made, now_ms, expires_ms, backoff, briefly=briefly)
        case _:
            assert_never(outcome)


def _retry(
    error: str,
    attempts_made: int,
    now_ms: int,
    expires_ms: int,
    backoff: Backoff,
    fraction: float,
    reply: Reply | None = None,
) -> Retry | Dead:
    exhausted = attempts_made >= backoff.max_retries
    greylisted = reply is not None and backoff.retry_greylisted and is_greylisting(reply)
    if exhausted and not greylisted:
        return Dead("retries_exhausted", error, attempts_made + 1, reply=reply)
    delay_ms = backoff.cap_ms if exhausted else backoff.delay_ms(attempts_made, fraction)
    if now_ms + backoff.wait_ms(delay_ms) >= expires_ms:
        return Dead("expired", f"the code expires before the next try; last: {error}", attempts_made + 1, reply=reply)
    return Retry(delay_ms, attempts_made + 1, error, reply=reply)


def _wait_in_broker(
    attempts_made: int, now_ms: int, expires_ms: int, backoff: Backoff, *, briefly: bool = False
) -> Park | Dead:
    if now_ms >= expires_ms:
        return expired(now_ms, expires_ms, attempts_made)
    left_ms = expires_ms - now_ms
    wait_ms = backoff.longest_wait_ms(min(left_ms, 2 * backoff.base_ms) if briefly else left_ms)
    if wait_ms is None:
        return Dead("expired", "it was not sent in time, and the code expires before another wait ends", attempts_made)
    return Park(wait_ms)


def expired(now_ms: int, expires_ms: int, attempts_made: int) -> Dead:
    """Dead-letter a job whose code has expired."""
    return Dead("expired", f"the code expired {now_ms - expires_ms} ms ago", attempts_made)


def unreadable(error: MalformedError, attempts_made: int) -> Dead:
    """Dead-letter a message that is not a valid job, or whose key is missing. The error quotes no value."""
    return Dead("key_missing" if isinstance(error, KeyMissingError) else "malformed", str(error), attempts_made)


def crashed(error: str, attempts_made: int) -> Dead:
    """Dead-letter a job that failed because of a bug, so that an operator can replay it."""
    return Dead("crashed", error, attempts_made)
