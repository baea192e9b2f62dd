"""Run the check of each system with the worker's settings, so that a failure of one does not hide the others."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from otp_stream.checks.management_status import ManagementStatus, read_status
from otp_stream.checks.rabbitmq import RabbitmqCheck
from otp_stream.checks.redis import check_redis
from otp_stream.checks.relay import check_relay
from otp_stream.checks.templates import check_templates
from otp_stream.core.check_result import CheckResult, Report
from otp_stream.mail import Composer, TemplateError
from otp_stream.relay import RelayConfig
from otp_stream.settings import REQUIRED_FOR_LOGIN
from otp_stream.urls import is_loopback

from .check_settings import CheckedSettings

_LIMIT_S = 25.0
"""For each system; its requests have shorter limits."""
_TOPOLOGY = {"RABBITMQ_QUEUE_NAME", "RABBITMQ_PREFIX", "BASE_DELAY_MS", "MAX_DELAY_MS", "MAX_RETRIES"}
T = TypeVar("T")


def templates(checked: CheckedSettings, report: Report) -> Composer | None:
    """Check the templates; return what composes e-mails from them, `None` if they cannot be loaded."""
    it = checked.settings
    if "TEMPLATES_DIR" in checked.unreadable or (it.templates_dir is not None and not it.templates_dir.exists()):
        text = "TEMPLATES_DIR cannot be read: the built-in templates are checked instead"
        report(CheckResult("note", text))
        it = it.model_copy(update={"templates_dir": None})
    try:
        composer = Composer(
            sender=it.sender,
            templates_dir=it.templates_dir,
            default_locale=it.default_locale,
            hash_key=it.hash_key,
        )
    except (TemplateError, OSError) as error:
        fix = "correct that line: no worker starts with these templates"
        report(CheckResult("problem", f"TEMPLATES_DIR: {error}", fix))
        return None
    check_templates(composer, report)
    return composer


async def rabbitmq(checked: CheckedSettings, report: Report) -> ManagementStatus | None:
    """Check RabbitMQ; return what the management API reported."""
    it = checked.settings
    if it.embedded or "RABBITMQ_URL" in checked.unreadable:
        why = "RABBITMQ_URL cannot be read" if not it.embedded else "the embedded broker needs no check"
        report(CheckResult("note", f"not checked: {why}"))
        return None
    topology = checked.topology
    queues = [topology.jobs, topology.high, *topology.arguments]
    reading = asyncio.create_task(asyncio.to_thread(read_status, it.amqp_url, queues, topology.dead))
    check = RabbitmqCheck(it.amqp_url, it.masked_rabbitmq_url, topology, report, shared=it.redis_url is not None)
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
    if number == 1 and it.smtp_auth == "login" and (it.smtp_user is None or it.smtp_pass is None):
        report(CheckResult("note", f"the login was not tried: {' and '.join(REQUIRED_FOR_LOGIN)} are not both set"))
        await _isolated(check_relay(config, report, loopback=loopback, login=False), report)
        return None
    return config if await _isolated(check_relay(config, report, loopback=loopback), report) else None


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
