"""What `otp-stream check` looks at: each part for itself, so that one failure hides no other."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TypeVar

from otp_stream.app import relays
from otp_stream.broker import management_api as management
from otp_stream.broker.management_api import Seen
from otp_stream.broker.topology import Topology
from otp_stream.checks.rabbitmq import Checkup
from otp_stream.checks.redis import Clock
from otp_stream.checks.redis import checkup as tables_checkup
from otp_stream.checks.relay import checkup as relay_checkup
from otp_stream.checks.templates import checkup as mail_checkup
from otp_stream.core.check_result import Finding, Tell
from otp_stream.core.job import CLOCK_TOLERANCE_MS
from otp_stream.mail import Mailroom, TemplateError
from otp_stream.relay import RelayConfig
from otp_stream.settings import REQUIRED_FOR_LOGIN, Settings, load

from . import say
from .amqp import topology_of

_LIMIT_S = 25.0
"""For each part; whatever is asked has shorter limits of its own."""
_TOPOLOGY = {"RABBITMQ_QUEUE_NAME", "RABBITMQ_PREFIX", "BASE_DELAY_MS", "MAX_DELAY_MS", "MAX_RETRIES"}
_SMTP = {"SENDER_EMAIL", "SMTP_HOST", "SMTP_PORT", "SMTP_TLS", "SMTP_AUTH", "SMTP_CA_FILE"}
T = TypeVar("T")


@dataclass(slots=True)
class Known:
    """The settings as a worker would have them."""

    settings: Settings
    problems: list[str]
    unreadable: set[str] = field(default_factory=set[str])
    """Settings in whose place stands the default, so that what they name cannot be looked at."""

    @classmethod
    def read(cls) -> "Known":
        """Read them, whether or not WORKER is set here."""
        settings, problems = load(worker=True)
        settings = say.at_demo(settings)
        problems = [*(it for it in load()[1] if it.startswith("WORKER:")), *problems]
        unreadable = {it.partition(":")[0] for it in problems} - {it.partition(":")[0] for it in settings.problems()}
        if not settings.worker:
            # what is wrong lies between the two delays, and left nothing but defaults: all else is worth a look still
            settings, more = load(worker=True, base_delay_ms=1000, max_delay_ms=30_000)
            problems += [it for it in more if it not in problems]
            unreadable |= {"BASE_DELAY_MS", "MAX_DELAY_MS"}
        return cls(settings, problems, unreadable)

    @property
    def topology(self) -> Topology:
        """What must stand at the broker."""
        return topology_of(self.settings)

    @property
    def relays(self) -> list[RelayConfig | None]:
        """Every relay, in order; `None` in place of the first one where its settings cannot be read."""
        first, *others = relays(self.settings)
        return [None if self.settings.smtp_host is None or self.unreadable & _SMTP else first, *others]


def settings(known: Known, tell: Tell) -> None:
    """Tell what is wrong with the settings, and what is allowed and unwise."""
    it = known.settings
    for problem in known.problems:
        tell(Finding("problem", problem))
    if not known.problems:
        tell(Finding("ok", f"a worker would start with them ({it.app_env})"))
    for warning in it.warnings():
        tell(Finding("warning", warning))
    if it.prefetch_count == 1 and "PREFETCH_COUNT" not in known.unreadable:
        text = "PREFETCH_COUNT=1: one job at a time, each waits for the one before"
        tell(Finding("warning", text, "PREFETCH_COUNT=200"))
    limits = [f"{limit.name.upper()}_LIMIT={limit}" for limit in it.limits]
    if it.smtp_rate_per_second:
        limits.append(f"SMTP_RATE_PER_SECOND={it.smtp_rate_per_second:g}")
    if limits and it.redis_url is None and "REDIS_URL" not in known.unreadable:
        tell(Finding("note", f"{', '.join(limits)} without REDIS_URL: of several workers each counts for itself"))
    if it.redis_url and it.hash_key_is_known:
        text = "anyone who can read the Redis can reverse its hashes: their key is not secret"
        tell(Finding("warning", text, "set SECRET_KEY"))
    elif it.secret_key is None and it.app_env != "production" and "SECRET_KEY" not in known.unreadable:
        tell(Finding("note", "SECRET_KEY is not set: the key of hashes and MACs is derived from the passwords"))


def templates(known: Known, tell: Tell) -> Mailroom | None:
    """Tell of the templates; returns who makes e-mails of them, `None` where they cannot be loaded."""
    it = known.settings
    if "TEMPLATES_DIR" in known.unreadable or (it.templates_dir is not None and not it.templates_dir.exists()):
        tell(Finding("note", "TEMPLATES_DIR cannot be read: ours are looked at in its place"))
        it = it.model_copy(update={"templates_dir": None})
    try:
        mailroom = Mailroom(
            sender=it.sender,
            templates_dir=it.templates_dir,
            default_locale=it.default_locale,
            hash_key=it.hash_key,
        )
    except (TemplateError, OSError) as error:
        tell(Finding("problem", f"TEMPLATES_DIR: {error}", "no worker starts with them: mend that line"))
        return None
    mail_checkup(mailroom, tell)
    return mailroom


async def broker(known: Known, tell: Tell) -> Seen | None:
    """Tell of RabbitMQ; returns what the management API told."""
    it = known.settings
    if it.embedded or "RABBITMQ_URL" in known.unreadable:
        why = "RABBITMQ_URL cannot be read" if not it.embedded else "the embedded broker needs no check"
        tell(Finding("note", f"not looked at: {why}"))
        return None
    topology = known.topology
    queues = [topology.jobs, topology.high, *topology.arguments]
    asked = asyncio.create_task(asyncio.to_thread(management.look, it.amqp_url, queues, topology.dead))
    checkup = Checkup(it.amqp_url, it.masked_rabbitmq_url, topology, tell, shared=it.redis_url is not None)
    connection = await apart(checkup.connect(), tell)
    seen = await asked
    if connection is not None:
        async with connection:
            if known.unreadable & _TOPOLOGY:
                tell(Finding("note", "queues were not looked at: mend the settings first"))
            else:
                await apart(checkup.permissions(), tell)
                await apart(checkup.queues(connection, seen), tell)
    return seen


async def relay(known: Known, number: int, config: RelayConfig | None, tell: Tell) -> RelayConfig | None:
    """Tell of one relay; returns it if it takes mail."""
    it = known.settings
    if config is None:
        tell(Finding("note", "not looked at: mend the settings first"))
        return None
    if number == 1 and it.smtp_auth == "login" and (it.smtp_user is None or it.smtp_pass is None):
        tell(Finding("note", f"the login was not tried: {' and '.join(REQUIRED_FOR_LOGIN)} are not both set"))
        await apart(relay_checkup(config, tell, login=False), tell)
        return None
    return config if await apart(relay_checkup(config, tell), tell) else None


async def redis(known: Known, tell: Tell) -> Clock | None:
    """Tell of Redis; returns its clock."""
    it = known.settings
    if it.redis_url is None:
        why = "REDIS_URL cannot be read" if "REDIS_URL" in known.unreadable else "REDIS_URL is not set"
        tell(Finding("note", f"not looked at: {why}; each worker keeps its own state in memory"))
        return None
    url, shown = it.redis_url.get_secret_value(), it.masked_redis_url or ""
    checked = asyncio.to_thread(
        tables_checkup, url, shown, it.tables_prefix, it.tables_names, it.state_fail, tell, broker=it.tables_broker
    )
    return await apart(checked, tell)


def clock(redis_clock: Clock | None, seen: Seen | None, tell: Tell) -> None:
    """Tell how this machine's clock stands against those that could be asked."""
    others = {"Redis": redis_clock and redis_clock.ahead_s, "RabbitMQ's management API": seen and seen.ahead_s}
    told = {whose: ahead_s for whose, ahead_s in others.items() if ahead_s is not None}
    if not told:
        tell(
            Finding("note", "not looked at: neither Redis nor RabbitMQ's management API could be asked", "timedatectl")
        )
    for whose, ahead_s in told.items():
        text = f"{whose} is {abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine"
        if abs(ahead_s) * 1000 > CLOCK_TOLERANCE_MS:
            cure = "codes expire early or late by that: timedatectl set-ntp true, on both machines"
            tell(Finding("warning", text, cure))
        else:
            tell(Finding("ok", text))


async def apart(work: Awaitable[T], tell: Tell) -> T | None:
    """Await one part; what becomes of it touches no other. Returns `None` where it failed."""
    try:
        async with asyncio.timeout(_LIMIT_S):
            return await work
    except TimeoutError:
        tell(
            Finding("problem", f"no answer within {_LIMIT_S:g} s", "see what stands between: a firewall, an overload?")
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, all else is looked at; its text may hold secrets
        tell(Finding("problem", f"this part of the check failed: {type(error).__name__}"))
    return None
