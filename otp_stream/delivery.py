"""One job from arrival to settlement, downwards, once.

The rooms below are seen only through the Protocols here; `app` alone knows who stands behind them.
"""

import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from .core.admission import Claim, Objection, Standing
from .core.backoff import Backoff
from .core.decision import Final, Hold, admit, decide, object_to
from .core.job import Job
from .core.mail import ComposeError, Mail
from .core.outcome import Accepted, Broken, Lapsed, Outcome, without_secrets
from .telemetry_errors import Observed, observe

Step = Literal["render", "send", "settle"]

HOLD_LIMIT_MS = 12 * 60_000
"""Longest wait of one job for its turn. RabbitMQ closes a channel whose job is unsettled for 30 minutes, and a relay
may take ten for its last answer, after a minute for each one before, on two connections at most."""


class Mailroom(Protocol):
    """Makes the e-mail of a job."""

    def compose(self, job: Job) -> Mail:
        """Return the message, the same bytes each time. Raises `ComposeError` when template or data fail."""
        ...

    async def compose_apart(self, job: Job) -> Mail:
        """Return the same, made where it cannot kill this worker."""
        ...


class Relay(Protocol):
    """Hands messages to the mail relay."""

    async def send(
        self,
        mail: Mail,
        *,
        rank: int,
        lane: str,
        expires_ms: int,
        deadline_ms: int,
        wanted: Callable[[], bool],
        prefer: str | None,
    ) -> Outcome:
        """Wait for a turn (most urgent rank first, none while the gate is closed), then send, once.

        Returns `Lapsed` when no turn came before `deadline_ms` (since 1970), or when it came and the mail was no longer
        `wanted`. `prefer` names the relay that may have this mail already. Never raises for what a relay can do.
        """
        ...


class Tables(Protocol):
    """Knows what was sent, who is at what, the newest codes, and how many went out lately."""

    async def admit(self, job: Job, deadline_ms: int, sendable: bool) -> Standing:  # noqa: FBT001
        """Claim the job for this worker, or say why it may not be sent.

        Waits while another attempt is at it, until `deadline_ms` (since 1970). A job that is not `sendable` supersedes
        no other and counts towards no limit.
        """
        ...


class Settle(Protocol):
    """Carries a settlement out at the broker."""

    def possible(self) -> bool:
        """Whether the job is still ours: where its channel is gone, the broker gives it to somebody else."""
        ...

    async def __call__(self, settlement: Final) -> bool:
        """Publish with a confirm where the settlement asks for it, then acknowledge.

        Returns `False` when the settlement could not be made to stand: the job comes again.
        """
        ...


