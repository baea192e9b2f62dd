"""Every check of `otp-stream check`, with the worker's settings. A failure of one does not hide the others."""

import asyncio
import json
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from dns.asyncresolver import get_default_resolver
from dns.exception import DNSException

from otp_stream.broker.topology import Topology
from otp_stream.checks.file_permissions import check_file_permissions
from otp_stream.checks.management import ManagementStatus, read_status
from otp_stream.checks.rabbitmq import RabbitmqCheck
from otp_stream.checks.redis import check_redis
from otp_stream.checks.relay import check_relay
from otp_stream.checks.sender_domain import SenderDomain
from otp_stream.checks.templates import check_templates
from otp_stream.checks.tls import check_collector, collectors
from otp_stream.configs import mail_identity, relay_configs
from otp_stream.core.check_result import CheckResult, Report
from otp_stream.core.mail import ComposeError, Mail
from otp_stream.core.masking import mask_address
from otp_stream.core.otp_job import OtpJob
from otp_stream.core.outcome import Accepted, Deferred, RecipientUnavailable, Rejected, Unavailable, without_secrets
from otp_stream.mail import Composer, TemplateError
from otp_stream.mail.lint import sample_job
from otp_stream.relay import RelayConfig, SmtpRelay
from otp_stream.settings import (
    Settings,
    files_with_secrets,
    find_problems,
    find_warnings,
    load,
    read_http_tokens,
    read_tenants,
    required_for_login,
    tenant_warnings,
)
from otp_stream.urls import is_loopback

from .amqp import topology_of
from .settings import with_demo_broker

_LIMIT_S = 25.0
"""For each system; its requests have shorter limits."""
_TOPOLOGY = {"RABBITMQ_QUEUE_NAME", "RABBITMQ_PREFIX", "BASE_DELAY_MS", "MAX_DELAY_MS", "MAX_RETRIES"}
_LIFE_MS = 20_000
"""How long the mail may wait for a connection."""
_LOGIN = ("SMTP_AUTH:", "SMTP_OAUTH_")
_SMTP = {"SENDER_EMAIL", "SMTP_HOST", "SMTP_PORT", "SMTP_TLS", "SMTP_AUTH", "SMTP_CA_FILE"}
T = TypeVar("T")


@dataclass(slots=True)
class CheckedSettings:
    """The settings as a worker would read them."""

    settings: Settings
    problems: list[str]
    unreadable: set[str] = field(default_factory=set[str])
    """Settings that have their default instead of an invalid value, so that what they name cannot be checked."""

    @classmethod
    def read(cls) -> "CheckedSettings":
        """Read them, whether or not WORKER is set here."""
        settings, problems = load(worker=True)
        settings = with_demo_broker(settings)
        problems = [*(it for it in load()[1] if it.startswith("WORKER:")), *problems]
        about_readable = find_problems(settings)
        # SMTP_PASS_FILE is where SMTP_PASS was to be read from
        unreadable = {it.partition(":")[0].removesuffix("_FILE") for it in problems if it not in about_readable}
        if not settings.worker:
            # the two delays contradict each other, and `load` has returned only defaults: read all other settings
            settings, more = load(worker=True, base_delay_ms=1000, max_delay_ms=30_000)
            problems += [it for it in more if it not in problems]
            unreadable |= {"BASE_DELAY_MS", "MAX_DELAY_MS"}
        return cls(settings, problems, unreadable)

    @property
    def topology(self) -> Topology:
        """The queues and exchanges that these settings require."""
        return topology_of(self.settings)

    @property
    def relays(self) -> list[RelayConfig | None]:
        """Every relay, in order; the first one is `None` if its settings are invalid."""
        first, *others = relay_configs(self.settings)
        return [None if self.settings.smtp_host is None or self.unreadable & _SMTP else first, *others]


