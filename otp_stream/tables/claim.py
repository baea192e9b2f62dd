"""The claims of this worker on the jobs that it may send, and which of them supersede others."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from otp_stream.core.admission import Refusal

from .keys import KEEP_MS, JobKeys
from .memory import Answer
from .redis_script import Busy


class Owner(Protocol):
    """The tables that admitted a job."""

    @property
    def may_send(self) -> bool:
        """Whether this worker's claims are valid, so that no other worker can claim the jobs."""
        ...

    async def renew(self, claim: "Claim", deadline_ms: int) -> Refusal | None:
        """Renew a claim that does not hold. Returns why its job may no longer be sent, or `None`."""
        ...

    def mark_sent(self, claim: "Claim") -> None:
        """Record that the job was sent, and end the claim."""
        ...

    def release(self, claim: "Claim") -> None:
        """End the claim."""
        ...


class Claim:
    """The claim of this worker on a job."""

    __slots__ = (
        "_on_lost",
        "_owner",
        "admitted",
        "arrival",
        "claimed_at",
        "copies",
        "ended",
        "keys",
        "lost",
        "shared",
        "unconfirmed",
        "unshared",
    )

    def __init__(self, owner: Owner, keys: JobKeys, on_lost: Callable[[], object]) -> None:
        self._owner, self._on_lost = owner, on_lost
        self.keys = keys
        self.admitted = False
        """Whether the tables have admitted the job."""
        self.arrival = 0
        self.lost = False
        """Whether the claim was superseded, or was refused when it was renewed."""
        self.unconfirmed = False
        """Whether another worker may have claimed the job. Like a lost claim, it is renewed before the job is sent."""
        self.shared = False
        """Whether Redis may have the claim."""
        self.unshared = False
        """Whether the job was admitted without Redis."""
        self.ended: asyncio.Future[None] | None = None
        """Resolved when the claim ends; `None` while no copy of the job waits for that."""
        self.copies = 0
        """How many copies of the job wait for its end."""
        self.claimed_at = time.monotonic()

    @property
    def order(self) -> tuple[int, int]:
        """The position of its code among those for the same recipient and purpose."""
        return self.keys.made_ms, self.arrival

    @property
    def purpose_key(self) -> str:
        """The key of its recipient and purpose, for which only the newest code is sent."""
        return f"{self.keys.recipient}:{self.keys.purpose}"

    def holds(self) -> bool:
        """Return whether the job may still be sent, without a request to Redis."""
        return not self.lost and not self.unconfirmed and self._owner.may_send

    async def renew(self, deadline_ms: int) -> Refusal | None:
        """Renew a claim that does not hold. Returns `None` if it holds again."""
        return await self._owner.renew(self, deadline_ms)

    def mark_sent(self) -> None:
        """Record that the job was sent, and end the claim."""
        self._owner.mark_sent(self)

    def release(self) -> None:
        """End the claim of a job that was not sent."""
        self._owner.release(self)

    def suspend(self) -> None:
        """Suspend the claim until Redis confirms it: another worker may have claimed the job."""
        self.unconfirmed = True

    def update(self, answer: Answer | Busy) -> None:
        """Apply the answer to a renewal."""
        if isinstance(answer, int):
            self.arrival, self.unconfirmed = answer, False
        elif not self.lost:
            self.lose()

    def lose(self) -> None:
        """Record that the job was superseded or refused."""
        self.lost = True
        self._on_lost()


class Claims:
    """All claims of this worker, by job, and by recipient and purpose."""

    def __init__(self) -> None:
        self._by_job: dict[str, Claim] = {}
        self._by_purpose: dict[str, dict[str, Claim]] = {}

    def __len__(self) -> int:
        return len(self._by_job)

    def get(self, key: str) -> Claim | None:
        """Return the claim on a job, by its key."""
        return self._by_job.get(key)

    def add(self, claim: Claim) -> None:
        """Add a claim, which may not be admitted yet."""
        self._by_job[claim.keys.key] = claim

    def remove(self, claim: Claim) -> None:
        """Remove a claim that has ended."""
        keys = claim.keys
        del self._by_job[keys.key]
        if keys.recipient and (others := self._by_purpose.get(claim.purpose_key)):
            others.pop(keys.key, None)
            if not others:
                del self._by_purpose[claim.purpose_key]

    def admitted(self) -> list[Claim]:
        """Return the claims that the tables have admitted."""
        return [claim for claim in self._by_job.values() if claim.admitted]

    def supersede_older(self, claim: Claim) -> None:
        """End the claims with an older code for the same recipient and purpose."""
        others = self._by_purpose.setdefault(claim.purpose_key, {})
        others[claim.keys.key] = claim
        for it in others.values():
            if _supersedes(claim, it):
                it.lose()


def _supersedes(newer: Claim, claim: Claim) -> bool:
    """Whether a newer code supersedes `claim`. A code that expires long before it does not: it may never be sent."""
    return (
        claim.order < newer.order
        and claim.keys.code != newer.keys.code
        and claim.keys.expires_ms <= newer.keys.expires_ms + KEEP_MS
        and not claim.lost
    )
