"""One job from arrival to settlement.

The other packages are used only through the Protocols here; `app` provides the implementations.
"""

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from . import clock
from .core.admission import Claim, Refusal
from .core.backoff import Backoff
from .core.decision import Final, Hold, admit, decide, refuse
from .core.job import Job
from .core.mail import ComposeError, Mail, OutdatedMailError, TenantRemovedError
from .core.messaging import ReceivedMessage
from .core.outcome import Accepted, Crashed, Outcome, TimedOut, without_secrets
from .telemetry_errors import SafeSpan, observe

HOLD_LIMIT_MS = 12 * 60_000
"""How long a job may stay in the send queue. RabbitMQ closes the channel when a message is unacked for 30 minutes, and
a relay may take one minute for each reply and ten for the last one, on up to two connections."""


class Composer(Protocol):
    """Composes the e-mail of a job."""

    def compose(self, job: Job) -> Mail:
        """Return the message, the same bytes each time. Raises `ComposeError` if the template or its data fail."""
        ...

    async def compose_isolated(self, job: Job) -> Mail:
        """Compose the same message in a separate process, which may crash without ending this worker."""
        ...


class Relay(Protocol):
    """Sends mails to the mail relay."""

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
        """Wait in the send queue (most urgent rank first; none is sent while the circuit breaker is open), then send.

        Returns `TimedOut` if the mail was still in the queue at `deadline_ms` (since 1970), or was no longer `wanted`
        when it left it. `prefer` names the relay that may have accepted this mail already. Never raises for an error
        of a relay. Raises `OutdatedMailError` if the mail must be composed again.
        """
        ...

    def recheck(self) -> None:
        """Time out the queued mails that are no longer `wanted`."""
        ...


class Tables(Protocol):
    """Stores sent records, claims, the newest code of each recipient and purpose, and rates."""

    async def admit(
        self, job: Job, deadline_ms: int, *, composed: bool, on_lost: Callable[[], object]
    ) -> Claim | Refusal:
        """Claim the job for this worker, or return why it must not be sent.

        Waits while another attempt has the claim, until `deadline_ms` (since 1970). A job that could not
        be `composed` supersedes no other and counts towards no limit. `on_lost` is called when the claim no longer
        holds.
        """
        ...


class Settle(Protocol):
    """Settles a job at the broker."""

    def possible(self) -> bool:
        """Whether the job can still be settled: when its channel closes, the broker redelivers it."""
        ...

    async def __call__(self, settlement: Final) -> bool:
        """Publish with a confirm if the settlement requires it, then acknowledge.

        Returns `False` if that failed: the broker redelivers the job.
        """
        ...


class Observer(Protocol):
    """Logs, counts and traces jobs. An exception in it is counted and logged, and changes no settlement."""

    def job_span(self, job: Job, message: ReceivedMessage) -> AbstractContextManager[object]:
        """Record that a job has arrived, and return the span of its processing, in the producer's trace."""
        ...

    def send_span(self) -> AbstractContextManager[object]:
        """Return the span of one send, a child of the job's span."""
        ...

    def send_ended(self, outcome: Outcome) -> None:
        """Record the outcome of a send in its span, which is still open."""
        ...

    def attempt_ended(self, job: Job, outcome: Outcome) -> None:
        """Record the outcome of an attempt to send."""
        ...

    def job_settled(self, job: Job, settlement: Final) -> None:
        """Record how a job was settled, after the broker has confirmed it."""
        ...

    def settlement_failed(self, job: Job, settlement: Final) -> None:
        """Record that a job could not be settled, so that the broker redelivers it."""
        ...