def settings(checked: CheckedSettings, report: Report) -> None:
    """Report invalid settings, and valid ones that are risky."""
    it = checked.settings
    for problem in checked.problems:
        report(CheckResult("problem", problem))
    if not checked.problems:
        report(CheckResult("ok", f"a worker starts with these settings ({it.app_env})"))
    for warning in find_warnings(it):
        report(CheckResult("warning", warning))
    _tenants(it, report)
    for problem in read_http_tokens(it)[1]:
        report(CheckResult("problem", problem))
    if it.prefetch_count == 1 and "PREFETCH_COUNT" not in checked.unreadable:
        text = "PREFETCH_COUNT=1: one job at a time, each waits for the one before"
        report(CheckResult("warning", text, "PREFETCH_COUNT=200"))
    _sealing(checked, report)
    limits = [f"{limit.name.upper()}_LIMIT={limit}" for limit in it.limits]
    if it.smtp_rate_per_second:
        limits.append(f"SMTP_RATE_PER_SECOND={it.smtp_rate_per_second:g}")
    if limits and it.redis_url is None and "REDIS_URL" not in checked.unreadable:
        report(CheckResult("note", f"{', '.join(limits)} without REDIS_URL: each worker counts alone"))
    if it.redis_url and it.hash_key_is_known:
        text = "anyone who can read this Redis can reverse its hashes: their key is not secret"
        report(CheckResult("warning", text, "set SECRET_KEY"))
    elif it.secret_key is None and it.app_env != "production" and "SECRET_KEY" not in checked.unreadable:
        text = "SECRET_KEY is not set: the key of hashes and MACs is derived from the passwords"
        report(CheckResult("note", text))


def _sealing(checked: CheckedSettings, report: Report) -> None:
    keys = checked.settings.sealing
    if keys:
        count = len(keys.keys)
        report(CheckResult("ok", f"codes are sealed with the first of {count} key{'' if count == 1 else 's'}"))
    elif "SEALING_KEYS" not in checked.unreadable:
        text = "SEALING_KEYS is not set: RabbitMQ writes codes to its disk in plain text, also those of dead letters"
        report(CheckResult("note", text, "make keys with: otp-stream sealing new (docs/sealing.md)"))


def _tenants(settings: Settings, report: Report) -> None:
    tenants, problems = read_tenants(settings)
    for problem in problems:
        report(CheckResult("problem", problem))
    for warning in tenant_warnings(settings, tenants):
        report(CheckResult("warning", warning))
    check_file_permissions([*files_with_secrets(settings), *tenants.files], report)
    if tenants.listed:
        report(CheckResult("note", f"{len(tenants.listed)} tenants: check them with otp-stream tenants check"))


def templates(checked: CheckedSettings, report: Report) -> Composer | None:
    """Check the templates; return what composes e-mails from them, `None` if they cannot be loaded."""
    it = checked.settings
    if "TEMPLATES_DIR" in checked.unreadable or (it.templates_dir is not None and not it.templates_dir.exists()):
        text = "TEMPLATES_DIR cannot be read: the built-in templates are checked instead"
        report(CheckResult("note", text))
        it = it.model_copy(update={"templates_dir": None})
    try:
        composer = Composer(mail_identity(it), it.hash_key)
    except (TemplateError, OSError) as error:
        fix = "correct that line: no worker starts with these templates"
        report(CheckResult("problem", f"TEMPLATES_DIR: {error}", fix))
        return None
    check_templates(composer, report)
    return composer


async def rabbitmq(checked: CheckedSettings, report: Report) -> ManagementStatus | None:
    """Check RabbitMQ; return what the management API reported."""
    it = checked.settings
    is_unreadable = "RABBITMQ_URL" in checked.unreadable  # then a broker of `make run` may be found instead
    if it.embedded or is_unreadable:
        why = "RABBITMQ_URL cannot be read" if is_unreadable else "the demo of `make run` here has other settings"
        report(CheckResult("note", f"not checked: {why}"))
        return None
    topology = checked.topology
    queues = [topology.jobs, topology.high, *topology.arguments]
    reading = asyncio.create_task(asyncio.to_thread(read_status, it.amqp_url, queues, topology.dead))
    check = RabbitmqCheck(
        it.amqp_url, it.masked_rabbitmq_url, topology, report, shared=it.redis_url is not None, retention=it.retention
    )
    connection = await _isolated(check.connect(), report)
    status = await reading
    if connection is not None:
        async with connection:
            if checked.unreadable & _TOPOLOGY:
                report(CheckResult("note", "queues were not checked: correct the settings first"))
            else:
                await _isolated(check.permissions(), report)
                await _isolated(check.queues(connection, status), report)
    return status


async def relay(
    checked: CheckedSettings, number: int, config: RelayConfig | None, report: Report
) -> RelayConfig | None:
    """Check one relay; return it if it accepts mail."""
    it = checked.settings
    if config is None:
        report(CheckResult("note", "not checked: correct the settings first"))
        return None
    loopback = is_loopback(config.host)
    missing = [name for name in required_for_login(it) if getattr(it, name.lower()) is None]
    missing += [problem.partition(":")[0] for problem in checked.problems if problem.startswith(_LOGIN)]
    if number == 1 and missing:
        report(CheckResult("note", f"the login was not tried: set {' and '.join(missing)}"))
        await _isolated(check_relay(config, report, loopback=loopback, login=False), report)
        return None
    return config if await _isolated(check_relay(config, report, loopback=loopback), report) else None


