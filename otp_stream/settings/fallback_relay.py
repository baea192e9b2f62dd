"""The relays to use while the first one takes no mail."""

from dataclasses import dataclass, field
from typing import Literal, Self
from urllib.parse import unquote

from otp_stream.core.address import wire_domain
from otp_stream.urls import ESCAPE, read_url

_EXAMPLE = "smtp://user:password@host:587 or smtps://user:password@host:465"


@dataclass(frozen=True, slots=True)
class FallbackRelay:
    """One entry of `SMTP_FALLBACK_URLS`."""

    host: str
    port: int
    tls: Literal["starttls", "implicit", "none"]
    user: str | None
    password: str | None = field(repr=False)

    @classmethod
    def read(cls, url: str) -> Self:
        """Parse a URL. Raises `ValueError`, whose text never quotes the URL, because it contains a password."""
        try:
            parts = read_url(url, {"smtp", "smtps"}, _EXAMPLE)
        except ValueError as error:
            raise ValueError(f"must look like {_EXAMPLE}: it {error}") from None
        if parts.path.strip("/") or parts.query not in {"", "tls=none", "tls=starttls"}:
            raise ValueError("may end in ?tls=none or ?tls=starttls, nothing else; " + ESCAPE)
        if (parts.username is None) != (parts.password is None):
            raise ValueError("must have both a user and a password, or neither")
        implicit = parts.scheme == "smtps"
        if implicit and parts.query:
            raise ValueError("is smtps://, which has TLS from the first byte; leave ?tls= out")
        port = parts.port or (465 if implicit else 587)
        tls = "implicit" if implicit else "none" if parts.query == "tls=none" else "starttls"
        user, password = (unquote(part) if part else None for part in (parts.username, parts.password))
        host = parts.hostname or ""
        return cls(host if host.isascii() else wire_domain(host), port, tls, user, password)
