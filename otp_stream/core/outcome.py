"""The result of one attempt: the facts that the relay or the composer reports. `decision` draws the conclusions."""

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, assert_never

from .masking import SEARCH_LIMIT, cut, scrub

Stage = Literal["connect", "greeting", "ehlo", "tls", "auth", "mail", "rcpt", "data", "body"]
"""The step of the SMTP dialogue that a reply or an error belongs to; `body` is the content."""

UnavailableReason = Literal["unreachable", "tls_failed", "login_refused", "sender_refused", "throttled"]
"""Why a relay cannot take any job at present."""

ReplyClass = Literal["address", "mailbox", "system", "network", "protocol", "content", "policy"]
"""What a reply is about, by the subject of its enhanced code (RFC 3463 §3)."""

_SUBJECTS: dict[str, ReplyClass] = {
    "1": "address", "2": "mailbox", "3": "system", "4": "network", "5": "protocol", "6": "content", "7": "policy",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reply:
    """One SMTP reply (RFC 5321 §4.2), with the enhanced code of RFC 3463 where the relay gave one.

    A long `text` is not cut, so that the decisive words are found; `str` shows its beginning.
    """

    code: int
    enhanced: str | None
    text: str
    stage: Stage

    @property
    def about(self) -> ReplyClass | None:
        """What the reply is about, if it has an enhanced code."""
        return _SUBJECTS.get(self.enhanced.split(".")[1]) if self.enhanced else None

    def __str__(self) -> str:
        return " ".join(
            part for part in (str(self.code), self.enhanced, cut(self.text), f"(to {self.stage.upper()})") if part
        )


class Route(NamedTuple):
    """The relay that an outcome is from."""

    relay: str
    """`host:port`, or `group/host:port`."""
    switched_from: str | None = None
    """The relay that the mail was taken from before, because it was slow."""
    scheme: str = "smtp"
    """`smtp`, or `smtps` for implicit TLS."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The relay replied 250 to the content, and is responsible for the message from now on."""

    reply: Reply
    route: Route | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Deferred:
    """The relay replied 4xx to this recipient or message."""

    reply: Reply
    route: Route | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Rejected:
    """The relay replied 5xx to this recipient or message."""

    reply: Reply
    route: Route | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Uncertain:
    """The connection was lost after the content was sent: the relay may have the message (RFC 5321 §4.5.3.2.6)."""

    error: str
    relay: str
    """The relay's name: a copy should go to the same one."""
    route: Route | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The relay is down, refuses our login or throttles us: nothing is known about this job."""

    reason: UnavailableReason
    error: str
    reply: Reply | None = field(default=None, compare=False)
    """The reply to this mail, if there was one."""


@dataclass(frozen=True, slots=True)
class RecipientUnavailable:
    """The relay fails for this recipient as if it took no mail, but takes all other mail."""

    error: str
    reply: Reply | None = field(default=None, compare=False)
    """The reply to this mail, if there was one."""
    route: Route | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The job was not sent before the deadline of its wait."""

    briefly: bool = False
    """Whether it waits in the broker for a short time only, so that another job takes its place."""


@dataclass(frozen=True, slots=True)
class Crashed:
    """Our own failure: of a template, its data or the code."""

    error: str


Outcome = Accepted | Deferred | Rejected | Uncertain | Unavailable | RecipientUnavailable | TimedOut | Crashed


def at_recipient(outcome: Unavailable) -> RecipientUnavailable:
    """Return the outcome of a mail at a relay that takes all other mail."""
    return RecipientUnavailable(outcome.error, outcome.reply)


def with_route(outcome: Outcome, route: Route | None, switched_from: str | None) -> Outcome:
    """Return the outcome with its route, unless no relay has replied to the mail."""
    if route is not None and switched_from is not None and switched_from != route.relay:
        route = route._replace(switched_from=switched_from)
    match outcome:
        case Accepted(reply):
            return Accepted(reply, route)
        case Deferred() | Rejected() | Uncertain() | RecipientUnavailable():
            return replace(outcome, route=route)
        case _:
            return outcome


def without_secrets(outcome: Outcome, *secrets: str) -> Outcome:
    """Return the outcome with every secret in its texts redacted, because a relay may quote what it received."""
    match outcome:
        case Accepted(reply) | Deferred(reply) | Rejected(reply):
            return replace(outcome, reply=_scrubbed(reply, secrets))
        case Unavailable(_, error, reply) | RecipientUnavailable(error, reply):
            return replace(outcome, error=scrub(error, *secrets), reply=reply and _scrubbed(reply, secrets))
        case Uncertain(error) | Crashed(error):
            return replace(outcome, error=scrub(error, *secrets))
        case TimedOut():
            return outcome
        case _:
            assert_never(outcome)


def _scrubbed(reply: Reply, secrets: tuple[str, ...]) -> Reply:
    return replace(reply, text=scrub(reply.text, *secrets, limit=SEARCH_LIMIT))
