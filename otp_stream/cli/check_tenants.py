"""The checks of `otp-stream tenants check`: those of `otp-stream check` that depend on a tenant, each once."""

import asyncio
from collections.abc import Awaitable, Sequence

from otp_stream.configs import relay_configs
from otp_stream.core.check_result import CheckResult, Report
from otp_stream.settings import Settings, Tenant, Tenants
from otp_stream.settings.tenants import relay_values

from . import check_systems
from .check import CheckReport
from .check_systems import CheckedSettings


def check_file(settings: Settings, tenants: Tenants, problems: Sequence[str], report: Report) -> None:
    """Report the problems of the file, or what it defines."""
    for problem in problems:
        report(CheckResult("problem", problem.removeprefix("TENANTS_FILE: ")))
    if problems:
        return
    groups = len(tenants.groups)
    text = f"{len(tenants.listed)} tenants, {groups} with their own relays"
    report(CheckResult("ok", text))
    if settings.prefetch_count == 1:
        text = "PREFETCH_COUNT=1: a job of one tenant that waits for its relay delays all others"
        report(CheckResult("warning", text, "PREFETCH_COUNT=200"))
    if tenants.unknown == "malformed":
        report(CheckResult("note", "jobs of tenants that are not listed are dead-lettered as malformed"))


async def check_tenants(settings: Settings, tenants: Sequence[Tenant], report: CheckReport, *, at_once: int) -> None:
    """Check what these tenants do not share with the default tenant. What several share is checked once."""
    limit = asyncio.Semaphore(at_once)
    relays = {relay_values(settings)}
    domains = {_domain(settings)}
    templates = {_templates(settings)}
    work: list[Awaitable[object]] = []
    for tenant in tenants:
        checked, about = CheckedSettings(tenant.settings, []), report.about(tenant.name)
        if _templates(tenant.settings) not in templates:
            templates.add(_templates(tenant.settings))
            check_systems.templates(checked, about)
        if (values := relay_values(tenant.settings)) not in relays:
            relays.add(values)
            work += [
                _limited(limit, check_systems.relay(checked, number, config, about))
                for number, config in enumerate(relay_configs(tenant.settings), 1)
            ]
        if (domain := _domain(tenant.settings)) and domain not in domains:
            domains.add(domain)
            work.append(_limited(limit, check_systems.sender_domain(checked, None, about)))
    await asyncio.gather(*work)
    for tenant in tenants:
        if not report.results[tenant.name]:
            text = "templates, relays and sender's domain are those of default, or of a tenant above"
            report.about(tenant.name)(CheckResult("ok", text))


async def _limited(limit: asyncio.Semaphore, work: Awaitable[object]) -> None:
    async with limit:
        await work


def _domain(settings: Settings) -> str:
    return settings.sender[1].rpartition("@")[2].lower()


def _templates(settings: Settings) -> tuple[object, ...]:
    return settings.templates_dir, settings.default_locale
