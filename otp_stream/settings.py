"""Every environment variable that the worker knows: one typed, frozen object, read once."""

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b, scrypt
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import (
    AliasChoices,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from .core.address import is_address, wire_address, wire_domain
from .core.admission import Limit, LimitName, read_limits
from .urls import ESCAPE, AmbiguousUrlError, read_url, without_secrets

ENV_FILE = Path(".env")
EMBEDDED_BROKER_PORT = 5673
_INTEGER = TypeAdapter(int)
REQUIRED = ("SENDER_EMAIL", "SMTP_HOST")
REQUIRED_FOR_LOGIN = ("SMTP_USER", "SMTP_PASS")
_DELAYS = {"base_delay_ms", "max_delay_ms"}
_RABBITMQ_EXAMPLE = "amqp://user:password@rabbitmq.example.com:5672/vhost"
_REDIS_EXAMPLE = "redis://user:password@redis.example.com:6379/0"
_SMTP_EXAMPLE = "smtp://user:password@host:587 or smtps://user:password@host:465"
_SHORTEST_KEY = 16
_LEAST_VARIETY = 6
"""Different characters of a key."""
_MAKE_KEY = "make one with: openssl rand -hex 32"
_REDIS_OPTIONS = {"db", "username", "password", "client_name"}
_REDIS_TLS_OPTIONS = {
    "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_certfile", "ssl_keyfile", "ssl_password", "ssl_cert_reqs",
    "ssl_check_hostname", "ssl_min_version", "ssl_ciphers",
}  # fmt: skip
_HOST_NAME = re.compile(r"(?!_)(?!-)([\w-]{1,63}\.)*[\w-]{0,62}[^\W_]\.?")
_SENDER = re.compile(r"([^\x00-\x1f\x7f<>]*)<([^<>]+)>|(\S+)")
_NO = {"0", "f", "false", "n", "no"}
_LONGEST_QUEUE_NAME = 200
"""Bytes: AMQP has 255 for the name of a queue, and ours are longer than the producers'."""
_FEW = 8
"""Different characters that a token of 16 has at least, unless it is made by hand."""
_WORDS = ("admin", "change", "example", "letmein", "otp-stream", "otpstream", "passw", "qwert", "secret", "token")
_PLACEHOLDERS = {
    "admin", "changeit", "changeme", "default", "example", "guest", "letmein", "pass", "passwd", "password",
    "placeholder", "rabbitmq", "redis", "replaceme", "root", "secret", "yourpassword",
}  # fmt: skip
_KEYBOARD = (
    "1234567890 qwertyuiop asdfghjkl zxcvbnm qwertzuiop yxcvbnm azertyuiop qsdfghjklm wxcvbn "
    "abcdefghijklmnopqrstuvwxyz "
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik9ol0p qazwsxedcrfvtgbyhnujm 1q2w3e4r5t6y7u8i9o0p q1w2e3r4t5y6u7i8o9p0"
)
_WALKS = f"{_KEYBOARD} {_KEYBOARD[::-1]}"
_SHORTEST_PATTERN = 6
"""Characters of a password that is checked for a pattern."""
_LEVELS = {
    "warn": "warning", "http": "info", "verbose": "debug", "silly": "debug", "trace": "debug", "fatal": "critical",
}  # fmt: skip


class Settings(BaseSettings):
    """Settings of a deployment. The environment variables are the field names in capitals."""

    model_config = SettingsConfigDict(
        env_file=ENV_FILE,
        env_file_encoding="utf-8-sig",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        populate_by_name=True,
    )

    worker: bool = Field(default=False, description="`true` consumes jobs and serves HTTP; `false` only serves HTTP.")
    app_env: Literal["development", "staging", "production"] = Field(
        default="development",
        validation_alias=AliasChoices("APP_ENV", "NODE_ENV"),
        description="`development`, `staging` or `production`. `APP_ENV` is the same setting and takes precedence.",
    )
    rabbitmq_url: SecretStr = Field(
        default=SecretStr("amqp://localhost:5672"),
        description="URL of RabbitMQ: `amqp://`, `amqps://` for TLS, or `memory://` for the embedded broker.",
    )
    rabbitmq_queue_name: str = Field(
        default="service_send_otp",
        min_length=1,
        max_length=_LONGEST_QUEUE_NAME,
        description="The jobs queue. The worker uses an existing one as it is, and declares a missing one.",
    )
    max_retries: int = Field(default=3, ge=0, le=100, description="Maximum number of retries after the first attempt.")
    base_delay_ms: int = Field(default=1000, ge=1, le=86_400_000, description="Delay of the first retry, milliseconds.")
    max_delay_ms: int = Field(default=30000, ge=1, le=86_400_000, description="Maximum delay of a retry, milliseconds.")
    retry_greylisted: bool = Field(
        default=True,
        description="Retry a greylisted mail beyond `MAX_RETRIES`: every `MAX_DELAY_MS` until its code expires.",
    )
    prefetch_count: int = Field(
        default=1,
        ge=1,
        le=65535,
        description="Prefetch: maximum number of unacknowledged jobs of each queue in a worker. 200 suits most.",
    )
    heartbeat_interval_ms: int = Field(
        default=30000, ge=100, description="Interval of the health monitor's checks and log lines, milliseconds."
    )
    sender_email: str | None = Field(
        default=None, description="Sender of the e-mails: `a@b.c` or `Name <a@b.c>`. Required to consume."
    )
    smtp_host: str | None = Field(
        default=None, description="Host name or IP address of the mail relay. Required to consume."
    )
    smtp_port: int = Field(default=587, ge=1, le=65535, description="Port of the relay.")
    smtp_user: str | None = Field(
        default=None, description="User name at the relay. Required to consume unless `SMTP_AUTH=none`."
    )
    smtp_pass: SecretStr | None = Field(
        default=None, description="Password at the relay. Required to consume unless `SMTP_AUTH=none`."
    )
    log_level: Literal["debug", "info", "warning", "error", "critical"] | None = Field(
        default=None,
        description="`debug`, `info`, `warning`, `error` or `critical`. When unset: `info`, in development `debug`.",
    )

    smtp_tls: Literal["starttls", "implicit", "none"] = Field(
        default="starttls",
        description="`starttls` (required, never opportunistic), `implicit` (the default on port 465) or `none`.",
    )
    smtp_auth: Literal["login", "none"] = Field(
        default="login", description="`login` uses `SMTP_USER` and `SMTP_PASS`; `none` does not authenticate."
    )
    smtp_ehlo_name: str | None = Field(
        default=None,
        pattern=r"^(\[[0-9A-Fa-f.:IPv]+\]|[A-Za-z0-9]([A-Za-z0-9.-]{0,253}[A-Za-z0-9])?)$",
        description="Name of this host in EHLO. When unset: the domain of `SENDER_EMAIL`.",
    )
    smtp_ca_file: Path | None = Field(
        default=None, description="PEM file of the relay's CA. When unset: the system's CAs."
    )
    smtp_pool_size: int = Field(
        default=20, ge=1, le=1000, description="Connections to the relay, which is also the number of concurrent sends."
    )
    smtp_rate_per_second: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Maximum mails per second to each relay, such as its quota; other jobs wait. When unset: no limit.",
    )
    smtp_fallback_urls: SecretStr | None = Field(
        default=None,
        description="Relays to use, in order, while the first one takes no mail: a comma list of "
        "`smtp://user:pass@host:port` (STARTTLS; `?tls=none` on loopback) and `smtps://…` (implicit TLS).",
    )
    smtp_uncertain: Literal["resend", "dead"] = Field(
        default="resend",
        description="What to do when the connection is lost after the final dot, before the relay's reply: `resend` "
        "the mail once, or dead-letter the job (`dead`).",
    )
    redis_url: SecretStr | None = Field(
        default=None,
        description="Redis 5 or newer, or Valkey, for state that all workers share: `redis://`, `rediss://` for TLS, "
        "or `unix://`. When unset: each worker keeps its own state in memory.",
    )
    redis_namespace: str | None = Field(
        default=None,
        description="Workers with the same value share state. When unset: host and virtual host of `RABBITMQ_URL`. "
        "Set it if workers reach one RabbitMQ by different host names.",
    )
    state_fail: Literal["open", "closed"] = Field(
        default="open",
        description="While Redis is unavailable: `open` sends codes with the state of this worker alone, `closed` "
        "lets jobs wait.",
    )
    sent_ttl_hours: float = Field(
        default=24,
        gt=0,
        le=24 * 31,
        description="How long sent records are kept: a copy of the job that arrives within this time is not sent.",
    )
    sent_memory_limit: int = Field(
        default=500_000,
        ge=1_000,
        le=50_000_000,
        description="Maximum number of sent records in a worker's memory, about 170 bytes each. The oldest are evicted "
        "first.",
    )
    tables_memory_limit: int = Field(
        default=150_000,
        ge=1_000,
        le=50_000_000,
        description="Maximum number of entries in a worker's memory for limits, newest codes and jobs that were tried, "
        "about 350 bytes each. The oldest of the largest table are evicted first; jobs in flight are kept, and "
        "throttled keys as long as possible.",
    )
    supersede: Literal["off", "latest"] = Field(
        default="off",
        description="`latest`: a job that is still waiting when a newer code for the same recipient and purpose "
        "arrives ends as `superseded`. `off`: every code is sent.",
    )
    recipient_limit: str | None = Field(
        default=None,
        description="Maximum number of jobs for one recipient in any period, such as `5/10m` (s, m, h or d) or "
        "`5/10m,20/1d`. More end as `throttled`.",
    )
    domain_limit: str | None = Field(default=None, description="The same for all recipients of one domain.")
    tenant_limit: str | None = Field(default=None, description="The same for all jobs with one `metadata.tenant`.")
    total_limit: str | None = Field(default=None, description="The same for all jobs.")
    otp_expiry_minutes: float = Field(
        default=15, gt=0, le=525_600, description="How long a code is valid if its job has no `expiryMinutes`, minutes."
    )
    templates_dir: Path | None = Field(
        default=None, description="Folder with your templates. Each overrides the built-in one of the same name."
    )
    default_locale: str = Field(
        default="en",
        pattern=r"^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*$",
        description="Language of the e-mail if a job has no `locale`.",
    )
    events: bool = Field(
        default=True,
        description="Publish an event for each outcome of a job. `otp-stream send`, `livecheck` and `load` need them.",
    )
    http_token: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Bearer token of the web pages, 16 ASCII characters or more. Required to see dead letters by "
        "cause, to replay them, and to request a probe of a relay.",
    )
    http_hosts: str | None = Field(
        default=None,
        description="Public host names of the web pages, for example behind a proxy: a comma list, or `*` for any. IP "
        "addresses and internal names (`worker`, `.local`, `.internal`, `.svc`) are always accepted.",
    )
    secret_key: SecretStr | None = Field(
        default=None,
        description="Key of hashes and of the MAC in `x-otp-*` headers: 16 random characters or more, the same for all "
        "workers and commands of a deployment. Required in production; derived from the passwords elsewhere when "
        "unset. To change it, set a comma list: the first key signs, and signatures and records of the others are "
        "still accepted.",
    )
    shutdown_grace_ms: int = Field(
        default=25000, ge=0, description="How long sends in progress may take after SIGTERM, milliseconds."
    )
    rabbitmq_prefix: str = Field(
        default="otp",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="Prefix of the worker's own queues and exchanges. Two deployments can share a virtual host if "
        "both this and `RABBITMQ_QUEUE_NAME` differ.",
    )

    @model_validator(mode="before")
    @classmethod
    def _port_465_means_implicit_tls(cls, data: Any) -> Any:
        # RFC 8314 §7.3 gives 465 to implicit TLS, and so did the worker that this one replaces.
        keys = {key.lower(): key for key in data}
        if "smtp_tls" not in keys and "smtp_port" in keys:
            with suppress(ValidationError):  # the field's own check reports it
                # 0465 and 465.0 are the same port
                if _INTEGER.validate_python(_unquoted(str(data[keys["smtp_port"]]))) == 465:
                    return {**data, "smtp_tls": "implicit"}
        return data

    @field_validator("log_level", mode="before")
    @classmethod
    def _accept_node_levels(cls, value: object) -> object:
        return _LEVELS.get(value.lower(), value.lower()) if isinstance(value, str) else value

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: object, info: ValidationInfo) -> object:
        # Secrets read from files end with a line break; `docker --env-file` and `kubectl --from-env-file` keep quotes.
        if not isinstance(value, str) or info.field_name is None:
            return value
        text = _unquoted(value)
        if not text and info.field_name != "app_env":  # a blank one must not turn production into development
            return cls.model_fields[info.field_name].default
        if info.field_name != "sender_email" and re.search(r"[\x00-\x1f\x7f]", text):
            raise ValueError("contains a line break or another control character; set one value only")
        return text

    @field_validator("smtp_port", mode="before")
    @classmethod
    def _a_port_alone(cls, value: object) -> object:
        if isinstance(value, str) and "://" in value:
            raise ValueError(
                "is an address, as Kubernetes sets it for a Service named smtp: set SMTP_PORT to a number, or "
                "enableServiceLinks: false in the pod"
            )
        return value

    @field_validator("http_token")
    @classmethod
    def _a_token_for_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        # clients disagree about the encoding of other characters in a header, or refuse them
        if value is not None and not value.get_secret_value().isascii():
            raise ValueError("must have ASCII characters only; make a random one: openssl rand -hex 32")
        return value

    @field_validator("smtp_host")
    @classmethod
    def _a_host_alone(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.isascii():
            # what the standard library makes of other characters is IDNA 2003, and so another host
            value = wire_domain(value)
        bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
        if _is_ip(bare):
            return bare
        name, colon, port = value.rpartition(":")
        if colon and port.isdecimal() and _HOST_NAME.fullmatch(name.strip("[]")):
            raise ValueError(f"must be a host without a port: set SMTP_PORT={int(port)}")
        if not _HOST_NAME.fullmatch(value):
            raise ValueError("must be a host without scheme, user, port or path, such as smtp.example.com")
        return value

    @field_validator("sender_email")
    @classmethod
    def _one_sender(cls, value: str | None) -> str | None:
        if value is not None:
            _sender(value)
        return value

    @field_validator("rabbitmq_url")
    @classmethod
    def _known_scheme(cls, value: SecretStr) -> SecretStr:
        parts = read_url(value.get_secret_value(), {"amqp", "amqps", "memory"}, _RABBITMQ_EXAMPLE)
        if parts.scheme == "memory" and not is_loopback(parts.hostname or "localhost"):
            raise ValueError(
                "memory:// accepts any user and password, so it listens on loopback only: leave the host out"
            )
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

    @field_validator("secret_key")
    @classmethod
    def _long_keys(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        keys = _listed(value)
        if not keys or min(map(len, keys)) < _SHORTEST_KEY:
            raise ValueError(f"must have {_SHORTEST_KEY} characters or more, in each key of a comma list; {_MAKE_KEY}")
        if min(len(set(key)) for key in keys) < _LEAST_VARIETY:
            raise ValueError(f"can be guessed; {_MAKE_KEY}")
        return value

    @field_validator("rabbitmq_queue_name")
    @classmethod
    def _short_enough(cls, value: str) -> str:
        if len(value.encode()) > _LONGEST_QUEUE_NAME:
            raise ValueError(f"must have {_LONGEST_QUEUE_NAME} bytes or fewer in UTF-8")
        return value

    @field_validator("redis_url")
    @classmethod
    def _known_redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                parts = read_url(value.get_secret_value(), {"redis", "rediss", "unix"}, _REDIS_EXAMPLE)
            except AmbiguousUrlError:
                raise ValueError(f"must end with a database number, as in {_REDIS_EXAMPLE}; {ESCAPE}") from None
            if parts.scheme != "unix" and parts.path.strip("/0123456789"):
                raise ValueError(f"must end with a database number, as in /0; {ESCAPE}")
            options = dict(parse_qsl(parts.query, keep_blank_values=True))
            known = _REDIS_OPTIONS | (_REDIS_TLS_OPTIONS if parts.scheme == "rediss" else set[str]())
            if not options.keys() <= known:
                raise ValueError(f"has an option other than {', '.join(sorted(known))}; {ESCAPE}")
            if not re.fullmatch("[0-9]{1,9}", options.get("db", "0")):
                raise ValueError("has a db that is not a database number, as in ?db=1")
            if options.get("ssl_cert_reqs", "required") not in {"none", "optional", "required"}:
                raise ValueError("has an ssl_cert_reqs other than none, optional, required")
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
        return without_secrets(self.rabbitmq_url.get_secret_value())

    @property
    def masked_redis_url(self) -> str | None:
        """Redis's URL as it may be shown."""
        return without_secrets(self.redis_url.get_secret_value()) if self.redis_url else None

    @property
    def tables_prefix(self) -> str:
        """Before every key in Redis: workers of one queue of one broker share their state, all keys lie in one slot."""
        return f"{self.tables_names}{blake2b(self._namespace.encode(), digest_size=4).hexdigest()}:"

    @property
    def tables_names(self) -> str:
        """Before the keys of every deployment with these names; of earlier versions, before every key."""
        return f"{{{self.rabbitmq_prefix}:{self.rabbitmq_queue_name}}}:"

    @property
    def tables_broker(self) -> str:
        """The RabbitMQ whose workers share their state, for messages that distinguish deployments with equal names."""
        return f"REDIS_NAMESPACE={self.redis_namespace}" if self.redis_namespace else self._namespace

    @property
    def _namespace(self) -> str:
        if self.redis_namespace:
            return self.redis_namespace
        parts = urlsplit(self.amqp_url)
        host = (parts.hostname or "").rstrip(".")
        # amqp and amqps of one broker have two ports
        port = f":{parts.port}" if parts.port not in {None, 5671, 5672} else ""
        return f"{'localhost' if is_loopback(host) else host}{port}/{unquote(parts.path[1:]) or '/'}"

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
    def own_hosts(self) -> frozenset[str]:
        """The host names that HTTP requests may be for, beside those that cannot be anyone else's."""
        named = [name.strip().lower().removesuffix(".") for name in (self.http_hosts or "").split(",")]
        return frozenset({*filter(None, named), socket.gethostname().lower()})

    @property
    def sender(self) -> tuple[str, str]:
        """The sender as (display name, address), the address as it goes over the wire."""
        return _sender(self.sender_email) if self.sender_email else ("", "")

    @property
    def hash_key(self) -> bytes:
        """Key of hashes and MACs: the same for all workers of a deployment, and secret."""
        return self._hash_keys[0]

    @property
    def old_hash_keys(self) -> tuple[bytes, ...]:
        """Keys whose MACs and records still count: of workers before, or after, a change of `SECRET_KEY`."""
        return self._hash_keys[1:]

    @cached_property
    def _hash_keys(self) -> tuple[bytes, ...]:
        keys = _listed(self.secret_key)
        return tuple(_stretched(key, 2**14) for key in keys) or (self._derived_key,)

    @property
    def _derived_key(self) -> bytes:
        # the passwords alone: two workers may reach one RabbitMQ by different hosts
        smtp_pass = self.smtp_pass.get_secret_value() if self.smtp_pass else ""
        secrets = (urlsplit(self.rabbitmq_url.get_secret_value()).password or "", smtp_pass)
        # slow, where there is anything to guess: a hashed code has a million values, so the passwords are all that
        # keeps it
        cost = 2 if self.hash_key_is_known else 2**14
        return _stretched("\0".join(secrets), cost)

    @property
    def hash_key_is_known(self) -> bool:
        """Whether anyone can derive the key of hashes, because no secret is set."""
        if self.secret_key:
            return False
        broker = urlsplit(self.rabbitmq_url.get_secret_value())
        return broker.password in (None, "guest") and not (self.smtp_pass and self.smtp_pass.get_secret_value())

    @property
    def effective_log_level(self) -> str:
        """The level after the default for the environment."""
        return self.log_level or ("debug" if self.app_env == "development" else "info")

    def problems(self) -> list[str]:
        """Return the problems that prevent a start, each with its fix."""
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
        found = [f"{text}; this is refused in production" for text in self._never_right()]
        if self.secret_key is None:
            found.append(f"SECRET_KEY: is required in production; {_MAKE_KEY}")
        parts = urlsplit(self.rabbitmq_url.get_secret_value())
        if self.embedded:
            found.append("RABBITMQ_URL: memory:// loses all jobs at a stop; it is refused in production")
        elif (parts.username or "guest") == "guest":
            found.append("RABBITMQ_URL: the user guest is refused in production; create a user for otp-stream")
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

    def _never_right(self) -> list[str]:
        """Return settings that are unsafe in every network, each with its fix."""
        found: list[str] = []
        for name, url in self._servers().items():
            options = {key: value.lower() for key, value in parse_qsl(urlsplit(url).query)}
            if urlsplit(url).scheme == "amqps" and options.get("no_verify_ssl", "0") != "0":
                found.append(
                    f"{name}: no_verify_ssl accepts any certificate, also an attacker's; use cafile=/path/ca.pem"
                )
            if options.get("ssl_cert_reqs", "required") != "required" or options.get("ssl_check_hostname") in _NO:
                found.append(
                    f"{name}: ssl_cert_reqs and ssl_check_hostname accept any certificate, also an attacker's; "
                    "use ssl_ca_certs=/path/ca.pem"
                )
            user, password = (unquote(it or "") for it in (urlsplit(url).username, urlsplit(url).password))
            given = dict(parse_qsl(urlsplit(url).query))
            logins = ((user, password), (given.get("username", user), given.get("password", "")))
            if any(is_placeholder(password, user) for user, password in logins):
                found.append(f"{name}: its password is easy to guess; use a random one")
        if self.smtp_pass and is_placeholder(self.smtp_pass.get_secret_value(), self.smtp_user or ""):
            found.append("SMTP_PASS: is a placeholder or easy to guess; set the relay's password")
        found += [
            f"SMTP_FALLBACK_URLS: the password of entry {number} is easy to guess; set the relay's password"
            for number, relay in enumerate(self.fallbacks, 1)
            if is_placeholder(relay.password or "", relay.user or "")
        ]
        if self.http_token and is_guessable(self.http_token.get_secret_value()):
            found.append("HTTP_TOKEN: is guessable; make a random one: openssl rand -hex 32")
        if any(map(is_guessable, _listed(self.secret_key))):
            found.append(f"SECRET_KEY: is guessable; {_MAKE_KEY}")
        return found

    def _servers(self) -> dict[str, str]:
        """Return the URL of each server on another machine, by setting."""
        urls = {"RABBITMQ_URL": self.rabbitmq_url, "REDIS_URL": self.redis_url}
        return {
            name: url.get_secret_value()
            for name, url in urls.items()
            if url and not is_loopback(urlsplit(url.get_secret_value()).hostname or "localhost")
        }

    def warnings(self) -> list[str]:
        """Return unsafe settings that are allowed, each with its fix; for the log at start and `otp-stream check`."""
        found = self._never_right() if self.app_env != "production" else []
        if self.app_env != "development":
            found += [
                f"{name}: {scheme}:// sends passwords and codes unencrypted to another host; use {scheme}s://"
                for name, url in self._servers().items()
                if (scheme := urlsplit(url).scheme) in {"amqp", "redis"}
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
        try:
            parts = read_url(url, {"smtp", "smtps"}, _SMTP_EXAMPLE)
        except ValueError as error:
            raise ValueError(f"must look like {_SMTP_EXAMPLE}: it {error}") from None
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


def _stretched(secret: str, cost: int) -> bytes:
    return scrypt(secret.encode(errors="surrogateescape"), salt=b"otp-stream", n=cost, r=8, p=1, dklen=32)


def _listed(urls: SecretStr | None) -> list[str]:
    return [url.strip() for url in urls.get_secret_value().split(",") if url.strip()] if urls else []


def load(**values: Any) -> tuple[Settings, list[str]]:
    """Read the settings from the environment and `.env`, or from `values` by field name, which win.

    Returns them with every problem found. Values that cannot be read are replaced by the defaults, so that documents
    can still be generated; check the problems before you start anything else.
    """
    told = [*_env_file_problem(), *_tracing_problems(os.environ)]
    if any(it.startswith(f"{ENV_FILE}:") for it in told):
        values = {"_env_file": None, **values}
    try:
        settings = Settings(**values)
    except ValidationError as error:
        found = error.errors(include_input=False)
        told += [_explain(item) for item in found]
        settings, more = _without(found, values)
        return settings, told + more
    return settings, [*told, *settings.problems()]


def _env_file_problem() -> list[str]:
    """Return why `.env` cannot be read; other encodings would be misread or raise an exception."""
    content = b""
    try:
        content = ENV_FILE.read_bytes() if ENV_FILE.is_file() else b""
        if "\0" in content.decode("utf-8-sig"):  # UTF-16 without its mark
            return [f"{ENV_FILE}: is not encoded as UTF-8; save it as UTF-8"]
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        return [f"{ENV_FILE}: line {line} is not encoded as UTF-8; save the file as UTF-8"]
    except OSError as error:
        return [f"{ENV_FILE}: cannot be read ({error.strerror})"]
    return []


def _tracing_problems(environ: Mapping[str, str]) -> list[str]:
    """Return what is wrong with OpenTelemetry's endpoints, which are no settings of ours."""
    found: list[str] = []
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        if url := environ.get(name, "").strip():
            try:
                read_url(url, {"http", "https"}, "http://collector.example.com:4318")
            except ValueError as error:
                found.append(f"{name}: {error}")
    return found


def _without(found: list[ErrorDetails], values: dict[str, Any]) -> tuple[Settings, list[str]]:
    """Return the settings with defaults in place of what cannot be read, and what else is wrong with them."""
    bad = {str(item["loc"][0]).lower() for item in found if item["loc"]}
    if not _DELAYS.isdisjoint(bad):
        bad |= _DELAYS  # one of them cannot be compared with the default of the other
    defaults = {name: field.default for name, field in Settings.model_fields.items() if name in bad}
    try:
        settings = Settings(**{**values, **defaults})
    except ValidationError as error:  # what is wrong lies between fields
        more = error.errors(include_input=False)
        explained = [_explain(item) for item in more] if more != found else []
        return Settings.model_construct(), explained
    # what is said of a default is no news of a setting that is named already
    bad |= {name.lower() for name in REQUIRED_FOR_LOGIN} if "smtp_auth" in bad else set()
    return settings, [it for it in settings.problems() if it.partition(":")[0].lower() not in bad]


def is_loopback(host: str) -> bool:
    """Whether `host` can only be this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")


def _sender(text: str) -> tuple[str, str]:
    """Return (display name, address as it goes over the wire) of `Name <a@b.c>` or `a@b.c`. Raises `ValueError`.

    The standard library takes the first of several addresses, and makes other domains of what stands around one.
    """
    found = _SENDER.fullmatch(text)
    name, address = (found[1] or "", found[2] or found[3]) if found else ("", "")
    wire = wire_address(address) if is_address(address) else ""
    if not is_address(wire):
        raise ValueError("must be one address such as no-reply@example.com or Name <no-reply@example.com>")
    return re.sub(r"\\(.)", r"\1", _unquoted(name)), wire


def is_guessable(token: str) -> bool:
    """Whether a token is a word, a sequence or a repetition instead of random characters."""
    text = token.lower()
    if _is_pattern(text):
        return True
    steps = {ord(after) - ord(before) for before, after in pairwise(text)}
    return len(set(text)) < _FEW or len(steps) < _FEW // 2 or any(word in text for word in _WORDS)


def is_placeholder(password: str, user: str) -> bool:
    """Whether a password is one that documentation has, its user's name, or a pattern. A short one may be random."""
    text = password.lower()
    word = re.sub(r"[\W_]", "", text)
    return bool(
        word.rstrip("0123456789") in _PLACEHOLDERS
        or (text and text == user.lower())
        or (len(text) >= _SHORTEST_PATTERN and _is_pattern(text))
    )


def _is_pattern(text: str) -> bool:
    """Whether a text repeats itself from beginning to end, or is mostly made of walks over a keyboard."""
    if any(text[size:] == text[:-size] for size in range(1, len(text) // 2 + 1)):
        return True
    walked = {at + more for at in range(len(text) - 3) if text[at : at + 4] in _WALKS for more in range(4)}
    return 2 * len(walked) >= len(text)


def _unquoted(value: str) -> str:
    text = value.strip().strip("\ufeff")
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


_PLAIN = {
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "bool_parsing": "must be true or false",
    "too_short": "must have {min_length} characters or more",
    "string_too_short": "must have {min_length} characters or more",
    "string_too_long": "must have {max_length} characters or fewer",
    "string_unicode": "must be text in UTF-8",
    "string_pattern_mismatch": "has a character that is not allowed; the pattern is {pattern}",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be {ge:g} or more",
    "less_than_equal": "must be {le:g} or less",
    "finite_number": "must be a number",
}
"""What pydantic finds, in an operator's words."""


def _explain(item: ErrorDetails) -> str:
    name = ".".join(map(str, item["loc"])).upper().replace("APP_ENV", "NODE_ENV (or APP_ENV)")
    plain = _PLAIN.get(item["type"], "").format(**item.get("ctx", {}))
    text = plain or item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{name}: {text}" if name else text
