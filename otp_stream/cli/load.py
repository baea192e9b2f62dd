"""`otp-stream load`: measure how many codes per second are sent, and how long each takes.

Exits with 0 if every job was sent; with 1 if not, if RabbitMQ does not answer or you do not confirm; with 2 for invalid
arguments or settings.
"""

import itertools
import json
import math
import re
import secrets
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from otp_stream.client import ClientError, JobEvent, OtpClient
from otp_stream.clock import now_ms
from otp_stream.core.decision import ENDINGS
from otp_stream.settings import Settings
from otp_stream.urls import is_loopback

from . import charts, output
from .charts import Bar, Timeline
from .output import AsJson
from .output_files import replaced_file
from .publishing import EVENTS_OFF, Options, Run, check_recipient, client_of, new_code, run_until_signal
from .settings import broker_settings

MAX_JOBS = 1_000_000
PURPOSE = "load"
_RETRY_MARGIN = 1.1
"""A retry is late by at most this factor of MAX_DELAY_MS."""
_NEVER = math.nan
_IN_FLIGHT, _RETRYING, _ENDED = range(3)


_DEFAULT_JOBS = 1_000
_PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
_WIDTH = 40
_RESERVED = re.compile(r"(?:.*[.@])?(?:test|example|invalid|localhost|example\.(?:com|net|org))", re.IGNORECASE)
"""Domains without real mailboxes (RFC 2606)."""


@dataclass(kw_only=True)
class LoadTest(Run):
    """Up to `count` jobs, published for up to `seconds`; times are in seconds since the start."""

    recipient: str
    count: int
    limit_s: float | None
    max_delay_ms: int
    run_id: str = field(default_factory=lambda: secrets.token_hex(4))
    retrying: int = 0
    _published_at: "array[float]" = field(default_factory=lambda: array("d"))
    _accept_s: "array[float]" = field(default_factory=lambda: array("d"))
    _state: bytearray = field(default_factory=bytearray)
    """By number of the job."""

    @property
    def total(self) -> int | None:
        """The number of jobs, if it is known in advance."""
        rate = self.options.rate
        if self.limit_s is None:
            return self.count
        return min(self.count, max(1, round(rate * self.limit_s))) if rate else None

    @property
    def succeeded(self) -> bool:
        """Whether all jobs were sent."""
        return self.error is None and self.published > 0 and self.outcomes.counts["sent"] == self.published

    async def measure(self, client: OtpClient, update: Callable[[], None]) -> None:
        """Publish and follow all. Raises `ClientError` if it cannot start."""
        await self.run(client, self._numbers(), update, needs_events=True)

    def _numbers(self) -> Iterator[int]:
        if self.total is not None:  # with a rate, jobs are taken before they are due: the clock cannot limit them
            return iter(range(self.total))
        ends = time.monotonic() + (self.limit_s or 0)
        return itertools.takewhile(lambda _: time.monotonic() < ends, range(self.count))

    def _body(self, number: int) -> bytes:
        while len(self._state) <= number:  # jobs are published nearly in the order of their numbers
            self._state.append(_IN_FLIGHT)
            self._published_at.append(_NEVER)
            self._accept_s.append(_NEVER)
        job = {
            "email": self.recipient.replace("{n}", str(number)),
            "otp": new_code(),
            "jobId": f"load-{self.run_id}-{number}",
            "timestamp": now_ms(),
            "metadata": {"purpose": PURPOSE},
        }
        self._published_at[number] = time.monotonic() - self._began
        return json.dumps(job).encode()

    def _all_ended(self) -> bool:
        return self.ended >= self.published

    def _wait_s(self) -> float:
        return self.options.wait_s + (self.max_delay_ms / 1000 * _RETRY_MARGIN if self.retrying else 0)

    def _receive(self, event: JobEvent) -> None:
        run, _, number_text = event.job_id.rpartition("-")
        if run != f"load-{self.run_id}":
            return
        number = int(number_text)
        before = self._state[number]
        self._last_event_at = time.monotonic()
        if before == _ENDED:  # a duplicate of the job
            return
        if event.outcome not in ENDINGS:
            self.retrying += before == _IN_FLIGHT
            self._state[number] = _RETRYING
            return
        self.retrying -= before == _RETRYING
        self._state[number] = _ENDED
        self.outcomes.add(event)
        if event.outcome == "sent":
            self._accept_s[number] = self._last_event_at - self._began - self._published_at[number]

    def moments(self) -> tuple[list[float], list[float]]:
        """Return when jobs were published, and when they were accepted."""
        at, took = self._published_at, self._accept_s
        accepted = [it + took_s for it, took_s in zip(at, took, strict=True) if not math.isnan(took_s)]
        return [it for it in at if not math.isnan(it)], accepted

    def times(self) -> list[float]:
        """Return the sorted times from publishing to the event of the relay's 250."""
        return sorted(it for it in self._accept_s if not math.isnan(it))


