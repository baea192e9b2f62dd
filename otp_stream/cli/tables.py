"""`otp-stream tables`: show the state that all workers share in Redis, and forget a recipient there.

Exits with 0; with 1 if Redis does not answer, or you do not confirm; with 2 for invalid settings or arguments, such as
no REDIS_URL.
"""

import json
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from otp_stream.core.masking import hash_address, mask_address
from otp_stream.core.otp_job import MalformedError, OtpJob
from otp_stream.settings import Settings
from otp_stream.tables import inspect
from otp_stream.tables.inspect import Progress, TablesReport
from otp_stream.tables.redis_client import RedisClient, connected
from otp_stream.tables.redis_connection import refused_tls
from otp_stream.tables.redis_pipeline import RedisUnavailableError

from . import output
from .audit import audited
from .output import AsJson
from .settings import broker_settings

cli = typer.Typer(invoke_without_command=True, rich_markup_mode="rich")

_NO_REDIS = (
    "REDIS_URL: is not set, so there are no shared tables: each worker keeps its own in memory. See the worker's page "
    "(/) or /health. What it knows of a recipient expires after the longest limit's period or the code's lifetime, and "
    "is lost when the process exits."
)
_KEPT = (
    "Sent records, and ids generated for jobs without one, stay until SENT_TTL_HOURS have passed, and records while "
    "their codes are valid: they are kept by a hash of the job and hold nothing about a person. What a worker counted "
    "in memory, while Redis did not answer, expires after the longest limit's period or the code's lifetime."
)
_NOTHING = (
    "Nothing was found. If you expected entries, check the settings. Keys depend on RABBITMQ_URL (or REDIS_NAMESPACE), "
    "RABBITMQ_PREFIX and RABBITMQ_QUEUE_NAME; hashes depend on SECRET_KEY or, if it is not set, on the passwords. They "
    "must be those of the workers."
)

_MEANWHILE = {"open": "each worker uses its own memory", "closed": "jobs wait"}


@cli.callback()
def show(context: typer.Context, as_json: AsJson = False) -> None:
    """Show the tables that all workers share in Redis: sizes, answers, and the most throttled keys (hashed).

    A job in the tables is sent, claimed (in flight in a worker) or seen (tried, but not sent). Use the same settings as
    the workers. Exits with 1 if Redis does not answer, with 2 if REDIS_URL is not set.
    """
    context.obj = as_json
    if context.invoked_subcommand is not None:
        return
    settings = _settings()
    with _connected(settings) as (client, progress):
        report = inspect.read_tables(
            client, settings.tables_prefix, settings.limits, ceiling=settings.smtp_rate_per_second, progress=progress
        )
    if as_json:
        output.write_json(_as_json(report, settings))
    else:
        _print(report, settings)


