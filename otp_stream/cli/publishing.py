"""Publish many jobs and count their outcomes: what `send`, `load` and `livecheck` share."""

import asyncio
import contextlib
import itertools
import json
import secrets
import signal
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Annotated, Any, TypeVar
from uuid import uuid4

import typer
import uvloop

from otp_stream.client import ClientError, JobEvent, NoWorkerError, OtpClient
from otp_stream.clock import now_ms
from otp_stream.core.otp_job import MalformedError, OtpJob
from otp_stream.settings import Settings
from otp_stream.tasks import cancel_and_wait

from . import output

T = TypeVar("T")
JobsExchange = Annotated[
    bool,
    typer.Option(
        "--jobs-exchange",
        help="Publish to the exchange for jobs (otp.jobs), as producers with permission for it alone do.",
    ),
]

EVENTS_OFF = "EVENTS=false: workers publish no events, so the outcome of a job stays unknown"
_MAX_UNCONFIRMED = 200
_MAX_ERRORS = 20
"""Different errors that are counted separately: a relay may word its reply differently for each job."""
_LAST_CONFIRM_S = 2.0
"""How long an interrupted command waits for the confirms of jobs that it has published."""
_INTERVAL_S = 0.05


def client_of(settings: Settings, timeout_s: float = 10, *, jobs_exchange: bool = False) -> OtpClient:
    """Return a client of the deployment's queue and events."""
    queue, prefix = settings.rabbitmq_queue_name, settings.rabbitmq_prefix
    exchange = f"{prefix}.jobs" if jobs_exchange else ""
    return OtpClient(
        settings.amqp_url,
        queue=queue,
        prefix=prefix,
        exchange=exchange,
        timeout_s=timeout_s,
        sealing_key=settings.sealing,
    )


def new_code() -> str:
    """Return six random digits."""
    return f"{secrets.randbelow(10**6):06}"


def make_body(email: str, otp: str | None = None, job_id: str | None = None, **fields: Any) -> tuple[str, bytes]:
    """Return a new job's ID and message body. Raises `MalformedError` if no worker would accept it."""
    job_id = job_id or uuid4().hex
    job = {"email": email, "otp": otp or new_code(), "jobId": job_id, "timestamp": now_ms(), **fields}
    body = json.dumps(job).encode()
    OtpJob.from_bytes(body, strict=True)
    return job_id, body


def check_recipient(address: str, argument: str) -> None:
    """Exit with 2 if no worker would accept the address."""
    try:
        make_body(address)
    except MalformedError as error:
        output.fail(str(error).replace("email", argument, 1))


@dataclass
class Outcomes:
    """The number of jobs by final outcome, and by error."""

    counts: Counter[str] = field(default_factory=Counter[str])
    errors: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])

    def add(self, event: JobEvent) -> None:
        """Count a final event."""
        outcome, error = event.outcome, event.error
        self.counts[outcome] += 1
        if error and ((outcome, error) in self.errors or len(self.errors) < _MAX_ERRORS):
            self.errors[outcome, error] += 1

    def lines(self) -> Iterator[str]:
        """Yield `sent 3` and `rejected 2: 550 no such user`."""
        for outcome, number in self.counts.most_common():
            some = [(error, count) for (it, error), count in self.errors.most_common() if it == outcome]
            yield from (f"{outcome} {count}: {error}" for error, count in some)
            if rest := number - sum(count for _, count in some):
                yield f"{outcome} {rest}{': other errors' if some else ''}"

    def as_json(self) -> dict[str, Any]:
        """Return both as JSON fields."""
        errors = [{"outcome": it, "error": error, "count": count} for (it, error), count in self.errors.most_common()]
        return {"outcomes": dict(self.counts), "errors": errors}


@dataclass(frozen=True, slots=True)
class Options:
    """How jobs are published: `rate` is the maximum per second; `wait_s` the time without an event until giving up."""

    high_lane: bool
    rate: float | None
    wait_s: float
    jobs_exchange: bool = False


