"""Every environment variable that the worker knows: one typed, frozen object, read once."""

import ipaddress
from dataclasses import dataclass, field
from email.utils import parseaddr
from functools import cached_property
from hashlib import scrypt
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from .core.admission import Limit, LimitName, read_limits

EMBEDDED_BROKER_PORT = 5673
REQUIRED = ("SENDER_EMAIL", "SMTP_HOST")
REQUIRED_FOR_LOGIN = ("SMTP_USER", "SMTP_PASS")
_ESCAPE = "in a password write / ? # @ : as %.."
_REDIS_OPTIONS = {"db", "username", "password", "client_name"}
_REDIS_TLS_OPTIONS = {
    "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_certfile", "ssl_keyfile", "ssl_password", "ssl_cert_reqs",
    "ssl_check_hostname", "ssl_min_version", "ssl_ciphers",
}  # fmt: skip
_LEVELS = {
    "warn": "warning", "http": "info", "verbose": "debug", "silly": "debug", "trace": "debug", "fatal": "critical",
}  # fmt: skip


class Settings(BaseSettings):
    """What an operator may turn. Field names in capitals are the environment variables."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        populate_by_name=True,
    )

    worker: bool = Field(default=False, description="`true` consumes; `false` serves HTTP only (health, docs, page).")
    app_env: Literal["development", "staging", "production"] = Field(
        default="development",
        validation_alias=AliasChoices("APP_ENV", "NODE_ENV"),
        description="`development`, `staging` or `production`. `APP_ENV` is the same setting and wins.",
    )
    rabbitmq_url: SecretStr = Field(
        default=SecretStr("amqp://localhost:5672"),
        description="The broker. `amqps://` for TLS, `memory://` for the embedded broker.",
    )
    rabbitmq_queue_name: str = Field(
        default="service_send_otp", min_length=1, max_length=200, description="The jobs queue, used as it stands."
    )
    max_retries: int = Field(default=3, ge=0, le=100, description="Retries after the first attempt.")
    base_delay_ms: int = Field(default=1000, ge=1, le=86_400_000, description="First retry's delay, milliseconds.")
    max_delay_ms: int = Field(default=30000, ge=1, le=86_400_000, description="Longest delay, milliseconds.")
    prefetch_count: int = Field(
        default=1,
        ge=1,
        le=65535,
        description="The window: jobs of one lane held unsettled by one worker. 200 is a good value.",
    )
    heartbeat_interval_ms: int = Field(
        default=30000, ge=100, description="How often the health monitor looks and logs, milliseconds."
    )
    sender_email: str | None = Field(default=None, description="`a@b.c` or `Name <a@b.c>`. Required to consume.")
    smtp_host: str | None = Field(default=None, description="The mail relay. Required to consume.")
    smtp_port: int = Field(default=587, ge=1, le=65535, description="The relay's port.")
    smtp_user: str | None = Field(default=None, description="Login. Required to consume unless `SMTP_AUTH=none`.")
    smtp_pass: SecretStr | None = Field(
        default=None, description="Password. Required to consume unless `SMTP_AUTH=none`."
    )
    log_level: Literal["debug", "info", "warning", "error", "critical"] | None = Field(
        default=None, description="`debug`, `info`, `warning` or `error`; `info` (`debug` in development) when unset."
    )

    smtp_tls: Literal["starttls", "implicit", "none"] = Field(
        default="starttls",
        description="`starttls` (required, never opportunistic), `implicit` (the default on port 465) or `none`.",
    )
    smtp_auth: Literal["login", "none"] = Field(default="login", description="`none` needs no user and password.")
    smtp_ca_file: Path | None = Field(default=None, description="PEM file of the authority that signed the relay.")
    smtp_pool_size: int = Field(default=20, ge=1, le=1000, description="Connections to the relay: concurrent sends.")
    smtp_rate_per_second: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Mails per second to each relay, as its quota says; jobs wait for their turn. No limit when unset.",
    )
    smtp_fallback_urls: SecretStr | None = Field(
        default=None,
        description="Relays to use while the gate before the first is closed, in order: a comma list of "
        "`smtp://user:pass@host:port` (STARTTLS; `?tls=none` on loopback) and `smtps://…` (implicit TLS).",
    )
    smtp_uncertain: Literal["resend", "dead"] = Field(
        default="resend",
        description="When the connection is lost after the final dot: `resend` once, or lay the job aside as `dead`.",
    )
    redis_url: SecretStr | None = Field(
        default=None,
        description="Redis (5 or newer, or Valkey) for the state that all workers share: `redis://`, `rediss://` for "
        "TLS, or `unix://`. Without it, state is in each worker's memory.",
    )
    state_fail: Literal["open", "closed"] = Field(
        default="open",
        description="While Redis is away: `open` sends codes on what this worker alone knows, `closed` lets jobs wait.",
    )
    sent_ttl_hours: float = Field(
        default=24, gt=0, le=24 * 31, description="How long a job that was sent is not sent again."
    )
    sent_memory_limit: int = Field(
        default=500_000,
        ge=1_000,
        le=50_000_000,
        description="Sent jobs that a worker remembers at most, about 150 bytes each; beyond it the oldest give way.",
    )
    supersede: Literal["off", "latest"] = Field(
        default="off",
        description="`latest`: a job that still waits when a newer code for the same recipient and purpose arrives "
        "ends as `superseded`.",
    )
    recipient_limit: str | None = Field(
        default=None,
        description="Jobs for one recipient in any such time, as in `5/10m` (s, m, h or d) or `5/10m,20/1d`; more are "
        "`throttled`.",
    )
    domain_limit: str | None = Field(default=None, description="The same for all recipients of one domain.")
    tenant_limit: str | None = Field(default=None, description="The same for all jobs with one `metadata.tenant`.")
    total_limit: str | None = Field(default=None, description="The same for all jobs together.")
    otp_expiry_minutes: float = Field(
        default=15, gt=0, le=525_600, description="A code's life when the job has no `expiryMinutes`."
    )
    templates_dir: Path | None = Field(default=None, description="Folder whose templates override ours, one by one.")
    default_locale: str = Field(
        default="en", pattern=r"^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*$", description="Language when a job names none."
    )
    events: bool = Field(
        default=True,
        description="`false` tells nobody how jobs end; `otp-stream send`, `livecheck`, `load` listen to it.",
    )
    http_token: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Whoever says it may replay dead letters on the page, and not only look; 16 characters or more.",
    )
    shutdown_grace_ms: int = Field(
        default=25000, ge=0, description="How long running sends may take after SIGTERM, milliseconds."
    )
    rabbitmq_prefix: str = Field(
        default="otp",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="Prefix of our own queues and exchanges, so that two deployments can share a virtual host.",
    )

    @model_validator(mode="before")
    @classmethod
    def _port_465_means_implicit_tls(cls, data: Any) -> Any:
        # RFC 8314 §7.3 gives 465 to implicit TLS, and so did the worker that this one replaces.
        keys = {key.lower(): key for key in data}
        if "smtp_tls" not in keys and "smtp_port" in keys and str(data[keys["smtp_port"]]) == "465":
            return {**data, "smtp_tls": "implicit"}
        return data

    @field_validator("log_level", mode="before")
    @classmethod
    def _accept_node_levels(cls, value: object) -> object:
        return _LEVELS.get(value.lower(), value.lower()) if isinstance(value, str) else value

    @field_validator("sender_email")
    @classmethod
    def _one_sender(cls, value: str | None) -> str | None:
        if value is not None and ("\n" in value or "\r" in value or not _is_address(parseaddr(value)[1])):
            raise ValueError("must be an address such as no-reply@example.com or Name <no-reply@example.com>")
        return value

    @field_validator("rabbitmq_url")
    @classmethod
    def _known_scheme(cls, value: SecretStr) -> SecretStr:
        parts = urlsplit(value.get_secret_value())
        if parts.scheme not in {"amqp", "amqps", "memory"}:
            raise ValueError("must start with amqp://, amqps:// or memory://")
        if parts.scheme != "memory" and not parts.hostname:
            raise ValueError("must name a host, as in amqp://user:password@rabbitmq.example.com:5672/vhost")
        _check_port(parts)
        return value

    @field_validator("smtp_fallback_urls")
    @classmethod
    def _relays(cls, value: SecretStr | None) -> SecretStr | None:
        for number, url in enumerate(_listed(value), 1):
            try:
                FallbackRelay.read(url)
            except ValueError as error:
                raise ValueError(f"entry {number} {error}") from None
        return value

    @field_validator("redis_url")
    @classmethod
    def _known_redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            parts = urlsplit(value.get_secret_value())
            if parts.scheme not in {"redis", "rediss", "unix"}:
                raise ValueError("must start with redis://, rediss:// or unix://")
            if not (parts.path if parts.scheme == "unix" else parts.hostname):
                raise ValueError("must name a host, as in redis://user:password@redis.example.com:6379/0")
            _check_port(parts)
            if parts.scheme != "unix" and (parts.fragment or parts.path.strip("/0123456789")):
                raise ValueError(f"must end with a database's number, as in /0; {_ESCAPE}")
            known = _REDIS_OPTIONS | (_REDIS_TLS_OPTIONS if parts.scheme == "rediss" else set[str]())
            if not {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)} <= known:
                raise ValueError(f"has an option other than {', '.join(sorted(known))}; {_ESCAPE}")
        return value

    @field_validator("recipient_limit", "domain_limit", "tenant_limit", "total_limit")
    @classmethod
    def _readable_limit(cls, value: str | None) -> str | None:
        read_limits("total", value or "1/1s")
        return value

    @model_validator(mode="after")
    def _base_below_cap(self) -> Self:
        if self.base_delay_ms > self.max_delay_ms:
            raise ValueError("BASE_DELAY_MS must not exceed MAX_DELAY_MS")
        return self

    @property
    def embedded(self) -> bool:
        """Whether the broker is the one inside this process."""
        return urlsplit(self.rabbitmq_url.get_secret_value()).scheme == "memory"

    @property
    def amqp_url(self) -> str:
        """The URL to connect to, password included; the embedded broker listens on loopback."""
        url = self.rabbitmq_url.get_secret_value()
        if not self.embedded:
            return url
        parts = urlsplit(url)
        return f"amqp://guest:guest@{parts.hostname or '127.0.0.1'}:{parts.port or EMBEDDED_BROKER_PORT}/"

    @property
    def masked_rabbitmq_url(self) -> str:
        """The broker's URL as it may be shown."""
        return _without_secrets(self.rabbitmq_url.get_secret_value())

    @property
    def masked_redis_url(self) -> str | None:
        """Redis's URL as it may be shown."""
        return _without_secrets(self.redis_url.get_secret_value()) if self.redis_url else None

    @property
    def tables_prefix(self) -> str:
        """Before every key in Redis: workers of one queue share their state, and all its keys lie in one slot."""
        return f"{{{self.rabbitmq_prefix}:{self.rabbitmq_queue_name}}}:"

    @property
    def limits(self) -> list[Limit]:
        """Every windowed limit, the narrowest first."""
        named: tuple[tuple[LimitName, str | None], ...] = (
            ("recipient", self.recipient_limit),
            ("domain", self.domain_limit),
            ("tenant", self.tenant_limit),
            ("total", self.total_limit),
        )
        return [limit for name, text in named if text for limit in read_limits(name, text)]

    @property
    def fallbacks(self) -> list["FallbackRelay"]:
        """The relays after the first, in order."""
        return [FallbackRelay.read(url) for url in _listed(self.smtp_fallback_urls)]

    @property
    def sender(self) -> tuple[str, str]:
        """The sender as (display name, address)."""
        return parseaddr(self.sender_email or "")

    @cached_property
    def hash_key(self) -> bytes:
        """Key for hashes of what must not be shown: the same for all workers of a deployment, known to nobody else."""
        # the passwords alone: two workers may reach one RabbitMQ by different hosts
        smtp_pass = self.smtp_pass.get_secret_value() if self.smtp_pass else ""
        secrets = (urlsplit(self.rabbitmq_url.get_secret_value()).password or "", smtp_pass)
        # slow, where there is anything to guess: a hashed code has a million values, so the passwords are all that
        # keeps it
        cost = 2 if self.hash_key_is_known else 2**14
        return scrypt("\0".join(secrets).encode(), salt=b"otp-stream", n=cost, r=8, p=1, dklen=32)

    @property
    def hash_key_is_known(self) -> bool:
        """Whether anybody can make the key of hashes, because no password is anybody's own."""
        broker = urlsplit(self.rabbitmq_url.get_secret_value())
        return broker.password in (None, "guest") and not (self.smtp_pass and self.smtp_pass.get_secret_value())

    @property
    def effective_log_level(self) -> str:
        """The level after the default for the environment."""
        return self.log_level or ("debug" if self.app_env == "development" else "info")

    def problems(self) -> list[str]:
        """Return what keeps this configuration from consuming, each with its cure; empty when nothing does."""
        found: list[str] = []
        if self.worker:
            required = REQUIRED + (REQUIRED_FOR_LOGIN if self.smtp_auth == "login" else ())
            for name in required:
                if getattr(self, name.lower()) is None:
                    cure = " (or set SMTP_AUTH=none)" if name in REQUIRED_FOR_LOGIN else ""
                    found.append(f"{name}: is required when WORKER=true{cure}")
        for name in ("smtp_ca_file", "templates_dir"):
            path: Path | None = getattr(self, name)
            if path is not None and not path.exists():
                found.append(f"{name.upper()}: {path} does not exist")
        if self.app_env == "production":
            found += self._unsafe_in_production()
        return found

    def _unsafe_in_production(self) -> list[str]:
        found: list[str] = []
        parts = urlsplit(self.rabbitmq_url.get_secret_value())
        if self.embedded:
            found.append("RABBITMQ_URL: memory:// keeps nothing and is refused in production; name a real broker")
        elif (parts.username or "guest") == "guest":
            found.append("RABBITMQ_URL: the user guest is refused in production; make a user of its own")
        if self.smtp_host and self.smtp_tls == "none" and not is_loopback(self.smtp_host):
            found.append(
                "SMTP_TLS: none is refused in production to a host that is not loopback; use starttls or implicit"
            )
        found += [
            f"SMTP_FALLBACK_URLS: tls=none is refused in production to {relay.host}, not loopback; leave it out"
            for relay in self.fallbacks
            if relay.tls == "none" and not is_loopback(relay.host)
        ]
        return found

    def shown(self) -> dict[str, object]:
        """Return the configuration as it may be logged: secrets masked."""
        shown: dict[str, object] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            shown[name] = "***" if isinstance(value, SecretStr) else str(value) if isinstance(value, Path) else value
        shown["rabbitmq_url"] = self.masked_rabbitmq_url
        shown["redis_url"] = self.masked_redis_url
        shown["smtp_fallback_urls"] = [f"{relay.host}:{relay.port}" for relay in self.fallbacks] or None
        shown["smtp_user"] = "***" if self.smtp_user else None
        return shown


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
        """Read a URL. Raises `ValueError` with what is wrong, never with the URL itself: it holds a password."""
        parts = urlsplit(url)
        if parts.scheme not in {"smtp", "smtps"} or not parts.hostname:
            raise ValueError("must look like smtp://user:password@host:587 or smtps://user:password@host:465")
        if parts.path.strip("/") or parts.fragment or parts.query not in {"", "tls=none", "tls=starttls"}:
            raise ValueError("may end in ?tls=none or ?tls=starttls, nothing else; in a password write / ? # @ as %..")
        if (parts.username is None) != (parts.password is None):
            raise ValueError("must have both a user and a password, or neither")
        implicit = parts.scheme == "smtps"
        if implicit and parts.query:
            raise ValueError("is smtps://, which has TLS from the first byte; leave ?tls= out")
        try:
            port = parts.port or (465 if implicit else 587)
        except ValueError:
            raise ValueError("has a port that is no number from 1 to 65535") from None
        tls = "implicit" if implicit else "none" if parts.query == "tls=none" else "starttls"
        user, password = (unquote(part) if part else None for part in (parts.username, parts.password))
        return cls(parts.hostname, port, tls, user, password)


