"""Synthetic codes through the whole system: published, accepted by the relay, delivered to a mailbox.

The mailbox is an SMTP server to which the mail of a recipient is routed.
"""

import asyncio
import email
import email.policy
import itertools
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import EmailMessage
from time import monotonic

from aiosmtpd.smtp import SMTP, Envelope, Session

from otp_stream.client import ClientError, OtpClient
from otp_stream.core.decision import ENDINGS
from otp_stream.core.masking import contains_secret

from .publishing import make_body

_MOST_BYTES = 1_000_000


OUTCOMES = (*ENDINGS, "lost", "not_arrived", "wrong_code", "failed")
"""How a probe ends: as a job does; or with no final event, no mail, a mail with another code, or not published."""
PURPOSE = "livecheck"
_EXPIRY_MINUTES = 1
_DIGITS = 8
_MARK = "Livecheck-"
"""Precedes the probe's id in `userName`, which identifies our mail even if it contains another code."""


class Mailbox:
    """An SMTP server on `host:port`, once started; accepts every recipient: a route may change the address."""

    def __init__(self, host: str, port: int, on_mail: Callable[[str], None]) -> None:
        self.host, self.port = host, port
        self._on_mail = on_mail
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises `OSError` if the port is in use."""
        self._server = await asyncio.get_running_loop().create_server(self._session, self.host, self.port)

    # aiosmtpd calls this method by its name

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: ARG002, N802, D102
        message = email.message_from_bytes(envelope.original_content or b"", policy=email.policy.default)
        self._on_mail("\n".join(_texts(message)))
        return "250 2.0.0 seen"

    def _session(self) -> SMTP:
        loop = asyncio.get_running_loop()
        return SMTP(self, hostname="livecheck", enable_SMTPUTF8=True, data_size_limit=_MOST_BYTES, loop=loop)


def _texts(message: EmailMessage) -> list[str]:
    """Return the text and HTML parts."""
    found: list[str] = []
    for kind in ("plain", "html"):
        part = message.get_body((kind,))
        if isinstance(part, EmailMessage):
            try:
                found.append(part.get_content())
            except (LookupError, ValueError):  # an unknown charset: not our mail
                continue
    return found


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one probe. Times are seconds from publishing: to the event of the relay's 250, to the mailbox."""

    outcome: str
    error: str | None = None
    accept_s: float | None = None
    arrive_s: float | None = None

    @property
    def good(self) -> bool:
        """Whether the code was sent and, if there is a mailbox, has arrived."""
        return self.outcome == "sent"


@dataclass(eq=False, slots=True)
class _Probe:
    id: str = field(default_factory=lambda: secrets.token_hex(6))
    code: str = field(default_factory=lambda: f"{secrets.randbelow(10**_DIGITS):0{_DIGITS}}", repr=False)
    published_at: float | None = None
    confirmed: bool = False
    outcome: str | None = None
    error: str | None = None
    accept_s: float | None = None
    arrive_s: float | None = None
    code_matches: bool = True
    arrived: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class Route:
    """Where probes are sent, and the time limit of each."""

    recipient: str
    high_lane: bool
    timeout_s: float
    mailbox: bool


class Prober:
    """Sends probes and reports the result of each. If the connection is lost, probes fail until it is back."""

    def __init__(self, client: OtpClient, route: Route, report: Callable[[Result], None]) -> None:
        self.client, self._route, self._report = client, route, report
        self._in_flight: set[_Probe] = set()

    async def run(self, count: int, every_s: float) -> None:
        """Send `count` probes, or for 0 without end, and wait for their results."""
        async with asyncio.TaskGroup() as group:
            due = monotonic()
            for _ in range(count) if count else itertools.count():
                await asyncio.sleep(due - monotonic())
                group.create_task(self._check())
                due = max(due + every_s, monotonic())

    async def _check(self) -> None:
        probe = _Probe()
        self._in_flight.add(probe)
        failure = None
        try:
            async with asyncio.timeout(self._route.timeout_s):
                await self._send_and_follow(probe)
        except TimeoutError:
            failure = None if probe.confirmed else "RabbitMQ does not confirm the publish"
        except ClientError as error:
            failure = str(error)
        finally:
            self._in_flight.remove(probe)
        self._report(self._result(probe, failure))

    async def _send_and_follow(self, probe: _Probe) -> None:
        """Return when the probe has ended and, if there is a mailbox, its mail has arrived."""
        metadata = {"purpose": PURPOSE, "expiryMinutes": _EXPIRY_MINUTES, "userName": _MARK + probe.id}
        job_id, body = make_body(self._route.recipient, probe.code, f"livecheck-{probe.id}", metadata=metadata)
        async with self.client.follow(job_id) as events:
            probe.published_at = monotonic()
            await self.client.publish(body, high_lane=self._route.high_lane)
            probe.confirmed = True
            async for event in events:
                probe.outcome, probe.error = event.outcome, event.error
            if probe.outcome == "sent":
                probe.accept_s = monotonic() - probe.published_at
                if self._route.mailbox:
                    await probe.arrived.wait()

    def _result(self, probe: _Probe, failure: str | None) -> Result:
        outcome, error = probe.outcome, probe.error
        if failure is not None:
            outcome, error = "failed", failure
        elif not probe.code_matches:
            outcome, error = "wrong_code", "the mail contains another code"
        elif outcome == "sent" and self._route.mailbox and probe.arrive_s is None:
            outcome, error = "not_arrived", f"accepted, but no mail within {self._route.timeout_s:g} s"
        elif outcome is None or outcome not in ENDINGS:
            nothing = "no worker reported it" + ("" if probe.arrive_s is None else ", but its mail arrived")
            last = nothing if outcome is None else f"{outcome} {error or ''}".strip()
            outcome, error = "lost", f"no final event within {self._route.timeout_s:g} s: {last}"
        return Result(outcome, error, probe.accept_s, probe.arrive_s)

    def take(self, text: str) -> None:
        """Compare a mail with the probes in flight; ignore other mail."""
        for probe in self._in_flight:
            matches = contains_secret(text, "", probe.code)
            if probe.published_at is None or not (matches or _MARK + probe.id in text):
                continue
            if probe.arrive_s is None:
                probe.arrive_s, probe.code_matches = monotonic() - probe.published_at, matches
                probe.arrived.set()
            return