@dataclass
class Run(ABC):
    """Jobs that are published, and whose events are counted."""

    options: Options
    published: int = 0
    outcomes: Outcomes = field(default_factory=Outcomes)
    error: str | None = None
    """Why not all jobs were published, or their events are unknown."""
    seconds: float = 0
    publishing_s: float = 0
    _began: float = 0
    _last_event_at: float = 0

    @property
    def ended(self) -> int:
        """Jobs whose final outcome is known."""
        return self.outcomes.counts.total()

    @abstractmethod
    def _body(self, number: int) -> bytes:
        """Return the message body of a job at the moment at which it is published."""

    @abstractmethod
    def _receive(self, event: JobEvent) -> None:
        """Count an event, which may be of another job."""

    @abstractmethod
    def _all_ended(self) -> bool:
        """Whether every published job has a final outcome."""

    def _wait_s(self) -> float:
        return self.options.wait_s

    async def run(
        self, client: OtpClient, numbers: Iterator[int], update: Callable[[], None], *, needs_events: bool = False
    ) -> None:
        """Publish all and wait for their final events, until there is no event for `wait_s`.

        Raises `ClientError` if RabbitMQ does not answer, and `NoWorkerError` with `needs_events`.
        """
        await client.connect()
        async with AsyncExitStack() as stack:
            following: asyncio.Task[None] | None = None
            try:
                if self.options.wait_s:
                    following = await stack.enter_async_context(_handle_events(client, self._receive))
            except NoWorkerError as error:
                if needs_events:
                    raise
                self.error = str(error)
            self._began = monotonic()
            await self._publish(client, numbers, update)
            if following is not None:
                await self._wait(following, update)
            self.seconds = monotonic() - self._began

    async def _publish(self, client: OtpClient, numbers: Iterator[int], update: Callable[[], None]) -> None:
        async def publish(number: int) -> None:
            await client.publish(self._body(number), high_lane=self.options.high_lane)
            self.published += 1
            self.publishing_s = monotonic() - self._began
            update()

        try:
            await _publish_at_rate(numbers, publish, self.options.rate)
        except ClientError as error:
            self.error = str(error)

    async def _wait(self, following: asyncio.Task[None], update: Callable[[], None]) -> None:
        self._last_event_at = monotonic()
        while not following.done() and not self._all_ended() and monotonic() - self._last_event_at < self._wait_s():
            await asyncio.sleep(_INTERVAL_S)
            update()
        if following.done() and (error := following.exception()):
            self.error = self.error or str(error)


@asynccontextmanager
async def _handle_events(client: OtpClient, handle: Callable[[JobEvent], None]) -> AsyncGenerator[asyncio.Task[None]]:
    """Pass every event to `handle`, in a task that ends with `ClientError` if the connection is lost."""
    async with client.follow() as events:

        async def work() -> None:
            async for event in events:
                handle(event)

        task = asyncio.create_task(work())
        try:
            yield task
        finally:
            await cancel_and_wait(task)


async def _publish_at_rate(jobs: Iterator[T], publish: Callable[[T], Awaitable[None]], rate: float | None) -> None:
    """Publish each job at its time, `rate` per second at most; a limited number is unconfirmed at any time.

    Raises the first `ClientError`: no further publish starts after it.
    """
    began, number = monotonic(), 0
    errors: list[ClientError] = []

    async def publish_some(maximum: int | None = None) -> None:
        nonlocal number
        for job in itertools.islice(jobs, maximum):
            due, number = began + (number / rate if rate else 0), number + 1
            if (ahead_s := due - monotonic()) > 0:
                await asyncio.sleep(ahead_s)
            if errors:
                return
            publishing = asyncio.ensure_future(publish(job))
            try:
                await asyncio.shield(publishing)
            except ClientError as error:
                errors.append(error)
            except asyncio.CancelledError:
                # the job may have been published: a confirm that arrives now counts it
                with contextlib.suppress(ClientError, TimeoutError):
                    await asyncio.wait_for(publishing, _LAST_CONFIRM_S)
                raise

    await publish_some(1)  # alone: it declares a missing queue
    async with asyncio.TaskGroup() as group:
        for _ in range(_MAX_UNCONFIRMED):
            group.create_task(publish_some())
    if errors:
        raise errors[0]


def run_until_signal(work: Coroutine[Any, Any, None]) -> bool:
    """Run until the end, Ctrl-C or SIGTERM. Returns whether it reached its end."""

    async def stoppable() -> bool:
        task = asyncio.ensure_future(work)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            return False
        return True

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(stoppable())
