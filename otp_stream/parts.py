"""The parts of a worker, and the order in which they start and stop."""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import structlog

from . import __version__
from .broker import OtpBroker
from .configs import tenant_identities, tenant_limits
from .core.probe import Probed
from .core.retention import SweepState
from .core.state import BrokerState, Phase, RelayState, TenantState, WorkerState
from .core.tables_state import WorkerSeen
from .delivery import Delivery
from .embedded import EmbeddedBroker
from .mail import Composer, MailIdentity, TemplateError, WatchedTemplates
from .mail.finding import Finding
from .mail.lint import lint_at_start
from .relay_groups import RelayGroups
from .settings import RotatedSecrets, Settings, Tenants, WatchedHttpTokens, WatchedTenants
from .tables import FORGET_FLAG, JobStatuses, Tables
from .tasks import cancel_and_wait, forever, in_thread
from .telemetry import Observer, monitor
from .tenant_states import tenant_states

_PROBE_FLAG_TTL_MS = 5_000
"""How long other workers can read the flag that a relay accepts mail again."""

_FORGET_PAUSE_S = 2.0

_LINT_PAUSE_S = 0.1
"""Pause after checking a tenant's templates, which takes 20 ms of CPU time, so that jobs are not delayed."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(slots=True)
class Stopping:
    """Whether the worker is stopping, and whether its grace time is over."""

    grace_s: float
    deadline: float | None = None
    at_once: bool = False

    def request(self) -> bool:
        """Handle a signal: the first starts the grace time, any other ends it. Returns whether it is the first."""
        first = self.deadline is None
        if first:
            self.deadline = time.monotonic() + self.grace_s
        else:
            self.at_once = True
        return first

    @property
    def over(self) -> bool:
        """Whether the grace time has passed."""
        return self.at_once or (self.deadline is not None and time.monotonic() >= self.deadline)


class Sweeper(Protocol):
    """Sweeps the dead letters in the background."""

    @property
    def state(self) -> SweepState:
        """What its sweeps have done."""
        ...

    async def run(self) -> None:
        """Sweep until cancelled."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one worker, wired but not started."""

    settings: Settings
    problems: Sequence[str]
    """Why the worker cannot start: one text for each invalid setting."""
    secrets: RotatedSecrets
    tenants: WatchedTenants
    tokens: WatchedHttpTokens
    observer: Observer
    tables: Tables
    broker: OtpBroker
    composer: Composer
    templates: WatchedTemplates
    relay: RelayGroups
    delivery: Delivery
    statuses: JobStatuses
    """The statuses of jobs, for the intake."""
    embedded: EmbeddedBroker | None
    stopping: Stopping
    sweeper: Sweeper | None = None
    """Removes expired codes and old dead letters."""

    def state(self) -> WorkerState:
        """Return the current state of the whole worker."""
        sweeps = self.sweeper.state if self.sweeper is not None else None
        if not self.settings.worker:
            return WorkerState(self.phase, None, (), sweeps=sweeps)
        broker, relays = self.broker.state(), self.relay.state()
        return WorkerState(
            self.phase,
            broker,
            relays,
            self.tables.state(),
            tenants=self._tenants(broker, relays) if self.tenants.watched else (),
            sweeps=sweeps,
        )

    def _tenants(self, broker: BrokerState, relays: tuple[RelayState, ...]) -> tuple[TenantState, ...]:
        return tenant_states(self.tenants.current, self.observer.tenants(), relays, self.relay.states(), broker)

    @property
    def phase(self) -> Phase:
        """What the worker is doing."""
        if self.stopping.deadline is not None:
            return "stopping"
        if not self.settings.worker:
            return "http_only"
        return "consuming" if self.broker.running else "starting"

    @property
    def unacked(self) -> int:
        """Jobs in flight."""
        return self.broker.unacked

    async def start(self, stack: AsyncExitStack) -> None:
        """Start all parts but the broker, which FastStream starts. `stack` stops them, in the reverse order."""
        if self.embedded is not None:
            stack.push_async_callback(self.embedded.stop)
        stack.push_async_callback(asyncio.to_thread, self.observer.close)
        stack.push_async_callback(self.composer.close)
        stack.push_async_callback(self.relay.close)
        await self.observer.open()
        if self.settings.worker:
            self._lint_templates()
        if self.embedded is not None:
            await self.embedded.start()
        tasks = [asyncio.create_task(forever(run, "background")) for run in self._background()]
        if self.settings.worker:
            tasks.append(asyncio.create_task(self._lint_tenants()))
        stack.push_async_callback(cancel_and_wait, *tasks)
        # after the last job, and before the background task that keeps the connection is cancelled
        stack.push_async_callback(self.tables.close)

    def finish(self) -> None:
        """Start no more sends, so that jobs that wait for a relay or for the tables can be requeued at once."""
        self.relay.finish()
        self.tables.finish()

    def _background(self) -> Iterator[Callable[[], Awaitable[object]]]:
        if self.secrets.files:
            yield partial(self.secrets.watch, self._use_new_secrets)
        if self.tenants.watched:
            yield partial(self.tenants.watch, self._use_tenants)
        if self.tokens.watched:
            yield self.tokens.watch
        if self.tenants.watched or self.settings.templates_dir is not None:
            yield self.templates.watch
        if self.tables.shared is not None:
            yield self._follow_probes
            yield self._follow_forgets
            yield partial(self.tables.run, self._report)
        if self.sweeper is not None:
            yield self.sweeper.run
        if self.observer.exports_metrics:
            yield self.observer.export_metrics
        if self.settings.worker:
            yield partial(
                monitor,
                state=self.state,
                stats=self.observer.stats,
                refresh=self.broker.refresh,
                interval_s=self.settings.heartbeat_interval_ms / 1000,
            )

    def _use_new_secrets(self, changed: Collection[str]) -> None:
        """Use the secrets of these settings for new connections. The relays and the tables read them by themselves."""
        current = self.secrets.settings
        if "rabbitmq_url" in changed:
            self.broker.use_url(current.amqp_url, current.masked_rabbitmq_url)
        if any(name.startswith("smtp_") for name in changed):
            self.relay.retry_logins()

    async def _use_tenants(self, tenants: Tenants) -> str | None:
        """Use these tenants for the next mails. Returns why that is not possible, or `None`."""
        try:
            prepared = await in_thread(partial(self.composer.prepare, tenant_identities(tenants)), "tenants' templates")
        except TemplateError as error:
            return str(error)
        except OSError as error:
            return f"TEMPLATES_DIR: {self.settings.templates_dir} cannot be read ({error.strerror})"
        self.composer.use(prepared)
        self.relay.use(tenants)
        self.broker.use_tenants(tenants.listed)
        for limit in self.tables.use_tenants(tenant_limits(self.settings, tenants)):
            _log.warning(
                "TENANTS_FILE has a new limit: restart the worker to enforce it",
                limit=f"{limit.name} {limit}",
            )
        return None

    def read_files(self) -> None:
        """Read the secret files, TENANTS_FILE, HTTP_TOKENS_FILE and the templates at once."""
        self.tokens.request()
        self.templates.request()
        self.secrets.request()
        self.tenants.request()

    def _report(self) -> WorkerSeen:
        """Return what this worker publishes about itself for the others."""
        breaker = self.relay.state()[0].circuit_breaker
        return WorkerSeen(
            worker_name(), __version__, self.phase, breaker, self.unacked, self.observer.stats().sent_last_minute
        )

    async def probe(self, name: str | None) -> list[Probed]:
        """Probe relays on request. For each one that accepts mail again, set a flag for the other workers."""
        probed = await self.relay.probe(name) if self.settings.worker else []
        for it in probed:
            if it.result == "accepted":
                await self.tables.set_flag(_accepts_mail(it.relay.name), _PROBE_FLAG_TTL_MS)
        return probed

    async def _follow_probes(self) -> None:
        """Probe each relay that accepts mail again by another worker's flag. Called once a second."""
        groups = (self.relay.state(), *self.relay.states().values())
        for it in (relay for relays in groups for relay in relays):
            if it.circuit_breaker == "open" and await self.tables.has_flag(_accepts_mail(it.name)):
                await self.relay.probe(it.name)

    async def _follow_forgets(self) -> None:
        """Drop the recent jobs when `otp-stream forget` asks for it."""
        if await self.tables.has_flag(FORGET_FLAG):
            self.observer.clear_recent()
        await asyncio.sleep(_FORGET_PAUSE_S)

    def _lint_templates(self) -> None:
        """Log lint findings in the operator's templates: they compile, but a mail may lack some text."""
        for it in self.composer.own_templates():
            if not it.tenant:
                _log_findings(_lint(it.identity), {})

    async def _lint_tenants(self) -> None:
        """Log lint findings in the templates of tenants, each only once, while the first jobs are sent."""
        logged: set[object] = set()
        for it in list(self.composer.own_templates()):
            if it.tenant:
                found = await in_thread(partial(_lint, it.identity), "lint")
                new = [finding for finding in found if finding not in logged]
                logged.update(new)
                _log_findings(new, {"tenant": it.tenant})
                await asyncio.sleep(_LINT_PAUSE_S)


def _lint(identity: MailIdentity) -> list[Finding]:
    if identity.templates_dir is None:
        return []
    try:
        return lint_at_start(identity.templates_dir, identity.default_locale)
    except Exception as error:  # noqa: BLE001 - the templates compile, so jobs can be sent
        return [Finding("", None, "warning", f"cannot be checked ({type(error).__name__})")]


def _log_findings(found: Iterable[Finding], about: Mapping[str, str]) -> None:
    for it in found:
        write = _log.error if it.level == "error" else _log.warning
        write(f"template: {it.text}", file=it.file, line=it.line, **about)


def worker_name() -> str:
    """Return this worker's name, as logs and pages show it."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _accepts_mail(relay: str) -> str:
    return f"relay-takes-mail:{relay}"  # workers of earlier versions use the same name
