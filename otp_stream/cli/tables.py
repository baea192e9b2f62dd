"""`otp-stream tables`: what all workers share in Redis, and how to forget a person there.

Ends with 0; with 1 when Redis gives no answer, or nobody said yes; with 2 when something is wrong with the words or the
settings, such as no REDIS_URL.
"""

import json
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from otp_stream.core.job import MalformedError, OtpJob
from otp_stream.core.masking import hash_address, mask_address
from otp_stream.settings import Settings
from otp_stream.tables import inspect
from otp_stream.tables.inspect import Line, Progress, Seen
from otp_stream.tables.redis import AwayError

from . import say
from .say import AsJson

cli = typer.Typer(invoke_without_command=True, rich_markup_mode="rich")

_NO_REDIS = (
    "REDIS_URL: is not set, so there are no shared tables: each worker keeps its own in memory. Look at the worker's "
    "page (/) or /health. What it knows of a recipient ends by itself, within the longest limit's time or the code's "
    "life, and with the process."
)
_KEPT = (
    "Marks of sent jobs, and ids made for jobs without one, stay until SENT_TTL_HOURS have passed: they are kept by a "
    "hash of the job and hold nothing about a person. A worker that has counted for itself, while Redis was away, "
    "forgets within the longest limit's time or the code's life."
)
_NOTHING = (
    "Nothing was found. If that surprises you: keys depend on RABBITMQ_PREFIX and RABBITMQ_QUEUE_NAME, hashes on the "
    "passwords in RABBITMQ_URL and SMTP_PASS; they must be the workers' own."
)


@cli.callback()
def look(context: typer.Context, as_json: AsJson = False) -> None:
    """Show the tables that all workers share in Redis: sizes, answers, and what is over a limit most often (hashed).

    Jobs are sent, claimed (a worker is at it) or seen (it was here, and was not sent). The settings are the workers'
    own. Ends with 1 when Redis gives no answer, with 2 when REDIS_URL is not set.
    """
    context.obj = as_json
    if context.invoked_subcommand is not None:
        return
    settings = _settings()
    with _opened(settings) as (line, progress):
        seen = inspect.look(
            line, settings.tables_prefix, settings.limits, ceiling=settings.smtp_rate_per_second, progress=progress
        )
    if as_json:
        say.write(_told(seen, settings))
    else:
        _show(seen, settings)


@cli.command()
def forget(
    context: typer.Context,
    recipient: Annotated[str, typer.Argument(help="The address.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Forget a recipient: newest codes, counts toward its limit, and its place among the throttled.

    Ends with 1 when Redis gives no answer or nobody says yes, with 2 for what is no address or no usable settings.
    """
    settings = _settings()
    address = _address(recipient)
    masked, keys = mask_address(address), (settings.hash_key, *settings.old_hash_keys)
    hashed, *old = (hash_address(address, key) for key in keys)
    if not yes and not typer.confirm(f"Forget {masked} in {settings.masked_redis_url}?", err=True):
        raise typer.Exit(1)
    with _opened(settings) as (line, progress):
        deleted = Counter(inspect.forget(line, settings.tables_prefix, hashed, progress=progress))
        for it in old:
            deleted.update(inspect.forget(line, settings.tables_prefix, it, progress=progress))
    if as_json or context.obj:
        say.write({"recipient": masked, "hash": hashed, "deleted": dict(deleted), "kept": _KEPT})
        return
    out = say.out()
    out.print(f"Forgotten: {masked}, in events and tables {hashed}", soft_wrap=True, markup=False)
    for text, number in zip(
        ("newest codes", "windows of its limit", "place among the throttled"), deleted.values(), strict=True
    ):
        out.print(f"  {text}: {number}")
    out.print(_KEPT, soft_wrap=True)
    if not any(deleted.values()):
        say.console.print(_NOTHING, style="yellow", soft_wrap=True)


def _settings() -> Settings:
    settings = say.settings()
    if settings.redis_url is None:
        say.fail(_NO_REDIS)
    return settings


def _address(text: str) -> str:
    """Return the address as jobs carry it."""
    try:
        return OtpJob.from_bytes(json.dumps({"email": text, "otp": "0000"}).encode()).email
    except MalformedError as error:
        say.fail(str(error).replace("email", "RECIPIENT", 1))


@contextmanager
def _opened(settings: Settings) -> Generator[tuple[Line, Progress]]:
    url = settings.redis_url.get_secret_value() if settings.redis_url else ""
    try:
        with say.console.status("Redis …") as status, inspect.opened(url) as line:
            yield line, lambda looked: status.update(f"Redis: about {say.count(looked)} keys looked at …")
    except AwayError as error:
        say.fail(
            f"{settings.masked_redis_url} does not answer: {error}\n"
            f"Meanwhile workers go by what each knows itself (STATE_FAIL={settings.state_fail}); "
            "look at a worker's page or /health, and try again when Redis is back.",
            1,
        )


def _told(seen: Seen, settings: Settings) -> dict[str, Any]:
    server = seen.server
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
        "workers": seen.workers,
        "entries": dict(seen.sizes),
        "answers": {
            name: {"count": number, "share": round(share, 6)} for name, number, share in _shares(seen)
        },
        "throttled": [
            {"limit": limit, "key": key, "count": number}
            for who, number in seen.throttled.items()
            for limit, _, key in (who.partition(" "),)
        ],
        "schedules": [
            {"relay": it.relay, "aheadSeconds": it.ahead_s, "perSecond": it.rate, "throttledSecondsAgo": it.throttled_s}
            for it in seen.schedules
        ],
        "warnings": [server.warning] if server.warning else [],
    }  # fmt: skip


def _show(seen: Seen, settings: Settings) -> None:
    out, server = say.out(), seen.server
    out.print(
        f"{server.version or 'Redis'} at {settings.masked_redis_url}, keys {settings.tables_prefix}*",
        markup=False,
        soft_wrap=True,
    )
    memory = "" if server.memory_bytes is None else f", {server.memory_bytes / 1e6:.1f} MB in use"
    limit = f" of {server.memory_limit / 1e6:.1f}" if server.memory_limit else ""
    out.print(f"Shared by {seen.workers} worker{'' if seen.workers == 1 else 's'}{memory}{limit}\n")
    out.print(say.table("Entries", [(name, say.count(number)) for name, number in seen.sizes.items()], "Table"))
    shares = [(name.replace("_", " "), say.count(number), f"{share:.1%}") for name, number, share in _shares(seen)]
    if shares:
        out.print(say.table("Jobs", shares, "Answer", "Share"))
    if seen.throttled:
        rows = [(who, say.count(number)) for who, number in seen.throttled.items()]
        out.print(say.table("Times", rows, "Most often over a limit, by hashed key"))
    for it in seen.schedules:
        rate = "" if it.rate is None else f", {it.rate:.1f} mails a second"
        throttled = "" if it.throttled_s is None else f", throttled {it.throttled_s:.0f} s ago"
        out.print(f"{it.relay}: slots taken {it.ahead_s:.1f} s ahead{rate}{throttled}", markup=False, soft_wrap=True)
    if server.warning:
        say.console.print(server.warning, style="yellow", soft_wrap=True)


def _shares(seen: Seen) -> list[tuple[str, int, float]]:
    total = sum(seen.answers.values())
    return [(name, number, number / total) for name, number in seen.answers.items() if number]
