"""The FastStream application, assembled from the settings: the only module that wires the parts together.

`faststream run otp_stream.app:app` starts it. Importing this module connects to nothing and requires no setting.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from . import __version__
from .broker import Incoming, OtpBroker, RabbitConfig
from .broker.asyncapi import document
from .core.backoff import Backoff
from .core.job import OtpJob
from .core.probe import Probed
from .core.state import WorkerSeen
from .dead_letters import DeadLetterQueue
from .delivery import Delivery
from .embedded import EmbeddedBroker
from .mail import Composer, TemplateError
from .mail.lint import lint_at_start
from .mail.preview import Previews
from .relay import RelayConfig, Sharing, SmtpRelay
from .settings import Settings, load
from .tables import KeyBuilder, MemoryTables, RedisConfig, Tables
from .telemetry import Observer, configure_logs, flush_logs, monitor
from .web import Probe, Sources, routes
from .worker import Hooks, OtpStream

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)
_PROBE_FLAG_TTL_MS = 5_000
"""How long the flag for the other workers lasts that a relay accepts mail again."""


def build(
    settings: Settings, problems: Sequence[str], *, background: Sequence[Callable[[], Awaitable[object]]] = ()
) -> OtpStream:
    """Return the application, with `background` tasks. With `problems` it can make its documents but will not run."""
    problems = list(problems)
    backoff = Backoff(settings.base_delay_ms, settings.max_delay_ms, settings.max_retries, settings.retry_greylisted)
    observer = Observer()
    first, *fallbacks = relays(settings)
    tables = _tables(settings, observer)
    sharing = Sharing(tables.reserve, lambda: _workers(broker)) if settings.redis_url else Sharing()
    relay = SmtpRelay(
        first,
        fallbacks=fallbacks,
        on_circuit_breaker=observer.circuit_breaker_changed,
        on_rate=observer.rate_changed,
        sharing=sharing,
    )
    composer = _composer(settings, problems)
    delivery = Delivery(composer, relay, tables, observer, backoff, settings.smtp_uncertain == "resend")
    config = _rabbit_config(settings, backoff)
    broker = OtpBroker(config, made=tables, refused=observer.message_refused, inject=observer.inject)
    _subscribe(broker, delivery)
    hooks = Hooks(
        first=partial(_configure_logs, settings),
        last=flush_logs,
        close=[relay.close, composer.close, partial(asyncio.to_thread, observer.close)],
    )
    app = OtpStream(settings, problems, rabbit=broker, relay=relay, tables=tables, hooks=hooks)
    hooks.start = [partial(observer.open, os.environ)]
    hooks.background = list(background)
    if settings.worker:
        _add_worker_hooks(app, observer, relay, tables)
    observer.metrics.expose(app.state)
    probe = partial(_probe, relay, tables, settings)
    for path, route in routes(_sources(app, observer, broker, tables, composer, probe)).items():
        app.mount(path, route)
    return app


def _subscribe(broker: OtpBroker, delivery: Delivery) -> None:
    @broker.subscriber(
        broker.topology.high,
        title="sendOtpHigh",
        description="The same job, for producers that can choose; served ahead of all other lanes.",
    )
    @broker.subscriber(
        broker.topology.jobs,
        title="sendOtp",
        description="Jobs: send this one-time code to this address.",
    )
    @broker.subscriber(
        broker.topology.due,
        title="sendOtpDue",
        description=("Jobs whose wait is over; a separate lane, so that retries and new jobs never starve each other."),
    )
    async def send_otp(request: OtpJob, incoming: Incoming) -> None:  # pyright: ignore[reportUnusedFunction]
        """Send one one-time code, and settle its message."""
        if job := await incoming.accept(request):
            await delivery(job, incoming, incoming.trace_context)


def _add_worker_hooks(app: OtpStream, observer: Observer, relay: SmtpRelay, tables: Tables) -> None:
    """Add what runs only where jobs are consumed."""
    settings, hooks = app.settings, app.hooks
    if settings.templates_dir:
        hooks.start = [*hooks.start, partial(_lint_templates, settings.templates_dir, settings.default_locale)]
    interval_s = settings.heartbeat_interval_ms / 1000
    refresh = app.rabbit.refresh
    health = partial(monitor, state=app.state, stats=observer.stats, refresh=refresh, interval_s=interval_s)
    hooks.background = [health, *hooks.background]
    if settings.redis_url:
        share = partial(tables.run, partial(_about, app, observer))
        hooks.background = [partial(_follow_probes, relay, tables), share, *hooks.background]
        # after the last job, and before the background task that keeps the connection is cancelled
        hooks.drained = [tables.close]
    if settings.embedded:
        embedded = EmbeddedBroker.at(settings.amqp_url)
        hooks.start = [*hooks.start, embedded.start]
        hooks.close = [*hooks.close, embedded.stop]


def asyncapi(app: OtpStream) -> dict[str, Any]:
    """Return the AsyncAPI 3 document, generated from the code."""
    return document(app.schema.to_specification().to_jsonable(), app.rabbit.topology, __version__)


def _configure_logs(settings: Settings) -> None:
    configure_logs(level=settings.effective_log_level, readable=settings.app_env == "development")


def _sources(
    app: OtpStream, observer: Observer, broker: OtpBroker, tables: Tables, composer: Composer, probe: Probe
) -> Sources:
    return Sources(
        state=app.state,
        telemetry=observer,
        refresh=broker.refresh,
        tables=tables,
        flags=tables,
        probe=probe,
        dead_letters=_dead_letter_queue(app.settings, broker),
        previews=Previews(composer, app.settings.default_locale),
        default_locale=app.settings.default_locale,
        http_token=app.settings.http_token.get_secret_value() if app.settings.http_token else None,
        metrics=observer.metrics.render,
        document=partial(asyncapi, app),
        name=_name(),
        version=__version__,
        environment=app.settings.app_env,
    )


def _name() -> str:
    """Return this worker's name, as logs and pages show it."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _dead_letter_queue(settings: Settings, broker: OtpBroker) -> DeadLetterQueue:
    shown_url = settings.masked_rabbitmq_url
    return DeadLetterQueue(
        settings.amqp_url,
        shown_url,
        broker.topology,
        settings.otp_expiry_minutes,
        settings.hash_key,
        settings.old_hash_keys,
    )


