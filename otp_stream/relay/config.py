"""The configuration of a relay: address, login and time limits."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from otp_stream.core.rate import RECOVERY_S

Tls = Literal["starttls", "implicit", "none"]


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """How long a connection may live and the relay may take to reply, in seconds.

    The reply to the final dot gets the time of RFC 5321 §4.5.3.2.6, because a shorter limit would cause duplicates.
    Before the final dot, a retry causes none, and the RFC's five minutes for MAIL and for RCPT would take two thirds of
    a code's life.
    """

    idle_s: float = 60
    age_s: float = 300
    messages: int = 1000
    handshakes: int = 10
    """Connections that may be opened at the same time at first, so that the relay receives no burst of them."""
    connect_s: float = 10
    handshake_s: float = 30
    """For each step from the greeting to the login."""
    mail_s: float = 60
    rcpt_s: float = 60
    data_s: float = 60
    body_s: float = 600
    quit_s: float = 5
    recovery_s: float = RECOVERY_S
    """Time from half the rate after a throttle to the full rate."""


@dataclass(frozen=True, slots=True)
class OAuthConfig:
    """Where access tokens come from: a file, a command, or else a token server.

    The token server grants them for a service account's `key_file`, a `refresh_token`, or the client's own credentials.
    """

    user: str
    """Whose mailbox sends; the subject of a service account's token."""
    token_url: str | None = None
    client_id: str | None = None
    client_secret: str | None = field(default=None, repr=False)
    scope: str | None = None
    refresh_token: str | None = field(default=None, repr=False)
    key_file: Path | None = None
    """A service account's key, as Google writes it: JSON with `client_email`, `private_key` and `token_uri`."""
    token_file: Path | None = None
    token_command: tuple[str, ...] = field(default=(), repr=False)
    """Its standard output is a token, or JSON with `access_token` and `expires_in`."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """How the secrets of a relay change while the worker runs."""

    current: "Callable[[], RelayConfig]"
    """Returns the configuration with the secrets of now."""
    refresh: Callable[[], Awaitable[object]]
    """Reads them again at once."""


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
    """Mails per second; `None`: no limit."""
    helo: str | None = None
    """Our name in EHLO; `None`: the sender's domain."""
    chunking: bool = True
    """Whether to send content by BDAT where the relay offers CHUNKING."""
    group: str = ""
    """The group of relays that it belongs to, so that two groups with the same host have different names."""
    shared: bool = False
    """Whether tenants with different senders use it, so that a refusal or a limit of a sender is about one tenant."""
    limits: RelayLimits = RelayLimits()
    mechanism: str | None = None
    """The SASL mechanism to insist on; `None`: the best one that the relay offers."""
    certificate: tuple[Path, Path] | None = None
    """Our certificate and its key, PEM files."""
    oauth: OAuthConfig | None = None
    """Where access tokens come from; `None`: the login is by password."""
    rotation: Rotation | None = field(default=None, repr=False, compare=False)
    """`None`: the secrets do not change."""

    @property
    def current(self) -> "RelayConfig":
        """This configuration with the secrets of now."""
        return self.rotation.current() if self.rotation is not None else self

    @property
    def secrets(self) -> tuple[str, ...]:
        """User, password and the secrets for access tokens, as far as there are any."""
        oauth = (self.oauth.client_secret, self.oauth.refresh_token) if self.oauth is not None else ()
        return tuple(it for it in (self.user, self.password, *oauth) if it)

    @property
    def logs_in(self) -> bool:
        """Whether there is a login."""
        return self.user is not None or self.mechanism == "EXTERNAL"

    @property
    def ordinary_connections(self) -> int:
        """Connections that ordinary jobs may use. The others are reserved for urgent jobs."""
        return self.pool_size - (max(1, self.pool_size // 50) if self.pool_size > 1 else 0)

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{self.host}:{self.port}"

    @property
    def name(self) -> str:
        """`host:port`, with a group `group/host:port`: the same in states, metrics, events and shared rates."""
        return f"{self.group}/{self.address}" if self.group else self.address
