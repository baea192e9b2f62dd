"""`otp-stream load`: how many codes a second go out here, and how long each takes.

Ends with 0 when every job was sent; with 1 when not, when nobody answers, or nobody said yes; with 2 for wrong words or
settings.
"""

import asyncio
import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from otp_stream.settings import Settings, is_loopback

from . import figures, line, producer, progress, say
from .figures import Bar, Timeline
from .line import EVENTS_OFF, ProducerError
from .say import AsJson
from .volley import MOST, Order, Volley

_USUAL = 1_000
_PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
_WIDTH = 40
_RESERVED = re.compile(r"(?:.*[.@])?(?:test|example|invalid|localhost|example\.(?:com|net|org))", re.IGNORECASE)
"""Domains in which nobody lives (RFC 2606)."""


def load(
    count: Annotated[int | None, typer.Option(min=1, max=MOST, help=f"Jobs; {_USUAL} without --seconds.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Publish for so long.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.01, help="Jobs a second; as fast as it goes if absent.")] = None,
    recipient: Annotated[
        str, typer.Option(help="Whom to send to; {n} is the job's number.")
    ] = "load{n}@example.invalid",
    high_lane: Annotated[bool, typer.Option("--high-lane", help="Publish to the high lane.")] = False,
    wait: Annotated[float, typer.Option(min=0.1, help="Seconds without news after which to give up.")] = 15,
    svg: Annotated[Path | None, typer.Option(help="Write a chart to this file.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Publish many jobs and measure how fast they are accepted.

    A million at most. Real mail goes to the worker's relay: this asks first, unless broker and relay (SMTP_HOST, as the
    worker has it) are on this machine and the recipients' domain is one of RFC 2606. Ends with 1 when one was not sent.
    """
    settings = say.settings()
    if not settings.events:
        say.fail(f"{EVENTS_OFF}, and this measures just that: set EVENTS=true, for the workers and here")
    if svg is not None and not svg.parent.is_dir():
        say.fail(f"--svg: there is no folder {svg.parent}")
    try:
        producer.check_recipient(recipient.replace("{n}", str(MOST)), "--recipient")
    except ProducerError as error:
        say.fail(str(error))
    if not yes:
        _ask(asyncio.run(_real(settings, recipient)))
    most = MOST if seconds is not None else _USUAL
    volley = Volley(Order(recipient, count or most, seconds, rate, high_lane, wait))
    finished = False
    try:
        with progress.shown(volley, volley.order.total) as look:
            finished = line.run(volley.go(settings, look))
    except ProducerError as error:
        say.fail(str(error), 1)
    _report(volley, svg, as_json=as_json, finished=finished)
    raise typer.Exit(0 if finished and volley.good else 1)


async def _real(settings: Settings, recipient: str) -> list[str]:
    """Return what is not on this machine, or not made up."""
    url, embedded = await line.find_broker(settings)
    relays = [settings.smtp_host] if settings.smtp_host else []
    relays += [relay.host for relay in settings.fallbacks]
    found = [f"the relay {host}" for host in relays if not is_loopback(host)]
    if not relays and not embedded:  # the embedded broker's worker sends to the embedded inbox
        found.append("the worker's relay, whichever it is (SMTP_HOST is not set here)")
    host = urlsplit(url).hostname or ""
    if not is_loopback(host):
        found.append(f"the broker {host}")
    if not _RESERVED.fullmatch(recipient.rpartition("@")[2]):
        found.append(f"recipients at {recipient.rpartition('@')[2]}")
    return found


def _ask(real: list[str]) -> None:
    if real and not typer.confirm(f"This sends real mail to your relay: {', '.join(real)}. Go on?", err=True):
        raise typer.Exit(1)


def _report(volley: Volley, svg: Path | None, *, as_json: bool, finished: bool) -> None:
    published, accepted = volley.moments()
    times = volley.times()
    bars, over_time = figures.histogram(times), figures.timeline(published, accepted)
    told: dict[str, Any] = {
        "published": _rate(volley.published, volley.publishing_s),
        "accepted": _rate(len(accepted), max(accepted, default=0)),
        **volley.ends.told(),
        "noEnd": max(volley.published - volley.ended, 0),
        "timeToAcceptMs": {name: figures.ms(figures.percentile(times, it)) for name, it in _PERCENTILES.items()},
    }
    if as_json:
        say.write(
            told
            | {
                "histogram": [{"upToMs": it.upto_ms, "count": it.count} for it in bars],
                "timeline": {
                    "stepSeconds": over_time.step_s,
                    "published": over_time.published,
                    "accepted": over_time.accepted,
                },
                "interrupted": not finished,
                "trouble": volley.trouble,
            }
        )
    else:
        _show(told, volley, bars, over_time)
    if svg is not None:
        title = (
            f"{say.count(volley.published)} jobs: {told['accepted']['perSecond']:.0f} accepted a second, "
            f"p99 {told['timeToAcceptMs']['p99']} ms"
        )
        try:
            svg.write_text(figures.svg(title, bars, over_time), encoding="utf-8")
        except OSError as error:
            say.console.print(f"--svg: {svg} cannot be written: {error.strerror}", style="red", markup=False)
    _comment(volley, told["noEnd"], finished=finished)


def _rate(number: int, seconds: float) -> dict[str, Any]:
    return {
        "count": number,
        "seconds": round(seconds, 3),
        "perSecond": round(number / seconds, 1) if seconds else 0.0,
    }


def _show(told: dict[str, Any], volley: Volley, bars: list[Bar], over_time: Timeline) -> None:
    out = say.out()
    rows = [
        (name, say.count(it["count"]), f"{it['seconds']:.1f}", f"{it['perSecond']:.1f}")
        for name, it in ((name, told[name]) for name in ("published", "accepted"))
    ]
    out.print(say.table("Jobs", rows, "", "Seconds", "A second"))
    for text in volley.ends.lines():
        out.print(text, markup=False, soft_wrap=True)
    if bars:
        out.print(
            "\nTime to accept, ms: " + ", ".join(f"{name} {it:.1f}" for name, it in told["timeToAcceptMs"].items())
        )
        most = max(it.count for it in bars)
        for it in bars:
            drawn = figures.bar(it.count, most, _WIDTH)
            out.print(f"{'≤ ' + figures.span(it.upto_ms):>9} {drawn} {say.count(it.count)}", soft_wrap=True)
    out.print(f"\nJobs a second, in steps of {over_time.step_s:g} s:")
    for name, rates in (("published", over_time.published), ("accepted", over_time.accepted)):
        out.print(f"{name:>9} {figures.blocks(rates)} up to {max(rates):.0f}", soft_wrap=True)


def _comment(volley: Volley, no_end: int, *, finished: bool) -> None:
    if not finished:
        say.console.print(f"stopped: {say.count(volley.published)} jobs were published", style="yellow")
    if no_end:
        after = f" after {volley.order.wait_s:g} s without news" if finished else ""
        say.console.print(f"no end known of {say.count(no_end)} jobs{after}", style="yellow")
    if volley.trouble:
        say.console.print(volley.trouble, style="red", markup=False, soft_wrap=True)
