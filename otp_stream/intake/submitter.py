"""From a job in a request to a job in RabbitMQ, once for each idempotency key."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol
from uuid import uuid4

from otp_stream import clock
from otp_stream.core.job_status import JobStatus
from otp_stream.core.masking import is_secret_id, keyed_hash
from otp_stream.core.not_queued import NotQueuedError
from otp_stream.core.otp_job import MAX_BODY_BYTES, MalformedError, OtpJob
from otp_stream.core.sealed_body import is_sealed
from otp_stream.core.sealed_code import stated_tenant
from otp_stream.core.tenant import named_tenant
from otp_stream.core.trace_context import is_harmless_trace

from .problem import RETRY_AFTER_S, ProblemError
from .producers import Producer

_STARTED, _CONFIRMED = "0", "1"
"""Ranks of the use of an idempotency key."""


class Publish(Protocol):
    """Publishes a job and waits for the confirm. Raises `NotQueuedError`."""

    async def __call__(self, body: bytes, trace_context: Mapping[str, str], *, high: bool) -> None:
        """Publish a message body, which contains a code in plain text. `high`: in the high lane."""
        ...


class RankedValues(Protocol):
    """Short texts that the workers share. The first character of a value is its rank."""

    def put(self, name: str, value: str) -> None:
        """Store a value, unless there is one of a higher rank."""
        ...

    async def put_first(self, name: str, value: str) -> str | None:
        """Store a value, unless there is one of the same or a higher rank. Returns the previous value."""
        ...

    async def get(self, name: str) -> str | None:
        """Return a value."""
        ...


class Statuses(Protocol):
    """The status of each job."""

    def queued(self, tenant: str, job_id: str) -> JobStatus:
        """Store that RabbitMQ has a job."""
        ...

    async def find(self, tenant: str, job_id: str) -> JobStatus | None:
        """Return the status of a job; `None` if this worker does not know the job."""
        ...


@dataclass(frozen=True, slots=True)
class Submitter:
    """Publishes the jobs of producers."""

    publish: Publish
    ranked_values: RankedValues
    statuses: Statuses
    hash_keys: Sequence[bytes] = field(repr=False)
    """The first key makes job ids; the others are those of workers before or after a change of the key."""
    tenant_problem: Callable[[str], str | None]
    """Returns why no job can be sent for a tenant now, or `None`."""

    async def submit(self, job: OtpJob, producer: Producer, key: str | None, trace_context: Mapping[str, str]) -> str:
        """Publish a job, unless it was published for the same idempotency key before, and return its id.

        Raises `ProblemError`: 403 for another tenant, 422 for a key that was used with another job, 503 if RabbitMQ
        has not confirmed the job.
        """
        self._check_tenant(job, producer)
        use = await self._begin(job, producer, key) if key is not None else None
        job = self._completed(job, producer, use)
        assert job.job_id is not None  # noqa: S101 - `_completed` sets it
        if use is None or not use.confirmed:
            await self._publish(job, job.job_id, trace_context)
        if use is not None:
            self.ranked_values.put(use.name, f"{_CONFIRMED}-{use.fingerprint}")
        self.statuses.queued(producer.tenant, job.job_id)
        return job.job_id

    def _check_tenant(self, job: OtpJob, producer: Producer) -> None:
        if job.metadata.tenant is not None and named_tenant(job.metadata.tenant) != producer.tenant:
            raise ProblemError(
                403, f"metadata.tenant: this token sends for {producer.tenant or 'the default tenant'} only"
            )
        # the code opened for the tenant that the body names; without one, the job gets that of the token
        if job.sealed is not None and stated_tenant(job.sealed) not in (None, producer.tenant):
            raise ProblemError(
                403, "otpSealed: was sealed for another tenant: its protected header must have the tenant of this token"
            )
        if problem := self.tenant_problem(producer.tenant):
            raise ProblemError(403, problem)

    async def _begin(self, job: OtpJob, producer: Producer, key: str) -> "_KeyUse":
        """Store which job a key is used for. Raises `ProblemError` if that was another one."""
        for hash_key in self.hash_keys[1:]:
            use = _KeyUse.of(job, producer, key, hash_key)
            if await self.ranked_values.get(use.name) is not None:
                break
        else:
            use = _KeyUse.of(job, producer, key, self.hash_keys[0])
        before = await self.ranked_values.put_first(use.name, f"{_STARTED}-{use.fingerprint}")
        if before is not None and before[2:] != use.fingerprint:
            raise ProblemError(
                422,
                "idempotency-key: was used with another body; make a new key for each job, and repeat both unchanged",
            )
        use.confirmed = before is not None and before.startswith(_CONFIRMED)
        return use

    def _completed(self, job: OtpJob, producer: Producer, use: "_KeyUse | None") -> OtpJob:
        """Return the job with its id, tenant and time."""
        job_id = job.job_id
        if job_id and is_secret_id(job_id, job.email, job.otp):
            job_id = keyed_hash(job_id, self.hash_keys[0])  # as workers do, so that events and status have the same id
        more: dict[str, Any] = {"job_id": job_id or (use.job_id(job) if use else _new_id(job))}
        if job.timestamp is None:
            more["timestamp"] = clock.now_ms()
        if producer.tenant:
            more["metadata"] = job.metadata.model_copy(update={"tenant": producer.tenant})
        return job.model_copy(update=more)

    async def _publish(self, job: OtpJob, job_id: str, trace_context: Mapping[str, str]) -> None:
        body = body_of(job)
        if len(body) > MAX_BODY_BYTES:
            raise ProblemError(413, f"the job must have at most {MAX_BODY_BYTES} bytes as compact JSON")
        trace = {name: it for name, it in trace_context.items() if is_harmless_trace(it, name, job.email, job.otp)}
        try:
            await self.publish(body, trace, high=job.priority == "high")
        except NotQueuedError as error:
            detail = (
                f"{error}; send the request again, with the same Idempotency-Key or this jobId: the code is sent once"
            )
            raise ProblemError.retry_later(503, detail, RETRY_AFTER_S, {"jobId": job_id}) from None


@dataclass(slots=True)
class _KeyUse:
    """The use of an idempotency key."""

    name: str
    fingerprint: str
    """A keyed hash of the job as it was sent."""
    scope: str
    hash_key: bytes = field(repr=False)
    confirmed: bool = False
    """Whether RabbitMQ has confirmed the job before."""

    @classmethod
    def of(cls, job: OtpJob, producer: Producer, key: str, hash_key: bytes) -> "_KeyUse":
        scope = f"{producer.name}\0{key}"
        # with its token: otherwise each other code that is refused would be a wrong guess of the sealed one
        fields = job.model_dump(mode="json", by_alias=True, exclude_none=True)
        content = json.dumps([fields, job.sealed], sort_keys=True)
        return cls(_digest(f"key\0{scope}", hash_key), _digest(content, hash_key), scope, hash_key)

    def job_id(self, job: OtpJob) -> str:
        """Return an id that is the same each time, and does not contain the code by chance."""
        number, job_id = 0, ""
        while not job_id or is_secret_id(job_id, job.email, job.otp):
            job_id = _digest(f"id\0{self.scope}\0{number}", self.hash_key)
            number += 1
        return job_id


def body_of(job: OtpJob) -> bytes:
    """Return a job as a message body."""
    return job.model_dump_json(by_alias=True, exclude_none=True).encode()


def read_job(body: bytes, keys: Any) -> OtpJob:
    """Return the job in a body. Raises `ProblemError`: 400 if it is not JSON, 422 if it is not a job.

    A body that is sealed as a whole is refused: it is made by workers, and opens for any tenant.
    """
    if is_sealed(body):
        raise ProblemError(400, "body: must be a JSON object, in which the code alone is sealed (otpSealed)")
    try:
        return OtpJob.from_bytes(body, keys=keys)
    except MalformedError as error:
        raise ProblemError(400 if str(error).startswith("body: ") else 422, str(error)) from None


def _new_id(job: OtpJob) -> str:
    job_id = ""
    while not job_id or is_secret_id(job_id, job.email, job.otp):
        job_id = uuid4().hex
    return job_id


def _digest(text: str, hash_key: bytes) -> str:
    return blake2b(text.encode(errors="surrogatepass"), key=hash_key, digest_size=16).hexdigest()
