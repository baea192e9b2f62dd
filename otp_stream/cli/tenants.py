"""`otp-stream tenants`: check, list and show the tenants of TENANTS_FILE.

Exits with 0; with 1 if a check finds a problem; with 2 for invalid settings or arguments, such as no TENANTS_FILE.
"""

import asyncio
import logging
from typing import Annotated, Any

import typer
from pydantic import SecretStr
from rich.table import Table

from otp_stream.settings import Settings, Tenant, Tenants, load, read_tenants
from otp_stream.settings.tenants import FILE_KEYS, KEYS, RELAY_KEYS
from otp_stream.settings.tenants_schema import schema
from otp_stream.urls import without_secrets

from . import output
from .check import CheckReport, show_report, write_report
from .output import AsJson

cli = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="The tenants of TENANTS_FILE.")

_Name = Annotated[str | None, typer.Argument(help="One tenant. When left out: all of them.")]
_AT_ONCE = 8
"""Relays that are checked at the same time."""
_ADDRESSES = ("smtp_user", "smtp_fallback_urls")
_NO_FILE = "TENANTS_FILE: is not set; without it, all jobs are sent with the settings of the environment"


@cli.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the tenants with their senders, relays and limits."""
    settings, tenants = _read()
    rows: list[dict[str, Any]] = [
        {"tenant": "default", **_summary(settings)},
        *({"tenant": name, **_summary(it.settings, it)} for name, it in tenants.listed.items()),
    ]
    if as_json:
        output.write_json({"unknown": tenants.unknown, "tenants": rows})
        return
    table = Table("Tenant", "Sender", "Relay", "Limits", box=None, caption=" ", pad_edge=False, header_style="bold")
    for row in rows:
        limits = ", ".join(f"{name} {limit}" for name, limit in row["limits"].items())
        table.add_row(*map(output.plain, (row["tenant"], row["sender"] or "-", row["relay"], limits or "-")))
    output.results().print(table)
    what = "are sent as those of default" if tenants.unknown == "default" else "are dead-lettered as malformed"
    output.results().print(f"Jobs of tenants that are not listed {what}.", markup=False, soft_wrap=True)


@cli.command()
def show(
    name: Annotated[str, typer.Argument(help="The tenant, or default for jobs without one.")], as_json: AsJson = False
) -> None:
    """Show every setting of a tenant, and where its value comes from. Secrets are masked.

    `tenant`: TENANTS_FILE sets it. `environment`: it is inherited. `default`: it is not inherited, and has its default.
    """
    settings, tenants = _read()
    tenant = _named(tenants, name) if name != "default" else None
    of = tenant.settings if tenant else settings
    rows = [(key, _shown(key, getattr(of, key)), tenant.origin(key) if tenant else "environment") for key in KEYS]
    if as_json:
        values = {key: {"value": value, "from": origin} for key, value, origin in rows}
        output.write_json({"tenant": name, "settings": values})
        return
    table = Table("Setting", "Value", "From", box=None, caption=" ", pad_edge=False, header_style="bold")
    for key, value, origin in rows:
        if value is not None:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            table.add_row(*map(output.plain, (key, text, origin)))
    output.results().print(table)


@cli.command()
def check(name: _Name = None, as_json: AsJson = False) -> None:
    """Check the file, and each tenant's templates, relays with their logins, and the DNS of its sender's domain.

    Sends nothing. Exits with 1 if there is a problem.
    """
    logging.disable()  # failures are reported as results
    settings, _ = load(worker=True)
    tenants, problems = _of(settings)
    report = CheckReport()
    from . import check_tenants  # noqa: PLC0415 - to list the commands must not import the subject packages

    check_tenants.check_file(settings, tenants, problems, report.about("TENANTS_FILE"))
    checked = [_named(tenants, name)] if name is not None and not problems else list(tenants.listed.values())
    with output.console.status("checking …"):
        asyncio.run(check_tenants.check_tenants(settings, checked, report, at_once=_AT_ONCE))
    (write_report if as_json else show_report)(report)
    if report.count()["problem"]:
        raise typer.Exit(1)


@cli.command("schema")
def write_schema() -> None:
    """Write the JSON Schema of TENANTS_FILE, by which editors complete and check the file."""
    output.write_json(schema())


def _of(settings: Settings) -> tuple[Tenants, list[str]]:
    if settings.tenants_file is None:
        output.fail(_NO_FILE)
    return read_tenants(settings)


def _read() -> tuple[Settings, Tenants]:
    settings, _ = load(worker=False)
    tenants, problems = _of(settings)
    if problems:
        output.fail("\n".join(problems))
    return settings, tenants


def _named(tenants: Tenants, name: str) -> Tenant:
    if name not in tenants.listed:
        known = ", ".join(list(tenants.listed)[:20]) or "none"
        output.fail(f"NAME: there is no tenant {name}; known: {known}")
    return tenants.listed[name]


def _summary(settings: Settings, tenant: Tenant | None = None) -> dict[str, Any]:
    inherited = tenant is not None and tenant.given.isdisjoint(RELAY_KEYS)
    relay = f"{settings.smtp_host or '-'}:{settings.smtp_port}"
    return {
        "sender": settings.sender_email,
        "relay": "that of default" if inherited else relay,
        "limits": {key.removesuffix("_limit"): value for key in KEYS if key.endswith("_limit")
                   if (value := getattr(settings, key))},
    }  # fmt: skip


def _shown(key: str, value: object) -> str | int | float | None:
    if value is None:
        return None
    if isinstance(value, SecretStr) or key in _ADDRESSES or key in FILE_KEYS.values():
        return "***"
    if key == "smtp_oauth_token_url":
        return without_secrets(str(value))  # its query may contain a key
    return value if isinstance(value, int | float) else str(value)
