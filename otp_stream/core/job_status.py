"""The status of a job, for a program that has sent it over HTTP and knows its id."""

from typing import Literal, NamedTuple, assert_never, get_args

from .decision import Ack, Dead, Ending, Final, Park, Reason, Retry
from .outcome import ReplyClass

JobState = Literal["queued", "sent", "failed"]
"""`queued`: it is in RabbitMQ or in a worker, also between two attempts. `sent`: the relay has accepted the mail.
`failed`: this code is not sent; `outcome` says why."""

JobOutcome = Literal["retrying"] | Ending | Reason
"""The outcome of the job's last event."""

OUTCOMES: tuple[str, ...] = tuple(it for kind in get_args(JobOutcome) for it in (get_args(kind) or (kind,)))

_RANKS = {"queued": "0", "retrying": "1", "duplicate": "2", "sent": "4"}
"""A status replaces one of a lower or equal rank: the last one that a worker reports need not be stored last. Every
other outcome has the rank 3, because a job that has failed can be sent by a replay."""

_ABOUT: dict[str, ReplyClass | None] = {"": None, **{it: it for it in get_args(ReplyClass)}}


class JobStatus(NamedTuple):
    """The status of a job."""

    outcome: str
    """`queued` before the first event."""
    at_ms: int
    """When, in milliseconds since 1970."""
    attempt: int = 0
    """Attempts made."""
    reply_class: ReplyClass | None = None
    """What the relay's refusal is about, if the relay gave an enhanced code."""

    @property
    def state(self) -> JobState:
        """The outcome in one of three words."""
        match self.outcome:
            case "queued" | "retrying":
                return "queued"
            case "sent" | "duplicate":
                return "sent"
            case _:
                return "failed"

    @property
    def ranked_value(self) -> str:
        """The status as the tables store it: its rank, outcome, time, attempts and class of the reply."""
        rank = _RANKS.get(self.outcome, "3")
        return f"{rank}-{self.outcome}-{self.at_ms}-{self.attempt}-{self.reply_class or ''}"

    @classmethod
    def from_ranked_value(cls, value: str) -> "JobStatus | None":
        """Return a stored status; `None` for one that another version wrote."""
        match value.split("-"):
            case [_, outcome, at, attempt, about] if at.isdecimal() and attempt.isdecimal() and about in _ABOUT:
                return cls(outcome, int(at), int(attempt), _ABOUT[about])
            case _:
                return None

    @classmethod
    def of_settlement(cls, settlement: Final, attempts_made: int, at_ms: int) -> "JobStatus":
        """Return the status after a settlement of a job that has had this number of attempts before."""
        match settlement:
            case Ack(ending):
                return cls(ending, at_ms, attempts_made + (ending == "sent"))
            case Retry(_, attempt, reply=reply):
                return cls("retrying", at_ms, attempt, reply and reply.about)
            case Park():
                return cls("retrying", at_ms, attempts_made)
            case Dead(reason, _, attempt, reply=reply):
                return cls(reason, at_ms, attempt, reply and reply.about)
            case _:
                assert_never(settlement)
