"""The producers that may send jobs over HTTP: checks their tokens, and limits the requests of each."""

import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from starlette.requests import Request

from otp_stream import clock
from otp_stream.asgi import client_of, is_forwarded
from otp_stream.audit_log import write_audit
from otp_stream.core.audit import AuditRecord
from otp_stream.core.http_token import HttpToken, find_token
from otp_stream.core.line_limit import LineLimit
from otp_stream.core.request_rate import RequestRate
from otp_stream.guess_limit import GuessLimit

from .problem import ProblemError

JOBS = "/v1/jobs"
_REFUSALS = 100
"""Audit lines about wrong tokens and signatures in a minute."""
_CHALLENGE = {"www-authenticate": 'Bearer realm="otp-stream"'}


@dataclass(frozen=True, slots=True)
class Producer:
    """A program that may send jobs."""

    name: str
    tenant: str = ""
    """The tenant for which it sends; empty for the default one."""


@dataclass(slots=True)
class Producers:
    """Identifies producers. `tokens` returns those that are valid now.

    A client with wrong tokens is not blocked, because others may have the same address, and their codes must go out.
    """

    tokens: Callable[[], Sequence[HttpToken]]
    rate: RequestRate
    _refusals: GuessLimit = field(default_factory=GuessLimit)
    """Limits the audit lines about wrong tokens of each client."""
    _lines: LineLimit = field(default_factory=lambda: LineLimit(_REFUSALS))
    """Limits those of all clients."""

    def by_token(self, request: Request) -> Producer:
        """Return the producer whose token is in `Authorization`, as `Bearer`, or as the password of `Basic`.

        Raises `ProblemError` for any other token, and for too many requests.
        """
        sent = _token_of(request)
        token = find_token(self.tokens(), sent, clock.now_ms())
        if token is None:
            self._record_refusal(request, sent)
            raise ProblemError(401, "authorization: must be Bearer with a token of the intake", _CHALLENGE)
        self.count(token.name)
        return Producer(token.name, token.tenant)

    def refused(self, request: Request, detail: str) -> ProblemError:
        """Record a request with a wrong signature, and return the problem."""
        self._record_refusal(request, "signature")
        return ProblemError(401, detail)

    def count(self, name: str) -> None:
        """Count a request. Raises `ProblemError` if there are too many."""
        if wait_s := self.rate.wait_s(name, time.monotonic()):
            detail = f"more than {self.rate.per_second:g} requests a second (INTAKE_RATE_PER_SECOND)"
            raise ProblemError.retry_later(429, detail, wait_s)

    def _record_refusal(self, request: Request, sent: str) -> None:
        client = client_of(request)
        if not sent or self._refusals.is_blocked(client):
            return
        self._refusals.record(client)
        if not self._lines.admits(time.monotonic()):
            return
        about = {"forwarded": is_forwarded(request) or None, "left_out": self._lines.take_left_out() or None}
        write_audit(AuditRecord("token.refused", "refused", "-", client, target=_path_of(request), details=about))


def _path_of(request: Request) -> str:
    """Return the path for audit lines, without the id of a job: a program may have put a code into it."""
    path = str(request.scope["path"])
    return f"{JOBS}/{{jobId}}" if path.startswith(f"{JOBS}/") else path


def _token_of(request: Request) -> str:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    match scheme.lower():
        case "bearer":
            return value.strip()
        case "basic":
            try:
                return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
            except ValueError:  # also for characters that are not ASCII
                return ""
        case _:
            return ""
