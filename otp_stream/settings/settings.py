"""The settings of a deployment, and values that are derived from them."""

import socket
from collections.abc import Mapping
from functools import cached_property
from hashlib import blake2b, scrypt
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from pydantic import PrivateAttr, SecretStr

from otp_stream.core.admission import Limit, LimitName, read_limits
from otp_stream.core.hook_signatures import webhook_keys
from otp_stream.core.retention import Retention, read_period
from otp_stream.core.sealing_keys import NO_KEYS, SealingKeys, read_keys
from otp_stream.urls import amqp_server, is_loopback, without_secrets

from .fallback_relay import FallbackRelay
from .fields import Fields
from .validators import listed, read_sender

EMBEDDED_BROKER_PORT = 5673


class Settings(Fields):
    """The settings of a deployment, typed and frozen."""

    _secret_files: Mapping[str, Path] = PrivateAttr(default_factory=dict[str, Path])

    @property
    def secret_files(self) -> Mapping[str, Path]:
        """The files from which secrets were read, by field name."""
        return self._secret_files

    def set_secret_files(self, files: Mapping[str, Path]) -> None:
        """Record from which files secrets were read."""
        self._secret_files = files

    @property
    def embedded(self) -> bool:
        """Whether the broker runs in this process."""
        return urlsplit(self.rabbitmq_url.get_secret_value()).scheme == "memory"

    @property
    def amqp_url(self) -> str:
        """The URL to connect to, including the password. The embedded broker listens on loopback."""
        url = self.rabbitmq_url.get_secret_value()
        if not self.embedded:
            return url
        parts = urlsplit(url)
        return f"amqp://guest:guest@{parts.hostname or '127.0.0.1'}:{parts.port or EMBEDDED_BROKER_PORT}/"

    @property
    def effective_log_format(self) -> Literal["json", "text", "ecs"]:
        """LOG_FORMAT, or its default in this environment."""
        return self.log_format or ("text" if self.app_env == "development" else "json")

    @property
    def amqp_server(self) -> tuple[str, int]:
        """Host and port of RabbitMQ."""
        return amqp_server(self.amqp_url)

    @property
    def masked_rabbitmq_url(self) -> str:
        """For logs and pages."""
        return without_secrets(self.rabbitmq_url.get_secret_value())

    @property
    def masked_redis_url(self) -> str | None:
        """For logs and pages."""
        return without_secrets(self.redis_url.get_secret_value()) if self.redis_url else None

    @property
    def tables_prefix(self) -> str:
        """Prefix of every key in Redis, for all workers of one queue of one broker. All keys are in one hash slot."""
        return f"{self.tables_names}{blake2b(self._namespace.encode(), digest_size=4).hexdigest()}:"

    @property
    def tables_names(self) -> str:
        """Prefix of the keys of all deployments with these names, which earlier versions used for every key."""
        return f"{{{self.rabbitmq_prefix}:{self.rabbitmq_queue_name}}}:"

    @property
    def tables_broker(self) -> str:
        """A description of RabbitMQ, for messages that distinguish deployments with equal names."""
        return f"REDIS_NAMESPACE={self.redis_namespace}" if self.redis_namespace else self._namespace

    @property
    def _namespace(self) -> str:
        if self.redis_namespace:
            return self.redis_namespace
        parts = urlsplit(self.amqp_url)
        host = (parts.hostname or "").rstrip(".")
        # one broker has two ports, for amqp and for amqps
        port = f":{parts.port}" if parts.port not in {None, 5671, 5672} else ""
        return f"{'localhost' if is_loopback(host) else host}{port}/{unquote(parts.path[1:]) or '/'}"

    @property
    def limits(self) -> list[Limit]:
        """Every limit, the narrowest first."""
        named: tuple[tuple[LimitName, str | None], ...] = (
            ("recipient", self.recipient_limit),
            ("domain", self.domain_limit),
            ("tenant", self.tenant_limit),
            ("total", self.total_limit),
        )
        return [limit for name, text in named if text for limit in read_limits(name, text)]

    @property
    def retention(self) -> Retention:
        """How long dead letters and their codes are kept."""
        return Retention(
            read_period(self.dead_letter_retention),
            self.dead_letter_max,
            keeps_codes=self.dead_letter_codes == "keep",
        )

    @cached_property
    def hook_keys(self) -> dict[str, list[bytes]]:
        """The keys that sign hooks, by the name of each hook that is on."""
        supabase = self.intake_supabase_secret.get_secret_value() if self.intake_supabase_secret else ""
        keys = {
            "supabase": webhook_keys(supabase) if supabase else [],
            "zitadel": [it.encode() for it in listed(self.intake_zitadel_key)],
        }
        return {name: its_keys for name, its_keys in keys.items() if its_keys}

    @property
    def fallbacks(self) -> list[FallbackRelay]:
        """The relays after the first one, in order of preference."""
        return [FallbackRelay.read(url) for url in listed(self.smtp_fallback_urls)]

    @property
    def own_hosts(self) -> frozenset[str]:
        """Host names in HTTP requests that are accepted in addition to IP addresses and internal names."""
        named = [name.strip().lower().removesuffix(".") for name in (self.http_hosts or "").split(",")]
        return frozenset({*filter(None, named), socket.gethostname().lower()})

    @property
    def sender(self) -> tuple[str, str]:
        """The sender as (display name, wire address)."""
        return read_sender(self.sender_email) if self.sender_email else ("", "")

    @property
    def reply_address(self) -> tuple[str, str] | None:
        """Where answers go, as (display name, wire address); `None`: to the sender."""
        return read_sender(self.reply_to) if self.reply_to else None

    @property
    def hash_key(self) -> bytes:
        """The secret key of hashes and MACs, which is the same for all workers of a deployment."""
        return self._hash_keys[0]

    @property
    def old_hash_keys(self) -> tuple[bytes, ...]:
        """Keys whose MACs and records are also accepted, of workers before or after a change of `SECRET_KEY`."""
        return self._hash_keys[1:]

    @cached_property
    def _hash_keys(self) -> tuple[bytes, ...]:
        keys = listed(self.secret_key)
        return tuple(_stretched(key, 2**14) for key in keys) or (self._derived_key,)

    @cached_property
    def sealing(self) -> SealingKeys:
        """The keys that seal and open codes; none if codes are not sealed."""
        return read_keys(self.sealing_keys.get_secret_value()) if self.sealing_keys else NO_KEYS

    @property
    def _derived_key(self) -> bytes:
        # not the host, because two workers may reach one RabbitMQ by different hosts
        smtp_pass = self.smtp_pass.get_secret_value() if self.smtp_pass else ""
        secrets = (urlsplit(self.rabbitmq_url.get_secret_value()).password or "", smtp_pass)
        # a hashed code has only a million possible values, so guessing the passwords that protect it must be slow
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
        """`LOG_LEVEL`, or the default of the environment."""
        return self.log_level or ("debug" if self.app_env == "development" else "info")

    def shown(self) -> dict[str, object]:
        """Return every setting for the log, with secrets masked."""
        shown: dict[str, object] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            shown[name] = "***" if isinstance(value, SecretStr) else str(value) if isinstance(value, Path) else value
        shown["rabbitmq_url"] = self.masked_rabbitmq_url
        shown["redis_url"] = self.masked_redis_url
        shown["smtp_fallback_urls"] = [f"{relay.host}:{relay.port}" for relay in self.fallbacks] or None
        shown["smtp_user"] = "***" if self.smtp_user else None
        shown["smtp_oauth_token_url"] = self.smtp_oauth_token_url and without_secrets(self.smtp_oauth_token_url)
        return shown


def _stretched(secret: str, cost: int) -> bytes:
    return scrypt(secret.encode(errors="surrogateescape"), salt=b"otp-stream", n=cost, r=8, p=1, dklen=32)
