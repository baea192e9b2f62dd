"""Where a relay is, how to log in, and how long anything may take."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from otp_stream.core.rate import RECOVERY_S

Tls = Literal["starttls", "implicit", "none"]


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """How long a connection may live and how long the relay may take to answer, in seconds.

    The answer to the final dot gets the time of RFC 5321 §4.5.3.2.6, because a shorter limit there makes copies.
    Before it nothing has left that could be copied, and the RFC's five minutes for MAIL and for RCPT would take two
    thirds of a code's life.
    """

    idle_s: float = 60
    age_s: float = 300
    messages: int = 1000
    handshakes: int = 10
    """Connections that may be set up at the same time at first, so that the relay gets no burst of them."""
    connect_s: float = 10
    handshake_s: float = 30
    """For each step from the greeting to the login."""
    mail_s: float = 60
    rcpt_s: float = 60
    data_s: float = 60
    body_s: float = 600
    quit_s: float = 5
    recovery_s: float = RECOVERY_S
    """From half the rate after a throttle back to the full one."""


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """One relay: `sender` is the envelope's MAIL FROM address, no `user` means no login."""

    host: str
    port: int
    sender: str
    tls: Tls = "starttls"
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    pool_size: int = 20
    rate: float | None = None
    """Mails per second that it takes; `None`: as many as it can."""
    helo: str | None = None
    """Our name in EHLO; the sender's domain when absent."""
    limits: RelayLimits = RelayLimits()

    @property
    def ordinary_connections(self) -> int:
        """Connections that ordinary jobs may use. The others are kept for urgent jobs, whatever the load."""
        return self.pool_size - (max(1, self.pool_size // 50) if self.pool_size > 1 else 0)

    @property
    def name(self) -> str:
        """`host:port`, as reports show it."""
        return f"{self.host}:{self.port}"