def load(
    count: Annotated[
        int | None, typer.Option(min=1, max=MAX_JOBS, help=f"Number of jobs; {_DEFAULT_JOBS} without --seconds.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="How long to publish, in seconds.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.01, help="Maximum number of jobs per second.")] = None,
    recipient: Annotated[
        str, typer.Option(help="The recipient; {n} is the number of the job.")
    ] = "load{n}@example.invalid",
    high_lane: Annotated[bool, typer.Option("--high-lane", help="Publish to the .high queue.")] = False,
    wait: Annotated[float, typer.Option(min=0.1, help="Give up after this many seconds without an event.")] = 15,
    svg: Annotated[Path | None, typer.Option(help="Write a chart to this file.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Publish up to a million jobs, and measure how fast they are accepted.

    The mails go to the worker's relay, so this command asks for confirmation unless RabbitMQ and the relay (SMTP_HOST,
    as set for the worker) are on this machine and the recipients' domain is reserved by RFC 2606. Exits with 1 if a
    job was not sent.
    """
    settings = broker_settings()
    if not settings.events:
        output.fail(f"{EVENTS_OFF}. This command needs them: set EVENTS=true, for the workers and here")
    if svg is not None and not svg.parent.is_dir():
        output.fail(f"--svg: there is no folder {svg.parent}")
    check_recipient(recipient.replace("{n}", str(MAX_JOBS)), "--recipient")
    real = _real(settings, recipient)
    question = f"This may send real mail: it uses {', '.join(real)}. Continue?"
    if real and not yes and not typer.confirm(question, err=True):
        raise typer.Exit(1)
    maximum = count or (_DEFAULT_JOBS if seconds is None else MAX_JOBS)
    options = Options(high_lane, rate, wait)
    test = LoadTest(options, recipient=recipient, count=maximum, limit_s=seconds, max_delay_ms=settings.max_delay_ms)
    finished = _run(test, settings)
    _report(test, svg, as_json=as_json, finished=finished)
    raise typer.Exit(0 if finished and test.succeeded else 1)


def _run(test: LoadTest, settings: Settings) -> bool:
    """Return whether the test reached its end; exit with 1 if it cannot start."""

    async def work() -> None:
        async with client_of(settings) as client:
            await test.measure(client, update)

    try:
        with output.shown(test, test.total) as update:
            return run_until_signal(work())
    except ClientError as error:
        output.fail(str(error), 1)


def _real(settings: Settings, recipient: str) -> list[str]:
    """Return what is not on this machine, or not reserved for tests."""
    relays = [settings.smtp_host] if settings.smtp_host else []
    relays += [relay.host for relay in settings.fallbacks]
    found = [f"the relay {host}" for host in relays if not is_loopback(host)]
    if not relays and not settings.embedded:  # the embedded broker's worker sends to the embedded inbox
        found.append("the worker's relay, which is unknown here (SMTP_HOST is not set)")
    host = urlsplit(settings.amqp_url).hostname or ""
    if not is_loopback(host):
        found.append(f"the broker {host}")
    if not _RESERVED.fullmatch(recipient.rpartition("@")[2]):
        found.append(f"recipients at {recipient.rpartition('@')[2]}")
    return found


def _report(test: LoadTest, svg: Path | None, *, as_json: bool, finished: bool) -> None:
    published, accepted = test.moments()
    times = test.times()
    bars, over_time = charts.histogram(times), charts.timeline(published, accepted)
    result: dict[str, Any] = {
        "published": _rate(test.published, test.publishing_s),
        "accepted": _rate(len(accepted), max(accepted, default=0)),
        **test.outcomes.as_json(),
        "noEnd": max(test.published - test.ended, 0),
        "timeToAcceptMs": {name: charts.ms(charts.percentile(times, it)) for name, it in _PERCENTILES.items()},
    }
    if as_json:
        output.write_json(
            result
            | {
                "histogram": [{"upToMs": it.upto_ms, "count": it.count} for it in bars],
                "timeline": {
                    "stepSeconds": over_time.step_s,
                    "published": over_time.published,
                    "accepted": over_time.accepted,
                },
                "interrupted": not finished,
                "error": test.error,
            }
        )
    else:
        _show(result, test, bars, over_time)
    if svg is not None:
        title = (
            f"{output.count(test.published)} jobs: {result['accepted']['perSecond']:.0f} accepted per second, "
            f"p99 {result['timeToAcceptMs']['p99']} ms"
        )
        try:
            with replaced_file(svg) as file:
                file.write(charts.svg(title, bars, over_time))
        except OSError as error:
            output.console.print(f"--svg: {svg} cannot be written: {error.strerror}", style="red", markup=False)
    _print_problems(test, result["noEnd"], finished=finished)


def _rate(number: int, seconds: float) -> dict[str, Any]:
    return {
        "count": number,
        "seconds": round(seconds, 3),
        "perSecond": round(number / seconds, 1) if seconds else 0.0,
    }


def _show(result: dict[str, Any], test: LoadTest, bars: list[Bar], over_time: Timeline) -> None:
    out = output.results()
    rows = [
        (name, output.count(it["count"]), f"{it['seconds']:.1f}", f"{it['perSecond']:.1f}")
        for name, it in ((name, result[name]) for name in ("published", "accepted"))
    ]
    out.print(output.table("Jobs", rows, "", "Seconds", "Per second"))
    for text in test.outcomes.lines():
        out.print(text, markup=False, soft_wrap=True)
    if bars:
        out.print(
            "\nTime to accept, ms: " + ", ".join(f"{name} {it:.1f}" for name, it in result["timeToAcceptMs"].items())
        )
        most = max(it.count for it in bars)
        for it in bars:
            drawn = charts.bar(it.count, most, _WIDTH)
            out.print(f"{'≤ ' + charts.span(it.upto_ms):>9} {drawn} {output.count(it.count)}", soft_wrap=True)
    out.print(f"\nJobs per second, in steps of {over_time.step_s:g} s:")
    for name, rates in (("published", over_time.published), ("accepted", over_time.accepted)):
        out.print(f"{name:>9} {charts.blocks(rates)} up to {max(rates):.0f}", soft_wrap=True)


def _print_problems(test: LoadTest, unknown: int, *, finished: bool) -> None:
    if not finished:
        output.console.print(f"interrupted: {output.count(test.published)} jobs were published", style="yellow")
    if unknown:
        after = f" after {test.options.wait_s:g} s without an event" if finished else ""
        output.console.print(f"outcome unknown: {output.count(unknown)} jobs{after}", style="yellow")
    if test.error:
        output.console.print(test.error, style="red", markup=False, soft_wrap=True)
