"""The settings that the worker before this one had, and those of its relays."""

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from .validators import LONGEST_QUEUE_NAME

ENV_FILE = Path(".env")


class BaseFields(BaseSettings):
    """Fields without validators, which `Fields` adds."""

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

    log_format: Literal["json", "text", "ecs"] | None = Field(
        default=None,
        description="`json`, `text` (readable) or `ecs` (JSON by Elastic Common Schema). When unset: `text` in "
        "development, otherwise `json`.",
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
    envelope_sender: str | None = Field(
        default=None,
        description="Address in MAIL FROM, to which relays return mail that cannot be delivered. When unset: that of "
        "`SENDER_EMAIL`.",
    )
    reply_to: str | None = Field(
        default=None,
        description="Where answers to the e-mails go: `a@b.c` or `Name <a@b.c>`. When unset: to the sender.",
    )
    tenants_file: Path | None = Field(
        default=None,
        description="TOML file with the senders, relays, templates and limits of tenants. Read again when it changes.",
    )
