"""Results of checks, as `otp-stream check` reports them."""

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

Level = Literal["ok", "note", "warning", "problem"]
"""A `note` is for information, or reports that something was not checked. A `problem` stops or loses codes."""

WARN_DAYS = 14
"""A certificate that expires sooner is a warning."""
_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line of a report. It contains no secret."""

    level: Level
    text: str
    fix: str = ""
    """An instruction, or a command to be copied; empty if there is none."""


Report = Callable[[CheckResult], object]
"""Called with each result as soon as it is known."""


def check_tls(tls: ssl.SSLObject | ssl.SSLSocket, server: str, now_s: float) -> CheckResult:
    """Report on the TLS of an open connection: its certificate, its version and its cipher."""
    result = check_certificate(tls.getpeercert(), server, now_s)
    name, *_ = tls.cipher() or ("no cipher",)
    return replace(result, text=f"{result.text}, {tls.version()}, {name}")


def check_certificate(certificate: Mapping[str, Any] | None, server: str, now_s: float) -> CheckResult:
    """Report who issued a server's certificate and when it expires.

    `certificate` is the return value of `SSLSocket.getpeercert`.
    """
    if not certificate:  # ssl parses a certificate only if it was verified
        return CheckResult("warning", f"{server}: the certificate is not verified: any server could answer instead")
    expires_s = ssl.cert_time_to_seconds(certificate["notAfter"])
    days = int((expires_s - now_s) // _DAY_S)
    names = {name: value for part in certificate["issuer"] for name, value in part}
    issuer = names.get("organizationName") or names.get("commonName") or "an unnamed issuer"
    date = f"{datetime.fromtimestamp(expires_s, UTC):%Y-%m-%d}"
    text = f"{server}: certificate by {issuer}, valid until {date} ({days} days)"
    if days < WARN_DAYS:
        return CheckResult("warning", text, f"renew it: when it has expired, no client connects to {server} any more")
    return CheckResult("ok", text)
