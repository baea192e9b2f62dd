"""One job on its way through the worker."""

from dataclasses import dataclass
from typing import Literal, Self

from .otp_job import OtpJob, Priority

Lane = Literal["jobs", "high", "due", "tenant"]
"""Where a job was received from: the producers' queue, their high lane, the queue in which waits end, or a queue of its
tenant. A job that was moved to its tenant's queue keeps the lane from which it was moved."""

CLOCK_TOLERANCE_MS = 5_000
_RANKS = {"high": 1, "normal": 2, "low": 3}


@dataclass(frozen=True, slots=True)
class Replay:
    """The replay of a dead letter by an operator."""

    at_ms: int
    by: str
    fresh: bool
    """Whether the lifetime of its code starts again with the replay."""


@dataclass(frozen=True, slots=True)
class Job:
    """One job in flight: the request, and what the worker knows about earlier attempts.

    Times are milliseconds since 1970. `attempts_made` counts real attempts; an open circuit breaker counts none.
    """

    id: str
    request: OtpJob
    lane: Lane
    first_seen_ms: int
    attempts_made: int
    made_ms: int
    expires_ms: int
    clock_ahead_ms: int
    suspect: bool = False
    """Whether it was delivered before and not settled, so that it may have crashed a worker."""
    uncertain: str | None = None
    """The relay that may have accepted its mail in an earlier attempt."""
    replay: Replay | None = None
    """The last replay, if the job was a dead letter before."""
    tenant: str = ""
    """The tenant that it belongs to, by its name in `TENANTS_FILE`; empty for the default one."""
    moves: int = 0
    """How often it was moved to its tenant's queue."""

    @classmethod
    def from_request(  # noqa: PLR0913 - all that is known about it
        cls,
        request: OtpJob,
        *,
        job_id: str,
        lane: Lane,
        first_seen_ms: int,
        attempts_made: int,
        default_expiry_minutes: float,
        suspect: bool = False,
        uncertain: str | None = None,
        replay: Replay | None = None,
        tenant: str = "",
        moves: int = 0,
    ) -> Self:
        """Return the job for a request, with the times at which its code was made and expires.

        A producer's clock that runs ahead would keep a code alive too long, so a `timestamp` after the moment at which
        a worker first saw the job counts as that moment; the difference is kept for the logs. A clock that runs behind
        looks like a job that waited: the code's life counts from `timestamp`, and the lag is a metric.
        """
        stated_ms = first_seen_ms if request.timestamp is None else request.timestamp
        made_ms = min(stated_ms, first_seen_ms)
        minutes = request.metadata.expiry_minutes or default_expiry_minutes
        return cls(
            id=job_id,
            request=request,
            lane=lane,
            first_seen_ms=first_seen_ms,
            attempts_made=attempts_made,
            made_ms=made_ms,
            expires_ms=_lifetime_start_ms(made_ms, replay) + round(minutes * 60_000),
            clock_ahead_ms=stated_ms - made_ms,
            suspect=suspect,
            uncertain=uncertain,
            replay=replay,
            tenant=tenant,
            moves=moves,
        )

    @property
    def identity(self) -> int:
        """A hash that is equal for copies of one job within this process."""
        return hash(self.identity_text(self.id))

    def identity_text(self, job_id: str) -> str:
        """Return a text that is equal for copies of one job. `job_id` is its id, or another one in its place.

        It contains the recipient and the code, because a producer may use one id for several jobs, and the tenant,
        because others may use the same id.
        """
        text = f"{job_id}\0{self.request.email}\0{self.request.otp}"
        return f"{text}\0{self.tenant}" if self.tenant else text

    @property
    def requested_ms(self) -> int:
        """When the producer requested it, or an operator replayed it."""
        return self.replay.at_ms if self.replay else self.made_ms

    @property
    def dated_ms(self) -> int:
        """The time for the `Date` of its e-mail, the same in each copy.

        It is the producer's `timestamp` if that is plausible: unlike the time of arrival, it survives a crash.
        """
        stated_ms = self.request.timestamp if self.clock_ahead_ms <= CLOCK_TOLERANCE_MS else None
        return self.made_ms if stated_ms is None else stated_ms

    @property
    def rank(self) -> int:
        """Its urgency among prefetched jobs: 0 high lane, 1 high, 2 normal, 3 low."""
        return rank(self.lane, self.request.priority)

    @property
    def lifetime_ms(self) -> int:
        """How long its code is valid."""
        return self.expires_ms - _lifetime_start_ms(self.made_ms, self.replay)

    @property
    def shown_expiry_ms(self) -> int:
        """When its code expires, as its e-mail shows it: the same in each copy, like `dated_ms`."""
        return _lifetime_start_ms(self.dated_ms, self.replay) + self.lifetime_ms


def rank(lane: Lane, priority: Priority) -> int:
    """Return the urgency among prefetched jobs, 0 is the highest; the high lane precedes every priority."""
    return 0 if lane == "high" else _RANKS[priority]


def _lifetime_start_ms(made_ms: int, replay: Replay | None) -> int:
    return replay.at_ms if replay is not None and replay.fresh else made_ms
