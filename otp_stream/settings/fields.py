"""Every environment variable that the worker knows, with its type, default, bounds and description."""

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator

from . import intake_validators, validators
from .brand_fields import BrandFields
from .validators import unquoted

_CHECKED_BY_THEMSELVES = {"sender_email", "brand_name", "brand_support", "brand_footer"}
"""Fields whose own validators refuse control characters."""


class Fields(BrandFields):
    """Every setting. The environment variables are the field names in capitals."""

    dead_letter_retention: str = Field(
        default="7d",
        description="How long dead letters are kept, such as `12h` or `7d` (s, m, h or d). Older ones are deleted. "
        "`off`: until you delete them.",
    )
    dead_letter_max: int | None = Field(
        default=None,
        ge=1,
        description="Maximum number of dead letters. Beyond it, the oldest are deleted. When unset: no maximum.",
    )
    dead_letter_codes: Literal["erase", "keep"] = Field(
        default="erase",
        description="What happens to an expired code in a dead letter. `erase`: it is removed, usually within five "
        "minutes, and the job cannot be replayed. `keep`: it stays, so that `otp-stream dead replay --fresh-expiry` "
        "can send it.",
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
        description="How long sent records are kept at least, hours; they are also kept while the code is valid. A "
        "copy of a sent job that arrives within this time is not sent.",
    )
    sent_memory_limit: int = Field(
        default=500_000,
        ge=1_000,
        le=50_000_000,
        description="Maximum number of sent records in a worker's memory, about 170 bytes each (250 if the code is "
        "valid longer than `SENT_TTL_HOURS`). The oldest are evicted first.",
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
        description="Token of the web pages, 16 ASCII characters or more, with the name `token` and the role "
        "`operator`. A token is required to see dead letters by cause, to replay them, and to probe a relay.",
    )
    http_tokens_file: Path | None = Field(
        default=None,
        description="TOML file with tokens of the web pages and the intake, each with a name and a role: `viewer`, "
        "`operator`, or `producer` for the intake. Read again when it changes. Requires `SECRET_KEY`.",
    )
    intake_token: SecretStr | None = Field(
        default=None,
        description="Turns on the HTTP intake: the token with which programs send jobs to `/v1/jobs`, 16 ASCII "
        "characters or more. To change it, set a comma list: each is accepted. Tokens for each program or tenant: "
        "`HTTP_TOKENS_FILE`, with the role `producer`.",
    )
    intake_supabase_secret: SecretStr | None = Field(
        default=None,
        description="Turns on the hook of Supabase Auth, `/v1/hooks/supabase`: its secret, `v1,whsec_…`. To "
        "change it, set several, separated by `|`: each is accepted.",
    )
    intake_zitadel_key: SecretStr | None = Field(
        default=None,
        description="Turns on the HTTP provider of Zitadel, `/v1/hooks/zitadel`: its signing key. To change it, set a "
        "comma list: each is accepted.",
    )
    intake_rate_per_second: float = Field(
        default=100,
        gt=0,
        le=100_000,
        description="Maximum number of HTTP requests per second with one intake token, or of one hook, to each worker. "
        "Further requests get 429.",
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
    sealing_keys: SecretStr | None = Field(
        default=None,
        description="Keys that seal codes, so that RabbitMQ stores none in plain text: a JWK Set with shared keys "
        "(`oct`, 256 bits) or private keys (P-256, X25519), made by `otp-stream sealing new`. The first key seals, "
        "every key opens. When unset: RabbitMQ stores codes as producers publish them.",
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
        if info.field_name == "sealing_keys":
            text = " ".join(text.split())  # a JWK Set in a file has several lines
        if info.field_name not in _CHECKED_BY_THEMSELVES and re.search(r"[\x00-\x1f\x7f]", text):
            raise ValueError("contains a line break or another control character; set one value only")
        return text

    _check_smtp_port = field_validator("smtp_port", mode="before")(validators.smtp_port)
    _check_http_token = field_validator("http_token")(validators.http_token)
    _check_intake_token = field_validator("intake_token")(intake_validators.intake_token)
    _check_intake_supabase_secret = field_validator("intake_supabase_secret")(intake_validators.supabase_secret)
    _check_intake_zitadel_key = field_validator("intake_zitadel_key")(intake_validators.zitadel_key)
    _check_smtp_host = field_validator("smtp_host")(validators.smtp_host)
    _check_senders = field_validator("sender_email", "reply_to")(validators.sender_email)
    _check_envelope_sender = field_validator("envelope_sender")(validators.envelope_sender)
    _check_rabbitmq_url = field_validator("rabbitmq_url")(validators.rabbitmq_url)
    _check_smtp_oauth_token_url = field_validator("smtp_oauth_token_url")(validators.smtp_oauth_token_url)
    _check_smtp_oauth_token_command = field_validator("smtp_oauth_token_command")(validators.smtp_oauth_token_command)
    _check_smtp_fallback_urls = field_validator("smtp_fallback_urls")(validators.smtp_fallback_urls)
    _check_secret_key = field_validator("secret_key")(validators.secret_key)
    _check_sealing_keys = field_validator("sealing_keys")(validators.sealing_keys)
    _check_rabbitmq_queue_name = field_validator("rabbitmq_queue_name")(validators.rabbitmq_queue_name)
    _check_dead_letter_retention = field_validator("dead_letter_retention")(validators.dead_letter_retention)
    _check_redis_url = field_validator("redis_url")(validators.redis_url)
    _check_limits = field_validator("recipient_limit", "domain_limit", "tenant_limit", "total_limit")(validators.limit)

    @model_validator(mode="after")
    def _check_delays(self) -> Self:
        if self.base_delay_ms > self.max_delay_ms:
            raise ValueError("BASE_DELAY_MS must not exceed MAX_DELAY_MS")
        return self
