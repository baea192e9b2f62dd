"""The status of each job, by its tenant and id."""

from collections.abc import Callable, Sequence
from hashlib import blake2b

from otp_stream import clock
from otp_stream.core.decision import Final
from otp_stream.core.job import Job
from otp_stream.core.job_status import JobStatus
from otp_stream.core.tenant import named_tenant

from .ranked_values import RankedValues


class JobStatuses:
    """Stores the status of jobs while `enabled` returns true. `hash_keys`: names are hashed with the first one."""

    def __init__(
        self,
        values: RankedValues,
        hash_keys: Sequence[bytes],
        enabled: Callable[[], bool],
        now_ms: Callable[[], int] = clock.now_ms,
    ) -> None:
        self._values, self._hash_keys, self._enabled, self._now_ms = values, hash_keys, enabled, now_ms

    def settled(self, job: Job, settlement: Final) -> None:
        """Store how a worker has settled a job."""
        if self._enabled():
            status = JobStatus.of_settlement(settlement, job.attempts_made, self._now_ms())
            self._values.put(self._name(named_tenant(job.request.metadata.tenant), job.id), status.ranked_value)

    def queued(self, tenant: str, job_id: str) -> JobStatus:
        """Store that RabbitMQ has a job, unless a later status is known."""
        status = JobStatus("queued", self._now_ms())
        self._values.put(self._name(tenant, job_id), status.ranked_value)
        return status

    async def find(self, tenant: str, job_id: str) -> JobStatus | None:
        """Return the status of a job; `None` if this worker does not know the job."""
        values = [await self._values.get(self._name(tenant, job_id, key)) for key in self._hash_keys]
        found = [status for value in values if value and (status := JobStatus.from_ranked_value(value))]
        return max(found, key=lambda it: it.ranked_value[0], default=None)

    def _name(self, tenant: str, job_id: str, key: bytes | None = None) -> str:
        text = f"job\0{tenant}\0{job_id}".encode(errors="surrogatepass")
        return blake2b(text, key=key or self._hash_keys[0], digest_size=16).hexdigest()