def _listed(urls: SecretStr | None) -> list[str]:
    return [url.strip() for url in urls.get_secret_value().split(",") if url.strip()] if urls else []


def load(**values: Any) -> tuple[Settings, list[str]]:
    """Read the settings from the environment and `.env`, or from `values` by field name, which win.

    Returns them with every problem found. In place of what cannot be read stand the defaults: documents can still be
    made from them, and whoever wants to run must look at the problems first.
    """
    try:
        settings = Settings(**values)
    except ValidationError as error:
        found = error.errors(include_input=False)
        told = [_explain(item["loc"], item["msg"]) for item in found]
        settings, more = _without(found, values)
        return settings, [*told, *(it for it in more if it not in told)]
    return settings, settings.problems()


def _without(found: list[ErrorDetails], values: dict[str, Any]) -> tuple[Settings, list[str]]:
    """Return the settings with defaults in place of what cannot be read, and what else is wrong with them."""
    bad = {str(item["loc"][0]).lower() for item in found if item["loc"]}
    defaults = {name: field.default for name, field in Settings.model_fields.items() if name in bad}
    try:
        settings = Settings(**{**values, **defaults})
    except ValidationError as error:  # what is wrong lies between fields
        more = error.errors(include_input=False)
        return Settings.model_construct(), [_explain(item["loc"], item["msg"]) for item in more]
    return settings, settings.problems()


def is_loopback(host: str) -> bool:
    """Whether `host` can only be this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")


def _is_address(address: str) -> bool:
    local, at, domain = address.rpartition("@")
    return bool(local and at and domain) and not any(char.isspace() or char in "<>" for char in address)


def _check_port(parts: SplitResult) -> None:
    """Raise `ValueError` for a port that is no number, without what stands in its place: it may be a password's."""
    try:
        parts.port  # noqa: B018 - it is read when it is asked for
    except ValueError:
        raise ValueError(f"has a port that is no number from 1 to 65535; {_ESCAPE}") from None


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)._replace(fragment="")
    if "@" in parts.path and parts.scheme != "unix":  # a password with a slash in it looks like this
        parts = parts._replace(netloc=f"***@{parts.path.rpartition('@')[2].partition('/')[0]}", path="")
    if parts.password is None:
        return urlunsplit(parts._replace(query=""))
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username}:***@{host}", query=""))


def _explain(loc: tuple[int | str, ...], message: str) -> str:
    name = ".".join(map(str, loc)).upper().replace("APP_ENV", "NODE_ENV (or APP_ENV)")
    text = message.removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{name}: {text}" if name else text
