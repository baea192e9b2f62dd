"""Builds the configuration of each part of the worker from the settings."""

import shlex
from dataclasses import replace
from functools import partial
from typing import get_args

from .broker import RabbitConfig
from .core.admission import Limit, LimitName
from .core.backoff import Backoff
from .mail import Brand, MailIdentity
from .relay import OAuthConfig, RelayConfig, Rotation
from .settings import RotatedSecrets, Settings, Tenants, WatchedTenants
from .tables import KeyBuilder, MemoryTables, RedisConfig, TenantLimits


def backoff(settings: Settings) -> Backoff:
    """Return the retry policy."""
    return Backoff(settings.base_delay_ms, settings.max_delay_ms, settings.max_retries, settings.retry_greylisted)


def rabbit_config(secrets: RotatedSecrets, tenants: WatchedTenants) -> RabbitConfig:
    """Return how to connect to RabbitMQ, and what to consume."""
    settings = secrets.settings
    return RabbitConfig(
        url=settings.amqp_url,
        shown_url=settings.masked_rabbitmq_url,
        queue=settings.rabbitmq_queue_name,
        prefix=settings.rabbitmq_prefix,
        prefetch=settings.prefetch_count,
        backoff=backoff(settings),
        default_expiry_minutes=settings.otp_expiry_minutes,
        hash_key=settings.hash_key,
        old_hash_keys=settings.old_hash_keys,
        enabled=settings.worker,
        retention=settings.retention,
        events=settings.events,
        tenants=list(tenants.current.listed),
        tenant_of=tenants.find,
        sealing_keys=lambda: secrets.settings.sealing,
    )


def relay_group(name: str, settings: Settings, *, shared: bool) -> list[RelayConfig]:
    """Return every relay of a group of tenants, in order of preference. `shared`: whether it has several tenants."""
    return [replace(config, group=name, shared=shared) for config in relay_configs(settings)]


def mail_identity(settings: Settings) -> MailIdentity:
    """Return the sender, templates and brand of the tenant with these settings."""
    name, address = settings.sender
    its_brand = brand(settings)
    return MailIdentity(
        sender=((name or its_brand.name) if address else name, address),
        templates_dir=settings.templates_dir,
        default_locale=settings.default_locale,
        reply_to=settings.reply_address,
        envelope_sender=settings.envelope_sender,
        brand=its_brand,
        time_zone=settings.default_time_zone,
        subject_time=settings.subject_time,
    )


def brand(settings: Settings) -> Brand:
    """Return the brand of the tenant with these settings."""
    return Brand(
        name=settings.brand_name or "",
        color=settings.brand_color or "",
        logo_url=settings.brand_logo_url or "",
        support=settings.brand_support or "",
        footer=tuple((settings.brand_footer or "").splitlines()),
    )


def tenant_identities(tenants: Tenants) -> dict[str, MailIdentity]:
    """Return the identity of each tenant but the default one, by its name."""
    return {name: mail_identity(it.settings) for name, it in tenants.listed.items()}


def rotated_relay_configs(secrets: RotatedSecrets) -> list[RelayConfig]:
    """Return every relay, in order of preference, with secrets that can change while the worker runs."""
    return [
        replace(config, rotation=Rotation(partial(_relay_config, secrets, number), secrets.refresh))
        for number, config in enumerate(relay_configs(secrets.settings))
    ]


def _relay_config(secrets: RotatedSecrets, number: int) -> RelayConfig:
    return relay_configs(secrets.settings)[number]


