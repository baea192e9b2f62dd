"""Keys of a job, its recipient and its limits: hashes, so that the tables contain neither addresses nor codes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from otp_stream.core.admission import Limit, LimitName
from otp_stream.core.job import Job
from otp_stream.core.masking import hash_address, keyed_hash
from otp_stream.core.tenant import tenant_name

FORGET_FLAG = "forget"
"""The flag that has all workers clear the recent jobs of their pages."""
KEEP_MS = 60_000
"""How long an unsent job stays in the tables after its code has expired, because the clocks of workers differ."""


class HashedKeys(NamedTuple):
    """Keys of a job, its recipient and its limits under one hash key of the deployment."""

    key: str
    recipient: str = ""
    purpose: str = ""
    code: str = ""
    limits: tuple[str, ...] = ()


class JobKeys(NamedTuple):
    """Everything the tables need to know about a job. Times are milliseconds since 1970."""

    key: str
    """Keyed hash of `Job.identity_text`."""
    id_key: str
    """Hash of the id alone, which earlier versions used as the key."""
    made_ms: int
    expires_ms: int
    recipient: str = ""
    """Empty if newer codes do not supersede this job."""
    purpose: str = ""
    code: str = ""
    limits: tuple[str, ...] = ()
    """One key for each limit, empty if the limit does not count this job."""
    old: tuple[HashedKeys, ...] = ()
    """Keys under the old hash keys, which other workers may use. They are read, never written."""

    @property
    def job_only(self) -> "JobKeys":
        """The keys of the job alone, without those for newer codes and limits."""
        old = tuple(HashedKeys(keys.key) for keys in self.old)
        return self._replace(recipient="", purpose="", code="", limits=(), old=old)

    def ttl_ms(self, now_ms: int) -> int:
        """Return how long the tables must know the job, in milliseconds."""
        return max(self.expires_ms - now_ms, 0) + KEEP_MS


class TenantLimits(NamedTuple):
    """The limits of a tenant."""

    applied: frozenset[Limit] = frozenset()
    """Those that count its jobs."""
    own: frozenset[LimitName] = frozenset()
    """Those that count no jobs of other tenants."""

    def without(self, new: set[Limit], before: "TenantLimits") -> "TenantLimits":
        """Return the limits with those of `before` instead of those in `new`."""
        names = {limit.name for limit in self.applied & new}
        kept = {limit for limit in before.applied if limit.name in names}
        return self._replace(applied=self.applied - new | kept)


@dataclass(frozen=True, slots=True)
class KeyBuilder:
    """Builds the keys of a job. `hash_key` is secret, and the same for all workers of a deployment.

    `old_hash_keys` are other keys that workers use during a change of the key. `limits` are the limits of all tenants;
    `tenants` has those that apply to each one, by its name; without it, all apply.
    """

    hash_key: bytes = field(repr=False)
    supersede: bool = False
    limits: Sequence[Limit] = ()
    old_hash_keys: Sequence[bytes] = field(default=(), repr=False)
    tenants: Mapping[str, TenantLimits] = field(default_factory=dict[str, TenantLimits])

    def keys_of(self, job: Job) -> JobKeys:
        """Return the keys of a job under the current hash key and the old ones."""
        id_key = blake2b(job.id.encode(errors="surrogatepass"), digest_size=12).hexdigest()
        job_id = self._id(job, self.hash_key) if self.old_hash_keys else job.id
        key, recipient, purpose, code, limits = self._hashed(job, job_id, self.hash_key)
        keys = JobKeys(key, id_key, job.made_ms, job.expires_ms, recipient, purpose, code, limits)
        if not self.old_hash_keys:
            return keys
        return keys._replace(old=tuple(self._old(job, limits, it) for it in self.old_hash_keys))

    def _old(self, job: Job, limits: tuple[str, ...], hash_key: bytes) -> HashedKeys:
        keys = self._hashed(job, self._id(job, hash_key), hash_key)
        # a key that is the same under both hash keys must not be counted twice
        others = (old if old != new else "" for old, new in zip(keys.limits, limits, strict=True))
        return keys._replace(limits=tuple(others))

    def _hashed(self, job: Job, job_id: str, hash_key: bytes) -> HashedKeys:
        key = _digest(job.identity_text(job_id), hash_key, size=12)
        if not self.limits and not self.supersede:
            return HashedKeys(key)
        recipient = hash_address(job.request.email, hash_key)
        limits = tuple(self._limit_key(limit, job, recipient, hash_key) for limit in self.limits)
        if not self.supersede:
            return HashedKeys(key, limits=limits)
        # without NUL, which separates the tenant: a purpose must not name another one
        purpose = (job.request.metadata.purpose or "").replace("\0", "")
        # a producer that sets no purpose may still have a template for each purpose
        purpose = purpose or f"\0{job.request.metadata.template}"
        if job.tenant:  # a person may use two tenants at the same time
            purpose = f"{purpose}\0{job.tenant}"
        code = _digest(f"{recipient}\0{job.request.otp}", hash_key)
        return HashedKeys(key, recipient, _digest(purpose, hash_key), code, limits)

    def _limit_key(self, limit: Limit, job: Job, recipient: str, hash_key: bytes) -> str:
        if not self.tenants:
            return _limit_key(limit, job, recipient, hash_key)
        of_tenant = self.tenants.get(job.tenant) or TenantLimits()
        if limit not in of_tenant.applied:
            return ""
        key = _limit_key(limit, job, recipient, hash_key)
        return f"{_digest(job.tenant, hash_key)}:{key}" if key and limit.name in of_tenant.own else key

    def _id(self, job: Job, hash_key: bytes) -> str:
        """Return the job's id under this hash key: an id that contains a secret is replaced by its hash."""
        given = job.request.job_id
        if not given or given == job.id:
            return job.id
        # the id of a retry is hashed with the key that was in use when the job arrived
        is_hidden = any(job.id == keyed_hash(given, it) for it in (self.hash_key, *self.old_hash_keys))
        return keyed_hash(given, hash_key) if is_hidden else job.id


def _limit_key(limit: Limit, job: Job, recipient: str, hash_key: bytes) -> str:
    match limit.name:
        case "recipient":
            return recipient
        case "domain":
            return _digest(job.request.email.rpartition("@")[2].lower(), hash_key)
        case "tenant":
            return _digest(tenant, hash_key) if (tenant := tenant_name(job.request.metadata.tenant)) else ""
        case "total":
            return "all"


def _digest(text: str, hash_key: bytes, size: int = 8) -> str:
    return blake2b(text.encode(errors="surrogatepass"), key=hash_key, digest_size=size).hexdigest()
