"""What the tables are asked of a job: digests, so that they hold neither an address nor a code."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from math import isfinite
from typing import NamedTuple

from otp_stream.core.admission import Limit
from otp_stream.core.job import Job
from otp_stream.core.masking import hash_address, hidden

SLICES = 100
"""Into so many slices a window is cut: a limit is never passed, and late by a hundredth of its period at most."""

KEEP_MS = 60_000
"""How much longer than its code lives what is known of an unsent job is kept: clocks of workers differ."""


def slice_ms(limit: Limit) -> int:
    """Return the length of a slice of its window."""
    return -(-limit.period_ms // SLICES)


class Names(NamedTuple):
    """Under which keys a job, its recipient and its limits are known, by one hash key of the deployment."""

    key: str
    recipient: str = ""
    purpose: str = ""
    code: str = ""
    limits: tuple[str, ...] = ()


class Ask(NamedTuple):
    """One question about a job; times are milliseconds, since 1970 where they are moments."""

    key: str
    """Of the job: a keyed hash of its id, recipient and code. A producer may use one id for several jobs."""
    id_key: str
    """Of its id alone, as versions before this one had it."""
    made_ms: int
    expires_ms: int
    recipient: str = ""
    """Empty where no newer code is looked for."""
    purpose: str = ""
    code: str = ""
    limits: tuple[str, ...] = ()
    """Key for each limit; empty where it does not count this job."""
    old: tuple[Names, ...] = ()
    """What other workers, or workers before, may have recorded under the old hash keys: it is read, never written."""

    @property
    def bare(self) -> "Ask":
        """The question whether it was sent and who is at it, without a word on newer codes and limits."""
        old = tuple(Names(names.key) for names in self.old)
        return self._replace(recipient="", purpose="", code="", limits=(), old=old)

    def ttl_ms(self, now_ms: int) -> int:
        """Return how long the job can be asked for again."""
        return max(self.expires_ms - now_ms, 0) + KEEP_MS


@dataclass(frozen=True, slots=True)
class Asker:
    """Makes the question of a job. `hash_key` is the deployment's: equal for all its workers, known to nobody else.

    `old_hash_keys` are those of workers before, or after, a change of the key.
    """

    hash_key: bytes = field(repr=False)
    supersede: bool = False
    limits: Sequence[Limit] = ()
    old_hash_keys: Sequence[bytes] = field(default=(), repr=False)

    def ask(self, job: Job) -> Ask:
        """Return what there is to ask."""
        id_key = blake2b(job.id.encode(errors="surrogatepass"), digest_size=12).hexdigest()
        job_id = self._id(job, self.hash_key) if self.old_hash_keys else job.id
        key, recipient, purpose, code, limits = self._names(job, job_id, self.hash_key)
        ask = Ask(key, id_key, job.made_ms, job.expires_ms, recipient, purpose, code, limits)
        if not self.old_hash_keys:
            return ask
        return ask._replace(old=tuple(self._old_names(job, limits, it) for it in self.old_hash_keys))

    def _old_names(self, job: Job, limits: tuple[str, ...], hash_key: bytes) -> Names:
        names = self._names(job, self._id(job, hash_key), hash_key)
        # what has the same name under both keys must not be counted twice
        others = (old if old != new else "" for old, new in zip(names.limits, limits, strict=True))
        return names._replace(limits=tuple(others))

    def _names(self, job: Job, job_id: str, hash_key: bytes) -> Names:
        key = _digest(f"{job_id}\0{job.ask.email}\0{job.ask.otp}", hash_key, size=12)
        if not self.limits and not self.supersede:
            return Names(key)
        recipient = hash_address(job.ask.email, hash_key)
        limits = tuple(_limit_key(limit, job, recipient, hash_key) for limit in self.limits)
        if not self.supersede:
            return Names(key, limits=limits)
        # a producer that names no purpose may still have a template for each
        purpose = job.ask.metadata.purpose or f"\0{job.ask.metadata.template}"
        code = _digest(f"{recipient}\0{job.ask.otp}", hash_key)
        return Names(key, recipient, _digest(purpose, hash_key), code, limits)

    def _id(self, job: Job, hash_key: bytes) -> str:
        """Return the id that the job has with this key: one that holds a secret is replaced by a hash of it."""
        given = job.ask.job_id
        if not given or given == job.id:
            return job.id
        # a retry brings the hash of the key that was used when the job arrived
        is_hidden = any(job.id == hidden(given, it) for it in (self.hash_key, *self.old_hash_keys))
        return hidden(given, hash_key) if is_hidden else job.id


def _limit_key(limit: Limit, job: Job, recipient: str, hash_key: bytes) -> str:
    match limit.name:
        case "recipient":
            return recipient
        case "domain":
            return _digest(job.ask.email.rpartition("@")[2].lower(), hash_key)
        case "tenant":
            return _digest(tenant, hash_key) if (tenant := _tenant(job.ask.metadata.tenant)) else ""
        case "total":
            return "all"


def _tenant(value: object) -> str:
    """Return the tenant as text, which is one whether a producer writes 1, 1.0 or "1"; empty where it is none."""
    if isinstance(value, float):
        value = int(value) if value.is_integer() else str(value) if isfinite(value) else ""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _digest(text: str, hash_key: bytes, size: int = 8) -> str:
    return blake2b(text.encode(errors="surrogatepass"), key=hash_key, digest_size=size).hexdigest()
