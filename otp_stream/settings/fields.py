"""Every environment variable that the worker knows, with its type, default, bounds and description."""

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AliasChoices, Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from . import validators
from .validators import LONGEST_QUEUE_NAME, unquoted

ENV_FILE = Path(".env")


class Fields(BaseSettings):
    """Every setting. The environment variables are the field names in capitals."""

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
        max_length=LONGEST_QUEUE_NAME,
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
        description="Prefetch: maximum number of unacknowledged jobs that a worker takes from each queue. 200 suits "
        "most deployments.",
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
        default=None,
        description="User name at the relay. Required to consume unless `SMTP_AUTH` is `none` or `external`.",
    )
    smtp_pass: SecretStr | None = Field(
        default=None, description="Password at the relay. Required to consume with a login by password."
    )
    log_level: Literal["debug", "info", "warning", "error", "critical"] | None = Field(
        default=None,
        description="`debug`, `info`, `warning`, `error` or `critical`. When unset: `debug` in development, otherwise "
        "`info`.",
    )

    smtp_tls: Literal["starttls", "implicit", "none"] = Field(
        default="starttls",
        description="`starttls` (required, never opportunistic), `implicit` (the default on port 465) or `none`.",
    )
    smtp_auth: Literal["login", "scram-sha-256", "plain", "cram-md5", "oauth2", "external", "none"] = Field(
        default="login",
        description="`login` uses `SMTP_USER` and `SMTP_PASS` by the best mechanism that the relay offers; "
        "`scram-sha-256`, `plain` and `cram-md5` insist on one; `oauth2` uses `SMTP_USER` and an access token; "
        "`external` uses the client certificate; `none` does not authenticate.",
    )
    smtp_cert_file: Path | None = Field(
        default=None, description="PEM file of our client certificate, for relays that require one."
    )
    smtp_key_file: Path | None = Field(
        default=None, description="PEM file of its key, not encrypted. When unset: the key is in `SMTP_CERT_FILE`."
    )
    smtp_oauth_token_url: str | None = Field(
        default=None, description="URL of the token server that grants access tokens for `SMTP_AUTH=oauth2`."
    )
    smtp_oauth_client_id: str | None = Field(default=None, description="This client's id at the token server.")
    smtp_oauth_client_secret: SecretStr | None = Field(
        default=None, description="This client's secret at the token server."
    )
    smtp_oauth_scope: str | None = Field(
        default=None,
        description="Scope of the access tokens, such as `https://outlook.office365.com/.default` or "
        "`https://mail.google.com/`.",
    )
    smtp_oauth_refresh_token: SecretStr | None = Field(
        default=None, description="Refresh token, for access as a user. When unset: access as the client itself."
    )
    smtp_oauth_key_file: Path | None = Field(
        default=None,
        description="JSON file with the key of a Google service account, which acts for `SMTP_USER`.",
    )
    smtp_oauth_token_command: SecretStr | None = Field(
        default=None,
        description="Command, run without a shell, that prints an access token, or JSON with `access_token` and "
        "`expires_in`. Used instead of a token server.",
    )
    smtp_oauth_token_file: Path | None = Field(
        default=None,
        description="File that another program keeps filled with a valid access token, or with that JSON. Used "
        "instead of a token server.",
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
        default=20,
        ge=1,
        le=1000,
        description="Maximum number of connections to each relay, and so of concurrent sends.",
    )
    smtp_rate_per_second: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Maximum mails per second to each relay: your provider's quota. Other jobs wait. When unset: no "
        "limit.",
    )
    smtp_fallback_urls: SecretStr | None = Field(
        default=None,
        description="Relays to use, in order, while the first one takes no mail: a comma list of "
        "`smtp://user:pass@host:port` (STARTTLS; `?tls=none` on loopback) and `smtps://…` (implicit TLS).",
    )
    smtp_chunking: Literal["auto", "off"] = Field(
        default="auto",
        description="`auto`: a relay that offers CHUNKING gets each mail in one packet. `off`: it gets DATA.",
    )
    smtp_uncertain: Literal["resend", "dead"] = Field(
        default="resend",
        description="What to do when the connection is lost after the content, before the relay's reply: `resend` the "
        "mail once, or dead-letter the job (`dead`).",
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
        description="How long sent records are kept, hours. A copy of a sent job that arrives within this time is not "
        "sent.",
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
        "about 350 bytes each. The oldest of the largest table are evicted first; jobs in flight are always kept, and "
        "throttled keys for as long as possible.",
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
        default=None, description="Folder with your templates. Each file overrides the built-in one of the same name."
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
    def _use_implicit_tls_on_port_465(cls, data: Any) -> Any:
        return validators.implicit_tls(data)

    # Of the validators with mode="before", the last one defined runs first.
    _check_log_level = field_validator("log_level", mode="before")(validators.log_level)

    @field_validator("*", mode="before")
    @classmethod
    def _clean(cls, value: object, info: ValidationInfo) -> object:
        # Secrets read from files end with a line break; `docker --env-file` and `kubectl --from-env-file` keep quotes.
        if not isinstance(value, str) or info.field_name is None:
            return value
        text = unquoted(value)
        if info.field_name == "smtp_oauth_token_command" and set("\"'") & set(text):
            text = value.strip()  # the quotes belong to its words
        if not text and info.field_name != "app_env":  # a blank one must not turn production into development
            return cls.model_fields[info.field_name].default
        if info.field_name != "sender_email" and re.search(r"[\x00-\x1f\x7f]", text):
            raise ValueError("contains a line break or another control character; set one value only")
        return text

    _check_smtp_port = field_validator("smtp_port", mode="before")(validators.smtp_port)
    _check_http_token = field_validator("http_token")(validators.http_token)
    _check_smtp_host = field_validator("smtp_host")(validators.smtp_host)
    _check_sender_email = field_validator("sender_email")(validators.sender_email)
    _check_rabbitmq_url = field_validator("rabbitmq_url")(validators.rabbitmq_url)
    _check_smtp_oauth_token_url = field_validator("smtp_oauth_token_url")(validators.smtp_oauth_token_url)
    _check_smtp_oauth_token_command = field_validator("smtp_oauth_token_command")(validators.smtp_oauth_token_command)
    _check_smtp_fallback_urls = field_validator("smtp_fallback_urls")(validators.smtp_fallback_urls)
    _check_secret_key = field_validator("secret_key")(validators.secret_key)
    _check_rabbitmq_queue_name = field_validator("rabbitmq_queue_name")(validators.rabbitmq_queue_name)
    _check_redis_url = field_validator("redis_url")(validators.redis_url)
    _check_limits = field_validator("recipient_limit", "domain_limit", "tenant_limit", "total_limit")(validators.limit)

    @model_validator(mode="after")
    def _check_delays(self) -> Self:
        if self.base_delay_ms > self.max_delay_ms:
            raise ValueError("BASE_DELAY_MS must not exceed MAX_DELAY_MS")
        return self
