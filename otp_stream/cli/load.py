"""`otp-stream load`: how many codes a second go out here, and how long each takes.

Ends with 0 when every job was sent; with 1 when not, when nobody answers, or nobody said yes; with 2 for wrong words or
settings.
"""

import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from otp_stream.settings import Settings
from otp_stream.urls import is_loopback

from . import charts, line, output, producer, progress
from .charts import Bar, Timeline
from .line import EVENTS_OFF, ProducerError
from .load_test import MOST, LoadTest, Order
from .output import AsJson
from .settings import broker_settings

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
    settings = broker_settings()
    if not settings.events:
        output.fail(f"{EVENTS_OFF}, and this measures just that: set EVENTS=true, for the workers and here")
    if svg is not None and not svg.parent.is_dir():
        output.fail(f"--svg: there is no folder {svg.parent}")
    try:
        producer.check_recipient(recipient.replace("{n}", str(MOST)), "--recipient")
    except ProducerError as error:
        output.fail(str(error))
    if not yes:
        _ask(_real(settings, recipient))
    most = MOST if seconds is not None else _USUAL
    test = LoadTest(Order(recipient, count or most, seconds, rate, high_lane, wait))
    finished = False
    try:
        with progress.shown(test, test.order.total) as look:
            finished = line.run(test.go(settings, look))
    except ProducerError as error:
        output.fail(str(error), 1)
    _report(test, svg, as_json=as_json, finished=finished)
    raise typer.Exit(0 if finished and test.good else 1)


def _real(settings: Settings, recipient: str) -> list[str]:
    """Return what is not on this machine, or not made up."""
    relays = [settings.smtp_host] if settings.smtp_host else []
    relays += [relay.host for relay in settings.fallbacks]
    found = [f"the relay {host}" for host in relays if not is_loopback(host)]
    if not relays and not settings.embedded:  # the embedded broker's worker sends to the embedded inbox
        found.append("the worker's relay, whichever it is (SMTP_HOST is not set here)")
    host = urlsplit(settings.amqp_url).hostname or ""
    if not is_loopback(host):
        found.append(f"the broker {host}")
    if not _RESERVED.fullmatch(recipient.rpartition("@")[2]):
        found.append(f"recipients at {recipient.rpartition('@')[2]}")
    return found


def _ask(real: list[str]) -> None:
    if real and not typer.confirm(f"This sends real mail to your relay: {', '.join(real)}. Go on?", err=True):
        raise typer.Exit(1)


def _report(test: LoadTest, svg: Path | None, *, as_json: bool, finished: bool) -> None:
    published, accepted = test.moments()
    times = test.times()
    bars, over_time = charts.histogram(times), charts.timeline(published, accepted)
    told: dict[str, Any] = {
        "published": _rate(test.published, test.publishing_s),
        "accepted": _rate(len(accepted), max(accepted, default=0)),
        **test.ends.told(),
        "noEnd": max(test.published - test.ended, 0),
        "timeToAcceptMs": {name: charts.ms(charts.percentile(times, it)) for name, it in _PERCENTILES.items()},
    }
    if as_json:
        output.write_json(
            told
            | {
                "histogram": [{"upToMs": it.upto_ms, "count": it.count} for it in bars],
                "timeline": {
                    "stepSeconds": over_time.step_s,
                    "published": over_time.published,
                    "accepted": over_time.accepted,
                },
                "interrupted": not finished,
                "trouble": test.trouble,
            }
        )
    else:
        _show(told, test, bars, over_time)
    if svg is not None:
        title = (
            f"{output.count(test.published)} jobs: {told['accepted']['perSecond']:.0f} accepted a second, "
            f"p99 {told['timeToAcceptMs']['p99']} ms"
        )
        try:
            svg.write_text(charts.svg(title, bars, over_time), encoding="utf-8")
        except OSError as error:
            output.console.print(f"--svg: {svg} cannot be written: {error.strerror}", style="red", markup=False)
    _comment(test, told["noEnd"], finished=finished)


def _rate(number: int, seconds: float) -> dict[str, Any]:
    return {
        "count": number,
        "seconds": round(seconds, 3),
        "perSecond": round(number / seconds, 1) if seconds else 0.0,
    }


def _show(told: dict[str, Any], test: LoadTest, bars: list[Bar], over_time: Timeline) -> None:
    out = output.results()
    rows = [
        (name, output.count(it["count"]), f"{it['seconds']:.1f}", f"{it['perSecond']:.1f}")
        for name, it in ((name, told[name]) for name in ("published", "accepted"))
    ]
    out.print(output.table("Jobs", rows, "", "Seconds", "A second"))
    for text in test.ends.lines():
        out.print(text, markup=False, soft_wrap=True)
    if bars:
        out.print(
            "\nTime to accept, ms: " + ", ".join(f"{name} {it:.1f}" for name, it in told["timeToAcceptMs"].items())
        )
        most = max(it.count for it in bars)
        for it in bars:
            drawn = charts.bar(it.count, most, _WIDTH)
            out.print(f"{'≤ ' + charts.span(it.upto_ms):>9} {drawn} {output.count(it.count)}", soft_wrap=True)
    out.print(f"\nJobs a second, in steps of {over_time.step_s:g} s:")
    for name, rates in (("published", over_time.published), ("accepted", over_time.accepted)):
        out.print(f"{name:>9} {charts.blocks(rates)} up to {max(rates):.0f}", soft_wrap=True)


def _comment(test: LoadTest, no_end: int, *, finished: bool) -> None:
    if not finished:
        output.console.print(f"stopped: {output.count(test.published)} jobs were published", style="yellow")
    if no_end:
        after = f" after {test.order.wait_s:g} s without news" if finished else ""
        output.console.print(f"no end known of {output.count(no_end)} jobs{after}", style="yellow")
    if test.trouble:
        output.console.print(test.trouble, style="red", markup=False, soft_wrap=True)
