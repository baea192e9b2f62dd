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
from .clock import MACHINE, now_ms
from .configs import (
    backoff,
    key_builder,
    mail_identity,
    memory_tables,
    rabbit_config,
    redis_config,
    relay_group,
    rotated_relay_configs,
    tenant_identities,
)
from .core.otp_job import OtpJob
from .dead_letters import DeadLetterQueue, Sweeper
from .delivery import Delivery
from .embedded import EmbeddedBroker
from .intake import PREFIX, Intake, document_routes, intake_route, openapi
from .mail import Composer, TemplateError, WatchedTemplates
from .mail.preview import Previews
from .parts import Parts, Stopping, worker_name
from .relay import RelayConfig, Sharing, SmtpRelay
from .relay_groups import RelayGroups
from .request_body import Bodies
from .settings import (
    RotatedSecrets,
    Settings,
    Tenants,
    WatchedHttpTokens,
    WatchedTenants,
    load,
    read_tenants,
)
from .tables import JobStatuses, Tables
from .telemetry import Observer, Server
from .web import Sources, routes
from .worker import OtpStream


def assemble(settings: Settings, problems: Sequence[str] = ()) -> Parts:
    """Wire the parts of one worker. `problems` are the errors found in its settings."""
    secrets = RotatedSecrets(settings)
    listed, tenant_problems = read_tenants(settings)
    tenants = WatchedTenants(lambda: secrets.settings, listed)
    tokens = WatchedHttpTokens(settings)
    observer = Observer(
        by_tenant=settings.tenants_file is not None,
        environment=settings.app_env,
        server=Server(*settings.amqp_server),
    )
    tables = Tables(
        key_builder(settings, listed),
        memory_tables(settings, listed),
        redis=redis_config(secrets),
        fail=settings.state_fail,
        observe=observer.metrics.redis_s.observe,
        machine=MACHINE,
    )
    statuses = JobStatuses(
        tables.ranked_values,
        (settings.hash_key, *settings.old_hash_keys),
        lambda: tokens.accepts_jobs(secrets.settings),
    )
    broker = OtpBroker(rabbit_config(secrets, tenants), made=tables, telemetry=observer)
    composer, more_problems = _composer(settings, problems, listed)
    relay = _relays(secrets, listed, observer, tables, broker)
    resend_uncertain = settings.smtp_uncertain == "resend"
    return Parts(
        settings,
        [*problems, *more_problems, *tenant_problems, *tokens.problems],
        secrets,
        tenants,
        tokens,
        observer,
        tables,
        broker,
        composer,
        WatchedTemplates(composer),
        relay,
        Delivery(composer, relay, tables, observer, backoff(settings), resend_uncertain, statuses.settled),
        statuses,
        EmbeddedBroker.at(settings.amqp_url) if settings.worker and settings.embedded else None,
        Stopping(settings.shutdown_grace_ms / 1000),
        _sweeper(secrets, broker) if settings.worker and settings.retention.enabled else None,
    )


def _sweeper(secrets: RotatedSecrets, broker: OtpBroker) -> Sweeper:
    def is_usable() -> bool:
        return broker.running and (state := broker.state()).connected and not state.blocked

    return Sweeper(_dead_letter_queue(secrets, broker), lambda: broker.state().dead, is_usable)


def _relays(
    secrets: RotatedSecrets, tenants: Tenants, observer: Observer, tables: Tables, broker: OtpBroker
) -> RelayGroups:
    sharing = Sharing(tables.reserve, partial(_worker_count, broker)) if secrets.settings.redis_url else Sharing()

    def relays(configs: Sequence[RelayConfig]) -> SmtpRelay:
        return SmtpRelay(
            configs[0],
            fallbacks=configs[1:],
            on_circuit_breaker=observer.relays.circuit_breaker_changed,
            on_rate=observer.relays.rate_changed,
            on_slowness=observer.relays.slowness_changed,
            on_sender=observer.relays.sender_changed,
            sharing=sharing,
        )

    # TENANTS_FILE may change, so these relays are shared even if it lists no tenant for them now
    shared = secrets.settings.tenants_file is not None
    default = [replace(config, shared=shared) for config in rotated_relay_configs(secrets)]
    return RelayGroups(
        relays(default), lambda name, settings, shared: relays(relay_group(name, settings, shared=shared)), tenants
    )


