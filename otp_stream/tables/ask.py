"""What the tables are asked of a job: digests, so that they hold neither an address nor a code."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from otp_stream.core.admission import Limit
from otp_stream.core.job import Job
from otp_stream.core.masking import hash_address

SLICES = 100
"""Into so many slices a window is cut: a limit is never passed, and late by a hundredth of its period at most."""

_KEEP_MS = 60_000
"""How much longer than its code lives what is known of an unsent job is kept: clocks of workers differ."""


def slice_ms(limit: Limit) -> int:
    """Return the length of a slice of its window."""
    return -(-limit.period_ms // SLICES)


class Ask(NamedTuple):
    """One question about a job; times are milliseconds, since 1970 where they are moments."""

    key: str
    """Of the job."""
    made_ms: int
    ttl_ms: int
    """How long it can be asked again: its code's life."""
    recipient: str = ""
    """Empty where no newer code is looked for."""
    purpose: str = ""
    code: str = ""
    limits: tuple[str, ...] = ()
    """Key for each limit; empty where it does not count this job."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Makes the question of a job. `hash_key` is the deployment's: equal for all its workers, known to nobody else."""

    hash_key: bytes = field(repr=False)
    supersede: bool = False
    limits: Sequence[Limit] = ()

    def ask(self, job: Job, now_ms: int) -> Ask:
        """Return what there is to ask."""
        key = blake2b(job.id.encode(errors="surrogatepass"), digest_size=12).hexdigest()
        ttl_ms = max(job.expires_ms - now_ms, 0) + _KEEP_MS
        if not self.limits and not self.supersede:
            return Ask(key, job.made_ms, ttl_ms)
        recipient = hash_address(job.ask.email, self.hash_key)
        limits = tuple(self._key(limit, job, recipient) for limit in self.limits)
        if not self.supersede:
            return Ask(key, job.made_ms, ttl_ms, limits=limits)
        # a producer that names no purpose may still have a template for each
        purpose = job.ask.metadata.purpose or f"\0{job.ask.metadata.template}"
        code = self._digest(f"{recipient}\0{job.ask.otp}")
        return Ask(key, job.made_ms, ttl_ms, recipient, self._digest(purpose), code, limits)

    def _key(self, limit: Limit, job: Job, recipient: str) -> str:
        match limit.name:
            case "recipient":
                return recipient
            case "domain":
                return self._digest(job.ask.email.rpartition("@")[2].lower())
            case "tenant":
                tenant = job.ask.metadata.tenant
                named = isinstance(tenant, str | int) and not isinstance(tenant, bool) and tenant != ""
                return self._digest(str(tenant)) if named else ""
            case "total":
                return "all"

    def _digest(self, text: str) -> str:
        return blake2b(text.encode(errors="surrogatepass"), key=self.hash_key, digest_size=8).hexdigest()