class Watch(Protocol):
    """Spans, metrics and log lines of a job's way. What it raises is counted and logged, and changes no settlement."""

    def job(self, job: Job, carrier: Mapping[str, str]) -> AbstractContextManager[object]:
        """Span the whole of a job's stay here; `carrier` holds the producer's trace context."""
        ...

    def step(self, name: Step) -> AbstractContextManager[object]:
        """Span one step of it."""
        ...

    def met(self, job: Job, outcome: Outcome) -> None:
        """Tell what an attempt met."""
        ...

    def settled(self, job: Job, settlement: Final) -> None:
        """Tell how it ended, once that stands at the broker."""
        ...

    def unsettled(self, job: Job, settlement: Final) -> None:
        """Tell that it could not be settled and comes again."""
        ...


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Delivery:
    """The way of a job. Times are milliseconds since 1970."""

    mailroom: Mailroom
    relay: Relay
    tables: Tables
    watch: Watch
    backoff: Backoff
    resend_uncertain: bool = True
    """Whether a mail that the relay may have taken is sent once more."""
    now_ms: Callable[[], int] = _now_ms
    fraction: Callable[[], float] = random.random

    async def __call__(self, job: Job, settle: Settle, carrier: Mapping[str, str]) -> None:
        """Bring one job to its end, or leave it to come again. Raises only for what nobody foresaw."""
        with Observed(lambda: self.watch.job(job, carrier)):
            now_ms = self.now_ms()
            if dead := admit(now_ms=now_ms, expires_ms=job.expires_ms, attempts_made=job.attempts_made):
                await self._settle(job, dead, settle)
                return
            # the broker's patience counts from here, whatever the job waits for
            deadline_ms = min(job.expires_ms, now_ms + HOLD_LIMIT_MS)
            mail = await self._compose(job)
            # a job that cannot be sent must not supersede one that can
            standing = await self.tables.admit(job, deadline_ms, isinstance(mail, Mail))
            if isinstance(standing, Objection):
                await self._settle(job, self._object_to(job, standing), settle)
            else:
                await self._claimed(_Attempt(job, mail, standing, deadline_ms, settle))

    async def _claimed(self, attempt: "_Attempt") -> None:
        outcome: Outcome | None = None
        try:
            settlement, outcome = await self._attempt(attempt)
            await self._settle(attempt.job, settlement, attempt.settle, outcome)
        finally:
            if not attempt.sent:
                attempt.claim.release()

    async def _attempt(self, attempt: "_Attempt") -> tuple[Final, Outcome | None]:
        job, claim, mail = attempt.job, attempt.claim, attempt.mail
        while True:
            met = mail if isinstance(mail, Broken) else await self._send(attempt, mail)
            if isinstance(met, Lapsed) and not claim.holds():
                if objection := await claim.renew(attempt.deadline_ms):
                    return self._object_to(job, objection), None
                continue
            # nothing shows the words with which a mail was accepted
            outcome = met if isinstance(met, Accepted) else without_secrets(met, job.ask.otp, job.ask.email)
            settlement = decide(
                outcome,
                attempts_made=job.attempts_made,
                now_ms=self.now_ms(),
                expires_ms=job.expires_ms,
                backoff=self.backoff,
                fraction=self.fraction(),
                may_resend=self.resend_uncertain and job.uncertain is None,
            )
            if not isinstance(settlement, Hold):
                return settlement, outcome
            observe(self.watch.met, job, outcome)

    def _object_to(self, job: Job, objection: Objection) -> Final:
        return object_to(
            objection,
            attempts_made=job.attempts_made,
            now_ms=self.now_ms(),
            expires_ms=job.expires_ms,
            backoff=self.backoff,
        )

    async def _compose(self, job: Job) -> Mail | Broken:
        with Observed(lambda: self.watch.step("render")):
            try:
                return await self.mailroom.compose_apart(job) if job.suspect else self.mailroom.compose(job)
            except ComposeError as error:
                return Broken(str(error))

    async def _send(self, attempt: "_Attempt", mail: Mail) -> Outcome:
        job = attempt.job
        with Observed(lambda: self.watch.step("send")):
            try:
                outcome = await self.relay.send(
                    mail,
                    rank=job.rank,
                    lane=job.lane,
                    expires_ms=job.expires_ms,
                    deadline_ms=attempt.deadline_ms,
                    wanted=attempt.wanted,
                    prefer=job.uncertain,
                )
            except Exception as error:  # noqa: BLE001 - a bug of ours must end this job visibly, not leave it stuck
                return Broken(f"internal error: {type(error).__name__}")
            if isinstance(outcome, Accepted):
                # nothing runs between the relay's 250 and this record, not even the end of the span
                attempt.sent = True
                attempt.claim.mark()
        return outcome

    async def _settle(self, job: Job, settlement: Final, settle: Settle, outcome: Outcome | None = None) -> None:
        stands = False
        try:
            with Observed(lambda: self.watch.step("settle")):
                stands = await settle(settlement)
        finally:
            if outcome is not None:
                observe(self.watch.met, job, outcome)
        observe(self.watch.settled if stands else self.watch.unsettled, job, settlement)


@dataclass(slots=True)
class _Attempt:
    """One attempt at a job that is ours to send."""

    job: Job
    mail: Mail | Broken
    claim: Claim
    deadline_ms: int
    settle: Settle
    sent: bool = False
    """Whether the relay accepted it, so that the claim has become a sent record."""

    def wanted(self) -> bool:
        """Whether the mail may still be sent."""
        return self.settle.possible() and self.claim.holds()
