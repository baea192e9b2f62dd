"""One mail that waits for a connection, or is on one."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from otp_stream.core.mail import Mail
from otp_stream.core.outcome import Outcome, Reply, Route


class RelayRetiredError(Exception):
    """The mail was not sent, because the relay's configuration was replaced: send it through the new one."""


class Removes(Protocol):
    """A queue that jobs can be removed from."""

    def remove(self, pending: "PendingSend") -> None:
        """Remove a job, if it still waits."""
        ...


class PendingSend:
    """One call of `SmtpRelay.send`: first in the queue, then on a connection. Times as in `send`."""

    __slots__ = (
        "answered", "arrival", "chunk_refused", "chunked", "deadline_ms", "due", "envelope_s", "expires_ms", "losses",
        "mail", "may_send", "prefer", "probe", "queue", "rank", "refusal", "refused_ahead", "result", "route", "slow",
        "step_at", "switched_from", "switches", "uncertain", "waiting", "wanted", "withdrawn", "written",
    )  # fmt: skip

    def __init__(
        self,
        mail: Mail,
        rank: int,
        lane: str,
        expires_ms: int,
        deadline_ms: int,
        result: asyncio.Future[Outcome],
        wanted: Callable[[], bool] = lambda: True,
        may_send: Callable[[], bool] = lambda: True,
    ) -> None:
        self.mail = mail
        self.rank = rank
        self.due = lane == "due"
        self.expires_ms = expires_ms
        self.deadline_ms = deadline_ms
        self.result = result
        self.wanted = wanted
        """Returns whether the caller still wants the mail to be sent."""
        self.may_send = may_send
        """Returns whether the content may be sent now. Called right before that."""
        self.prefer: str | None = None
        """The relay that has to send the mail, while it takes mail."""
        self.uncertain = False
        """Whether that is because it may have the mail already."""
        self.route: Route | None = None
        """The relay that the outcome is from."""
        self.switched_from: str | None = None
        """The slow relay that it left."""
        self.switches = 0
        self.arrival = 0
        self.queue: Removes | None = None
        """The queue that it is in, or was in last."""
        self.waiting = False
        self.probe = False
        self.losses = 0
        """Connections that were lost with it."""
        self.chunk_refused = False
        """Whether the relay has replied 5xx to its content by BDAT."""
        self.refused_ahead = False
        """Whether the relay has refused its sender behind another mail."""
        self.chunked = False
        """Whether its content is sent by BDAT on the present connection."""
        self.begin()

    def begin(self) -> None:
        """Reset the state of an earlier connection."""
        self.answered = False
        self.refusal: Reply | None = None
        self.written = False
        """Whether its whole content was sent, so that the relay may have the mail."""
        self.withdrawn = False
        """Whether we have withheld the content."""
        self.step_at = self.envelope_s = 0.0
        """When the envelope was sent, or then the content, by the monotonic clock; the time between the two."""
        self.slow = False
        """Whether it was recorded as slow."""

    @property
    def domain(self) -> str:
        """The recipient's domain."""
        return self.mail.recipient.rpartition("@")[2].lower()

    def resolve(self, outcome: Outcome) -> None:
        """Return the outcome to the caller of `send`, unless it was cancelled."""
        if not self.result.done():
            self.result.set_result(outcome)

    def hand_over(self) -> None:
        """Raise `RelayRetiredError` in the caller of `send`, unless it was cancelled."""
        if not self.result.done():
            self.result.set_exception(RelayRetiredError())
            self.result.exception()  # so that asyncio does not log it if the caller is cancelled now
