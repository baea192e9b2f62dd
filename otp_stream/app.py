"""The FastStream application, assembled from the settings: the only module that wires the parts together.

`faststream run otp_stream.app:app` starts it. Importing this module connects to nothing and requires no setting.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from . import __version__
from .broker import Incoming, OtpBroker
from .broker.asyncapi import document
from .configs import (
    backoff,
    key_builder,
    mail_identity,
    memory_tables,
    rabbit_config,
    redis_config,
    rotated_relay_configs,
)
from .core.otp_job import OtpJob
from .dead_letters import DeadLetterQueue
from .delivery import Delivery
from .embedded import EmbeddedBroker
from .mail import Composer, TemplateError
from .mail.preview import Previews
from .parts import Parts, Stopping, worker_name
from .relay import Sharing, SmtpRelay
from .settings import RotatedSecrets, Settings, load, read_tenants
from .tables import Tables
from .telemetry import Observer
from .web import Sources, routes
from .worker import OtpStream


def assemble(settings: Settings, problems: Sequence[str] = ()) -> Parts:
    """Wire the parts of one worker. `problems` are the errors found in its settings."""
    secrets = RotatedSecrets(settings)
    listed, tenant_problems = read_tenants(settings)
    observer = Observer(by_tenant=settings.tenants_file is not None)
    tables = Tables(
        key_builder(settings, listed),
        memory_tables(settings, listed),
        redis=redis_config(secrets),
        fail=settings.state_fail,
        observe=observer.metrics.redis_s.observe,
    )
    broker = OtpBroker(rabbit_config(settings), made=tables, refused=observer.message_refused, inject=observer.inject)
    composer, more_problems = _composer(settings, problems)
    first, *fallbacks = rotated_relay_configs(secrets)
    relay = SmtpRelay(
        first,
        fallbacks=fallbacks,
        on_circuit_breaker=observer.circuit_breaker_changed,
        on_rate=observer.rate_changed,
        on_slowness=observer.slowness_changed,
        sharing=Sharing(tables.reserve, partial(_worker_count, broker)) if settings.redis_url else Sharing(),
    )
    resend_uncertain = settings.smtp_uncertain == "resend"
    return Parts(
        settings,
        [*problems, *more_problems, *tenant_problems],
        secrets,
        observer,
        tables,
        broker,
        composer,
        relay,
        Delivery(composer, relay, tables, observer, backoff(settings), resend_uncertain),
        EmbeddedBroker.at(settings.amqp_url) if settings.worker and settings.embedded else None,
        Stopping(settings.shutdown_grace_ms / 1000),
    )


def _composer(settings: Settings, problems: Sequence[str]) -> tuple[Composer, list[str]]:
    """Return the composer and the problems with TEMPLATES_DIR. If there are any, it has the built-in templates."""
    identity = mail_identity(settings)
    built_in = replace(identity, templates_dir=None)
    if any(it.startswith("TEMPLATES_DIR:") for it in problems):
        return Composer(built_in, settings.hash_key), []
    try:
        return Composer(identity, settings.hash_key), []
    except OSError as error:
        problem = f"{settings.templates_dir} cannot be read ({error.strerror})"
    except TemplateError as error:
        problem = str(error)
    return Composer(built_in, settings.hash_key), [f"TEMPLATES_DIR: {problem}"]


def _worker_count(broker: OtpBroker) -> int:
    """Return the number of workers on the jobs queue, as RabbitMQ reports it."""
    return next((lane.depth.consumers or 1 for lane in broker.lanes if lane.lane == "jobs" and lane.depth), 1)


def build(settings: Settings, problems: Sequence[str]) -> OtpStream:
    """Return the application. With `problems` it can generate its documents, but refuses to run."""
    parts = assemble(settings, problems)
    _subscribe(parts.broker, parts.delivery)
    parts.observer.metrics.expose(parts.state)
    app = OtpStream(parts)
    for path, route in routes(_sources(parts, app)).items():
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
    @broker.subscriber(
        broker.topology.any_tenant,
        title="sendOtpTenant",
        description="Jobs of a tenant that has many in a worker: a queue for each tenant, so that none delays another.",
    )
    async def send_otp(request: OtpJob, incoming: Incoming) -> None:  # pyright: ignore[reportUnusedFunction]
        """Send one one-time code, and settle its message."""
        if job := await incoming.accept(request):
            await delivery(job, incoming, incoming.trace_context)


def asyncapi(app: OtpStream) -> dict[str, Any]:
    """Return the AsyncAPI 3 document, generated from the code."""
    return document(app.schema.to_specification().to_jsonable(), app.parts.broker.topology, __version__)


def _sources(parts: Parts, app: OtpStream) -> Sources:
    settings = parts.settings
    return Sources(
        state=parts.state,
        telemetry=parts.observer,
        refresh=parts.broker.refresh,
        tables=parts.tables,
        flags=parts.tables,
        probe=parts.probe,
        dead_letters=_dead_letter_queue(parts),
        previews=Previews(parts.composer),
        http_token=settings.http_token.get_secret_value() if settings.http_token else None,
        metrics=parts.observer.metrics.render,
        document=partial(asyncapi, app),
        name=worker_name(),
        version=__version__,
        environment=settings.app_env,
    )


def _dead_letter_queue(parts: Parts) -> DeadLetterQueue:
    settings = parts.settings
    return DeadLetterQueue(
        lambda: parts.secrets.settings.amqp_url,
        parts.broker.topology,
        settings.otp_expiry_minutes,
        settings.hash_key,
        settings.old_hash_keys,
    )


app = build(*load())
app.prepare_supervisor()