def _workers(broker: OtpBroker) -> int:
    """Return how many workers consume the jobs queue, as RabbitMQ reports."""
    return next((lane.consumers or 1 for lane in broker.state().lanes if lane.lane == "jobs"), 1)


def _tables(settings: Settings, observer: Observer) -> Tables:
    limits = settings.limits
    supersede = settings.supersede == "latest"
    key_builder = KeyBuilder(
        settings.hash_key, supersede=supersede, limits=limits, old_hash_keys=settings.old_hash_keys
    )
    sent_ttl_ms = round(settings.sent_ttl_hours * 3_600_000)
    memory = MemoryTables(
        limits,
        sent_ttl_ms=sent_ttl_ms,
        sent_limit=settings.sent_memory_limit,
        entries_limit=settings.tables_memory_limit,
    )
    return Tables(
        key_builder,
        memory,
        redis=_redis_config(settings),
        fail=settings.state_fail,
        observe=observer.metrics.redis_s.observe,
    )


def _redis_config(settings: Settings) -> RedisConfig | None:
    if settings.redis_url is None or not settings.worker:
        return None
    return RedisConfig(
        settings.redis_url.get_secret_value(),
        shown_url=settings.masked_redis_url or "",
        prefix=settings.tables_prefix,
        names=settings.tables_names,
        broker=settings.tables_broker,
    )


async def _probe(relay: SmtpRelay, tables: Tables, settings: Settings, name: str | None) -> list[Probed]:
    """Probe relays on request, and set a flag for the other workers for each one that accepts mail again."""
    probed = await relay.probe(name) if settings.worker else []
    for it in probed:
        if it.result == "accepted":
            await tables.set_flag(_takes_mail(it.relay.name), _PROBE_FLAG_TTL_MS)
    return probed


async def _follow_probes(relay: SmtpRelay, tables: Tables) -> None:
    """Probe the relays that accept mail again according to another worker's probe; called once a second."""
    for it in relay.state():
        if it.circuit_breaker == "open" and await tables.has_flag(_takes_mail(it.name)):
            await relay.probe(it.name)


def _takes_mail(relay: str) -> str:
    return f"relay-takes-mail:{relay}"


def _about(app: OtpStream, observer: Observer) -> WorkerSeen:
    """Return what this worker publishes of itself to the others."""
    state = app.state()
    unacked = sum(lane.unacked for lane in state.broker.lanes) if state.broker else 0
    breaker = state.relays[0].circuit_breaker if state.relays else "closed"
    return WorkerSeen(_name(), __version__, state.phase, breaker, unacked, observer.stats().sent_last_minute)


def _composer(settings: Settings, problems: list[str]) -> Composer:
    if any(it.startswith("TEMPLATES_DIR:") for it in problems):
        settings = settings.model_copy(update={"templates_dir": None})
    make = partial(Composer, sender=settings.sender, default_locale=settings.default_locale, hash_key=settings.hash_key)
    try:
        return make(templates_dir=settings.templates_dir)
    except (TemplateError, OSError) as error:
        told = f"{settings.templates_dir} cannot be read ({error.strerror})" if isinstance(error, OSError) else error
        problems.append(f"TEMPLATES_DIR: {told}")
        return make(templates_dir=None)


async def _lint_templates(templates_dir: Path, default_locale: str) -> None:
    """Log the lint findings of templates. They compile, so the worker sends them, but a mail may lack some text."""
    try:
        found = lint_at_start(templates_dir, default_locale)
    except Exception as error:  # noqa: BLE001 - the templates compile, so jobs can be sent
        _log.warning("templates could not be checked", error=type(error).__name__)
        return
    for it in found:
        write = _log.error if it.level == "error" else _log.warning
        write(f"template: {it.text}", file=it.file, line=it.line)


def relays(settings: Settings) -> list[RelayConfig]:
    """Return every relay, in the order in which they are used."""
    login = settings.smtp_auth == "login"
    first = RelayConfig(
        host=settings.smtp_host or "localhost",
        port=settings.smtp_port,
        sender=settings.sender[1],
        tls=settings.smtp_tls,
        user=settings.smtp_user if login else None,
        password=settings.smtp_pass.get_secret_value() if login and settings.smtp_pass else None,
        ca_file=settings.smtp_ca_file,
        pool_size=settings.smtp_pool_size,
        rate=settings.smtp_rate_per_second,
        helo=settings.smtp_ehlo_name,
    )
    others = [
        replace(first, host=it.host, port=it.port, tls=it.tls, user=it.user, password=it.password)
        for it in settings.fallbacks
    ]
    return [first, *others]


def _rabbit_config(settings: Settings, backoff: Backoff) -> RabbitConfig:
    return RabbitConfig(
        url=settings.amqp_url,
        shown_url=settings.masked_rabbitmq_url,
        queue=settings.rabbitmq_queue_name,
        prefix=settings.rabbitmq_prefix,
        prefetch=settings.prefetch_count,
        backoff=backoff,
        default_expiry_minutes=settings.otp_expiry_minutes,
        hash_key=settings.hash_key,
        old_hash_keys=settings.old_hash_keys,
        enabled=settings.worker,
        events=settings.events,
    )


app = build(*load())
app.refuse_to_supervise()