def relay_configs(settings: Settings) -> list[RelayConfig]:
    """Return every relay, in order of preference."""
    auth = settings.smtp_auth
    by_password = auth not in {"oauth2", "external", "none"}
    certificate = settings.smtp_cert_file
    first = RelayConfig(
        host=settings.smtp_host or "localhost",
        port=settings.smtp_port,
        sender=settings.envelope_sender or settings.sender[1],
        tls=settings.smtp_tls,
        user=settings.smtp_user if auth != "none" else None,
        password=settings.smtp_pass.get_secret_value() if by_password and settings.smtp_pass else None,
        oauth=_oauth_config(settings) if auth == "oauth2" else None,
        mechanism=None if auth in {"login", "oauth2", "none"} else auth.upper(),
        certificate=(certificate, settings.smtp_key_file or certificate) if certificate else None,
        ca_file=settings.smtp_ca_file,
        pool_size=settings.smtp_pool_size,
        rate=settings.smtp_rate_per_second,
        helo=settings.smtp_ehlo_name,
        chunking=settings.smtp_chunking == "auto",
    )
    others = [
        replace(
            first,
            host=it.host,
            port=it.port,
            tls=it.tls,
            user=it.user,
            password=it.password,
            oauth=None,
            mechanism=None,
        )
        for it in settings.fallbacks
    ]
    return [first, *others]


def _oauth_config(settings: Settings) -> OAuthConfig:
    secret, refresh_token = settings.smtp_oauth_client_secret, settings.smtp_oauth_refresh_token
    command = settings.smtp_oauth_token_command
    return OAuthConfig(
        user=settings.smtp_user or "",
        token_url=settings.smtp_oauth_token_url,
        client_id=settings.smtp_oauth_client_id,
        client_secret=secret.get_secret_value() if secret else None,
        scope=settings.smtp_oauth_scope,
        refresh_token=refresh_token.get_secret_value() if refresh_token else None,
        key_file=settings.smtp_oauth_key_file,
        token_file=settings.smtp_oauth_token_file,
        token_command=tuple(shlex.split(command.get_secret_value()) if command else ()),
    )


def key_builder(settings: Settings, tenants: Tenants) -> KeyBuilder:
    """Return the builder of the keys that a job has in the tables."""
    return KeyBuilder(
        settings.hash_key,
        supersede=settings.supersede == "latest",
        limits=_all_limits(settings, tenants),
        old_hash_keys=settings.old_hash_keys,
        tenants=tenant_limits(settings, tenants),
    )


def _all_limits(settings: Settings, tenants: Tenants) -> list[Limit]:
    of_tenants = (limit for it in tenants.listed.values() for limit in it.settings.limits)
    return list(dict.fromkeys((*settings.limits, *of_tenants)))


def tenant_limits(settings: Settings, tenants: Tenants) -> dict[str, TenantLimits]:
    """Return the limits of each tenant, by its name, and of the default one; empty without tenants."""
    if not tenants.listed:
        return {}
    # a tenant whose jobs are many must not use up what others may send to one person or domain
    own: set[LimitName] = {"recipient", "domain"}
    of_tenants = {
        name: TenantLimits(
            frozenset(it.settings.limits), frozenset(own.union(filter(it.limit_is_own, get_args(LimitName))))
        )
        for name, it in tenants.listed.items()
    }
    return {"": TenantLimits(frozenset(settings.limits)), **of_tenants}


def memory_tables(settings: Settings, tenants: Tenants) -> MemoryTables:
    """Return empty tables in memory."""
    return MemoryTables(
        _all_limits(settings, tenants),
        sent_ttl_ms=round(settings.sent_ttl_hours * 3_600_000),
        sent_limit=settings.sent_memory_limit,
        entries_limit=settings.tables_memory_limit,
    )


def redis_config(secrets: RotatedSecrets) -> RedisConfig | None:
    """Return how to connect to Redis, or `None` if this worker does not use it."""
    settings = secrets.settings
    if settings.redis_url is None or not settings.worker:
        return None

    def url() -> str:
        current = secrets.settings.redis_url
        return current.get_secret_value() if current is not None else ""

    return RedisConfig(
        url,
        prefix=settings.tables_prefix,
        names=settings.tables_names,
        broker=settings.tables_broker,
    )