async def sender_domain(checked: CheckedSettings, dkim_selector: str | None, report: Report) -> None:
    """Check the DNS records of the sender's domain."""
    domain = checked.settings.sender[1].rpartition("@")[2].lower() if "SENDER_EMAIL" not in checked.unreadable else ""
    if not domain:
        report(CheckResult("note", "not checked: SENDER_EMAIL is not set, or invalid"))
        return
    relays = [it.host.lower() for it in checked.relays if it is not None and not is_loopback(it.host)]
    try:
        resolver = get_default_resolver()
    except DNSException as error:
        report(CheckResult("note", f"not checked: this machine has no DNS resolver ({type(error).__name__})"))
        return
    await _isolated(SenderDomain(domain, relays, report, resolver).check(dkim_selector), report)


async def redis(checked: CheckedSettings, report: Report) -> float | None:
    """Check Redis; return how far its clock is ahead (seconds)."""
    it = checked.settings
    if it.redis_url is None:
        why = "REDIS_URL cannot be read" if "REDIS_URL" in checked.unreadable else "REDIS_URL is not set"
        report(CheckResult("note", f"not checked: {why}; each worker keeps its own state in memory"))
        return None
    url, shown = it.redis_url.get_secret_value(), it.masked_redis_url or ""
    checking = asyncio.to_thread(
        check_redis, url, shown, it.tables_prefix, it.tables_names, it.state_fail, report, broker=it.tables_broker
    )
    return await _isolated(checking, report)


async def tracing(about: Callable[[str], Report]) -> None:
    """Check the TLS of the collector, if there is one."""
    for url in collectors(os.environ):
        report = about("Tracing")
        await _isolated(check_collector(url, report), report)


async def _isolated(work: Awaitable[T], report: Report) -> T | None:
    """Await one check, and report its failure as a result; return `None` if it failed."""
    try:
        async with asyncio.timeout(_LIMIT_S):
            return await work
    except TimeoutError:
        fix = "check for a firewall on the way, and for overload"
        report(CheckResult("problem", f"no answer within {_LIMIT_S:g} s", fix))
    except Exception as error:  # noqa: BLE001 - any failure is a result; its text may contain secrets
        report(CheckResult("problem", f"this part of the check failed: {type(error).__name__}"))
    return None


def make_request(address: str) -> OtpJob:
    """Return a job with a random code. Raises `MalformedError` for an invalid address."""
    body = {"email": address, "otp": f"{secrets.randbelow(10**6):06}"}
    return OtpJob.from_bytes(json.dumps(body).encode())


async def send_mail(request: OtpJob, composer: Composer | None, usable: list[RelayConfig], report: Report) -> None:
    """Send it through the first relay that answers, and report the reply."""
    recipient = mask_address(request.email)
    if composer is None or not usable:
        why = "no relay accepts mail" if composer else "the templates cannot be loaded"
        report(CheckResult("problem", f"nothing was sent to {recipient}: {why}", "fix the problems above"))
        return
    try:
        mail = composer.compose(sample_job({}, time.time_ns() // 1_000_000, email=request.email, code=request.otp))
    except ComposeError as error:
        report(CheckResult("problem", f"nothing was sent to {recipient}: {error}", "correct the template otp"))
        return
    for config in usable:
        if await _send_through(config, mail, recipient, report):
            return


async def _send_through(config: RelayConfig, mail: Mail, recipient: str, report: Report) -> bool:
    """Return whether the relay may have the mail or has refused it, so that no other one is tried."""
    relay = SmtpRelay(config)
    ends_ms = time.time_ns() // 1_000_000 + _LIFE_MS
    try:
        outcome = await relay.send(mail, rank=0, lane="jobs", expires_ms=ends_ms, deadline_ms=ends_ms)
    finally:
        await relay.close()
    match without_secrets(outcome, *mail.secrets):
        case Accepted(reply):
            report(CheckResult("ok", f"{config.name} accepted a mail to {recipient}: {reply}"))
        case Deferred(reply) | Rejected(reply):
            fix = "the reply is about this address or this message: try another address, or search the provider's help"
            report(CheckResult("problem", f"{config.name} refused a mail to {recipient}: {reply}", fix))
        case Unavailable(_, error) | RecipientUnavailable(error):
            report(CheckResult("problem", f"{config.name} accepts no mail: {error}"))
            return False
        case outcome:
            error = getattr(outcome, "error", "no free connection in time")
            text = f"{config.name}: it is unknown whether the mail to {recipient} was accepted: {error}"
            report(CheckResult("problem", text))
    return True