@dataclass(frozen=True, slots=True)
class Delivery:
    """Admits, composes, sends and settles jobs. Times are milliseconds since 1970."""

    composer: Composer
    relay: Relay
    tables: Tables
    observer: Observer
    backoff: Backoff
    resend_uncertain: bool = True
    """Whether a mail that the relay may have accepted is sent again."""
    settled: Callable[[Job, Final], object] = lambda _, __: None
    """Called with each job and its settlement, like the observer."""
    now_ms: Callable[[], int] = clock.now_ms
    fraction: Callable[[], float] = random.random

    async def __call__(self, job: Job, settle: Settle, message: ReceivedMessage) -> None:
        """Process one job and settle it; if settling fails, the broker redelivers it. Raises only for bugs."""
        with SafeSpan(lambda: self.observer.job_span(job, message)):
            now_ms = self.now_ms()
            if dead := admit(now_ms=now_ms, expires_ms=job.expires_ms, attempts_made=job.attempts_made):
                await self._settle(job, dead, settle)
                return
            # the broker's consumer timeout starts here, whatever the job waits for
            deadline_ms = min(job.expires_ms, now_ms + HOLD_LIMIT_MS)
            mail = await self._compose(job)
            # a job that cannot be sent must not supersede one that can
            composed = isinstance(mail, Mail)
            admission = await self.tables.admit(job, deadline_ms, composed=composed, on_lost=self.relay.recheck)
            if isinstance(admission, Refusal):
                await self._settle(job, self._refuse(job, admission), settle)
            else:
                await self._process_claimed(_Attempt(job, mail, admission, deadline_ms, settle))

    async def _process_claimed(self, attempt: "_Attempt") -> None:
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
            try:
                result = await self._send(attempt, mail) if isinstance(mail, Mail) else mail
            except OutdatedMailError:
                mail = await self._compose(job)
                continue
            if isinstance(result, TimedOut) and not claim.holds():
                if refusal := await claim.renew(attempt.deadline_ms):
                    return self._refuse(job, refusal), None
                continue
            # the text of a reply that accepts the mail is shown nowhere, so it needs no redaction
            outcome = (
                result if isinstance(result, Accepted) else without_secrets(result, job.request.otp, job.request.email)
            )
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
            observe(self.observer.attempt_ended, job, outcome)

    def _refuse(self, job: Job, refusal: Refusal) -> Final:
        return refuse(
            refusal,
            attempts_made=job.attempts_made,
            now_ms=self.now_ms(),
            expires_ms=job.expires_ms,
            backoff=self.backoff,
        )

    async def _compose(self, job: Job) -> Mail | Crashed | TimedOut:
        try:
            return await self.composer.compose_isolated(job) if job.suspect else self.composer.compose(job)
        except TenantRemovedError:
            return TimedOut()
        except ComposeError as error:
            return Crashed(str(error))

    async def _send(self, attempt: "_Attempt", mail: Mail) -> Outcome:
        job = attempt.job
        with SafeSpan(self.observer.send_span):
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
            except OutdatedMailError:
                raise
            except Exception as error:  # noqa: BLE001 - a bug of ours must end this job visibly, not leave it stuck
                outcome = Crashed(f"internal error: {type(error).__name__}")
            if isinstance(outcome, Accepted):
                # nothing runs between the relay's 250 and this record, not even the end of the span
                attempt.sent = True
                attempt.claim.mark_sent()
            observe(self.observer.send_ended, outcome)
        return outcome

    async def _settle(self, job: Job, settlement: Final, settle: Settle, outcome: Outcome | None = None) -> None:
        settled = False
        try:
            settled = await settle(settlement)
        finally:
            if outcome is not None:
                observe(self.observer.attempt_ended, job, outcome)
        observe(self.observer.job_settled if settled else self.observer.settlement_failed, job, settlement)
        if settled:
            observe(self.settled, job, settlement)


@dataclass(slots=True)
class _Attempt:
    """An attempt to send a job that this worker has claimed."""

    job: Job
    mail: Mail | Crashed | TimedOut
    claim: Claim
    deadline_ms: int
    settle: Settle
    sent: bool = False
    """Whether the relay accepted the mail, which turns the claim into a sent record."""

    def wanted(self) -> bool:
        """Whether the mail may still be sent."""
        return self.settle.possible() and self.claim.holds()