@cli.command()
def forget(
    context: typer.Context,
    recipient: Annotated[str, typer.Argument(help="The address.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Forget a recipient: its newest codes, its counts towards limits, and its count among the throttled keys.

    Exits with 1 if Redis does not answer or you do not confirm, with 2 for an invalid address or settings.
    """
    settings = _settings()
    address = address_of(recipient)
    masked, keys = mask_address(address), (settings.hash_key, *settings.old_hash_keys)
    hashed, *_ = hashes = [hash_address(address, key) for key in keys]
    with audited(settings, "forget", f"recipient {hashed}") as act:
        output.confirm(f"Forget {masked} in {settings.masked_redis_url}?", yes)
        act.start()
        deleted = Counter[str]()
        try:
            with _connected(settings) as (client, progress):
                for it in hashes:
                    deleted.update(inspect.forget(client, settings.tables_prefix, it, progress=progress))
        finally:
            act.count = deleted.total()
    if as_json or context.obj:
        output.write_json({"recipient": masked, "hash": hashed, "deleted": dict(deleted), "kept": _KEPT})
        return
    out = output.results()
    out.print(f"Forgotten: {masked}, in events and tables {hashed}", soft_wrap=True, markup=False)
    for text, number in zip(
        ("newest codes", "windows of its limit", "count among the throttled"), deleted.values(), strict=True
    ):
        out.print(f"  {text}: {number}")
    out.print(_KEPT, soft_wrap=True)
    if not any(deleted.values()):
        output.console.print(_NOTHING, style="yellow", soft_wrap=True)


def _settings() -> Settings:
    settings = broker_settings()
    if settings.redis_url is None:
        output.fail(_NO_REDIS)
    return settings


def address_of(text: str) -> str:
    """Return the address as it is read from a job."""
    try:
        return OtpJob.from_bytes(json.dumps({"email": text, "otp": "0000"}).encode()).email
    except MalformedError as error:
        output.fail(str(error).replace("email", "RECIPIENT", 1))


@contextmanager
def _connected(settings: Settings) -> Generator[tuple[RedisClient, Progress]]:
    url = settings.redis_url.get_secret_value() if settings.redis_url else ""
    try:
        with output.console.status("Redis …") as status, connected(url) as client:
            yield client, lambda read: status.update(f"Redis: about {output.count(read)} keys read …")
    except RedisUnavailableError as error:
        found = refused_tls(str(error))
        output.fail(
            f"{settings.masked_redis_url} does not answer: {f'it {found.why}; {found.fix}' if found else error}\n"
            f"Meanwhile {_MEANWHILE[settings.state_fail]} (STATE_FAIL={settings.state_fail}). "
            "See a worker's page or /health, and try again when Redis answers.",
            1,
        )


def _as_json(report: TablesReport, settings: Settings) -> dict[str, Any]:
    server = report.server
    return {
        "redis": {
            "url": settings.masked_redis_url,
            "version": server.version,
            "memoryBytes": server.memory_bytes,
            "memoryLimitBytes": server.memory_limit,
            "evictionPolicy": server.policy,
            "evictedKeys": server.evicted,
        },
        "keys": f"{settings.tables_prefix}*",
        "workers": report.workers,
        "entries": dict(report.sizes),
        "answers": {
            name: {"count": number, "share": round(share, 6)} for name, number, share in _shares(report)
        },
        "throttled": [
            {"limit": limit, "key": key, "count": number}
            for who, number in report.throttled.items()
            for limit, _, key in (who.partition(" "),)
        ],
        "schedules": [
            {"relay": it.relay, "aheadSeconds": it.ahead_s, "perSecond": it.rate, "throttledSecondsAgo": it.throttled_s}
            for it in report.schedules
        ],
        "warnings": [server.warning] if server.warning else [],
    }  # fmt: skip


def _print(report: TablesReport, settings: Settings) -> None:
    out, server = output.results(), report.server
    out.print(
        f"{server.version or 'Redis'} at {settings.masked_redis_url}, keys {settings.tables_prefix}*",
        markup=False,
        soft_wrap=True,
    )
    memory = "" if server.memory_bytes is None else f", {server.memory_bytes / 1e6:.1f} MB in use"
    limit = f" of {server.memory_limit / 1e6:.1f}" if server.memory_limit else ""
    out.print(f"Shared by {report.workers} worker{'' if report.workers == 1 else 's'}{memory}{limit}\n")
    out.print(output.table("Entries", [(name, output.count(number)) for name, number in report.sizes.items()], "Table"))
    shares = [(name.replace("_", " "), output.count(number), f"{share:.1%}") for name, number, share in _shares(report)]
    if shares:
        out.print(output.table("Jobs", shares, "Answer", "Share"))
    if report.throttled:
        rows = [(who, output.count(number)) for who, number in report.throttled.items()]
        out.print(output.table("Times", rows, "Most often over a limit, by hashed key"))
    for it in report.schedules:
        rate = "" if it.rate is None else f", {it.rate:.1f} e-mails per second"
        throttled = "" if it.throttled_s is None else f", throttled {it.throttled_s:.0f} s ago"
        out.print(f"{it.relay}: slots reserved {it.ahead_s:.1f} s ahead{rate}{throttled}", markup=False, soft_wrap=True)
    if server.warning:
        output.console.print(server.warning, style="yellow", soft_wrap=True)


def _shares(report: TablesReport) -> list[tuple[str, int, float]]:
    total = sum(report.answers.values())
    return [(name, number, number / total) for name, number in report.answers.items() if number]
