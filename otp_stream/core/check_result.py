"""What somebody finds who looks whether all is as it should be."""

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

Level = Literal["ok", "note", "warning", "problem"]
"""`note`: it could not be looked at, or is worth knowing. A `problem` keeps codes from going out, or loses them."""

SOON_DAYS = 14
"""A certificate that ends sooner is warned of."""
_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a report, with what mends it: words, or a command to be copied. It holds no secret."""

    level: Level
    text: str
    cure: str = ""


Tell = Callable[[Finding], object]


def certificate(found: Mapping[str, Any] | None, whose: str, now_s: float) -> Finding:
    """Tell who signed a server's certificate and when it ends; `found` is what `SSLSocket.getpeercert` returns."""
    if not found:  # only a certificate that was verified is read
        return Finding("warning", f"{whose}: its certificate is not verified: anybody could answer in its place")
    ends_s = ssl.cert_time_to_seconds(found["notAfter"])
    days = int((ends_s - now_s) // _DAY_S)
    issuer = {name: value for part in found["issuer"] for name, value in part}
    by = issuer.get("organizationName") or issuer.get("commonName") or "an issuer without a name"
    text = f"{whose}: certificate by {by}, until {datetime.fromtimestamp(ends_s, UTC):%Y-%m-%d} ({days} days)"
    if days < SOON_DAYS:
        return Finding("warning", text, f"renew it: once it has ended, nobody connects to {whose} any more")
    return Finding("ok", text)