def _composer(settings: Settings, problems: Sequence[str], tenants: Tenants) -> tuple[Composer, list[str]]:
    """Return the composer and the problems with TEMPLATES_DIR. If there are any, it has the built-in templates."""
    identity, identities = mail_identity(settings), tenant_identities(tenants)
    built_in = partial(Composer, replace(identity, templates_dir=None), settings.hash_key)
    if any(it.startswith("TEMPLATES_DIR:") for it in problems):
        return built_in(), []
    try:
        composer = Composer(identity, settings.hash_key)
    except OSError as error:
        return built_in(), [f"TEMPLATES_DIR: {settings.templates_dir} cannot be read ({error.strerror})"]
    except TemplateError as error:
        return built_in(), [f"TEMPLATES_DIR: {error}"]
    try:
        composer.use(composer.prepare(identities))
    except TemplateError as error:
        return composer, [f"TENANTS_FILE: {line}" for line in str(error).splitlines()]
    return composer, []


def _worker_count(broker: OtpBroker) -> int:
    """Return the number of workers on the jobs queue, as RabbitMQ reports it."""
    return next((lane.depth.consumers or 1 for lane in broker.lanes if lane.lane == "jobs" and lane.depth), 1)


def build(settings: Settings, problems: Sequence[str]) -> OtpStream:
    """Return the application. With `problems` it can generate its documents, but refuses to run."""
    parts = assemble(settings, problems)
    _subscribe(parts.broker, parts.delivery)
    parts.observer.metrics.expose(parts.state, now_ms)
    app = OtpStream(parts)
    bodies = Bodies()
    for path, route in routes(_sources(parts, app, bodies)).items():
        app.mount(path, route)
    intake = _intake(parts, bodies)
    for path, route in document_routes(intake, partial(openapi, __version__)).items():
        app.mount(path, route)
    app.mount_below(PREFIX, intake_route(intake))
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
        description="Jobs of a tenant that had too many in a worker. Each tenant has its own queue.",
    )
    async def send_otp(request: OtpJob, incoming: Incoming) -> None:  # pyright: ignore[reportUnusedFunction]
        """Send one one-time code, and settle its message."""
        if job := await incoming.accept(request):
            await delivery(job, incoming, incoming.message)


def asyncapi(app: OtpStream) -> dict[str, Any]:
    """Return the AsyncAPI 3 document, generated from the code."""
    return document(app.schema.to_specification().to_jsonable(), app.parts.broker.topology, __version__)


def _sources(parts: Parts, app: OtpStream, bodies: Bodies) -> Sources:
    settings = parts.settings
    return Sources(
        state=parts.state,
        telemetry=parts.observer,
        refresh=parts.broker.refresh,
        tables=parts.tables,
        flags=parts.tables,
        probe=parts.probe,
        dead_letters=_dead_letter_queue(parts.secrets, parts.broker),
        previews=Previews(parts.composer),
        tokens=lambda: parts.tokens.users,
        session_keys=(settings.hash_key, *settings.old_hash_keys),
        metrics=parts.observer.metrics.render,
        document=partial(asyncapi, app),
        on_stop=app.on_shutdown,
        bodies=bodies,
        public_keys=lambda: parts.secrets.settings.sealing.public(),  # noqa: PLW0108 - the settings are replaced
        name=worker_name(),
        version=__version__,
        environment=settings.app_env,
    )


def _intake(parts: Parts, bodies: Bodies) -> Intake:
    settings, tenants = parts.settings, parts.tenants
    return Intake(
        tokens=lambda: parts.tokens.producers(parts.secrets.settings),
        hook_keys=lambda: parts.secrets.settings.hook_keys,  # the settings are replaced
        per_second=settings.intake_rate_per_second,
        publish=parts.broker.publish_job,
        ranked_values=parts.tables.ranked_values,
        statuses=parts.statuses,
        phase=lambda: parts.phase,
        hash_keys=(settings.hash_key, *settings.old_hash_keys),
        tenant_problem=tenants.problem,
        keys=lambda: parts.secrets.settings.sealing,
        telemetry=parts.observer,
        bodies=bodies,
    )


def _dead_letter_queue(secrets: RotatedSecrets, broker: OtpBroker) -> DeadLetterQueue:
    settings = secrets.settings
    return DeadLetterQueue(
        lambda: secrets.settings.amqp_url,
        broker.topology,
        settings.otp_expiry_minutes,
        settings.hash_key,
        settings.old_hash_keys,
        keys=lambda: secrets.settings.sealing,
        retention=settings.retention,
    )


app = build(*load())
app.prepare_supervisor()
