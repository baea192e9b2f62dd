"""`otp-stream livecheck`: send synthetic codes, and measure whether and how fast they arrive.

Exits with 0 if all arrived in time, with 1 if not, with 2 for invalid arguments or settings.
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from time import monotonic
from typing import Annotated, Any

import typer
from prometheus_client import CollectorRegistry, Gauge, Histogram, start_http_server
from prometheus_client import Counter as Count

from otp_stream.core.masking import mask_address

from . import charts, output
from .output import AsJson
from .prober import OUTCOMES, Mailbox, Prober, Result, Route
from .publishing import EVENTS_OFF, JobsExchange, check_recipient, client_of, run_until_signal
from .settings import broker_settings

_MAX_TIMES = 10_000
"""Percentiles are those of the newest times: a sidecar runs for months."""
_SHARES = {"p50": 0.5, "p95": 0.95, "max": 1.0}
_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


def livecheck(
    recipient: Annotated[str, typer.Argument(help="A test mailbox of yours, such as livecheck@example.com.")],
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between codes.")] = 30,
    count: Annotated[int, typer.Option(min=0, help="Number of codes; 0: until interrupted.")] = 1,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds after which a code counts as lost.")] = 10,
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Receive the mail here (SMTP); route RECIPIENT's mail to it."),
    ] = None,
    max_p95_ms: Annotated[float | None, typer.Option(min=1, help="Exit with 1 if a 95th percentile is higher.")] = None,
    high_lane: Annotated[bool, typer.Option("--high-lane", help="Publish to the .high queue.")] = False,
    jobs_exchange: JobsExchange = False,
    metrics_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Serve Prometheus metrics here.")] = None,
    metrics_host: Annotated[str, typer.Option(help="Address to listen on for --metrics-port.")] = "127.0.0.1",
    as_json: AsJson = False,
) -> None:
    """Send a synthetic code: publish it, wait for its event and, with --listen, for its mail.

    The code is random, expires after a minute, and is never shown. The job's metadata.purpose is livecheck. Exits with
    1 if a code was not sent in time or did not arrive, or if its mail contained another code.
    """
    settings = broker_settings()
    if not settings.events:
        output.fail(f"{EVENTS_OFF}. This command needs them: set EVENTS=true, for the workers and here")
    check_recipient(recipient, "RECIPIENT")
    metrics = None if metrics_port is None else _serve(metrics_host, metrics_port)
    report = Report(mask_address(recipient), timeout, metrics)
    # shorter than the limit of a probe, so that the client replaces a connection on which nothing is confirmed
    client = client_of(settings, timeout_s=timeout * 0.8, jobs_exchange=jobs_exchange)
    prober = Prober(client, Route(recipient, high_lane, timeout, mailbox=listen is not None), report.add)
    mailbox = None if listen is None else Mailbox(*_address(listen), prober.take)
    run_until_signal(_work(prober, mailbox, count, every))
    if as_json:
        output.write_json(report.as_json())
    else:
        report.show()
    raise typer.Exit(0 if report.good(max_p95_ms) else 1)


async def _work(prober: Prober, mailbox: Mailbox | None, count: int, every_s: float) -> None:
    if mailbox is not None:
        try:
            await mailbox.start()
        except OSError as error:
            output.fail(f"--listen: cannot listen at {mailbox.host}:{mailbox.port}: {error.strerror}")
    async with prober.client:
        await prober.run(count, every_s)


@dataclass
class _Metrics:
    """The metrics of a sidecar."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        def times(name: str, text: str) -> Histogram:
            return Histogram(f"otp_livecheck_{name}_seconds", text, buckets=_BOUNDS_S, registry=self.registry)

        self.accept_s = times("accept", "From publishing a synthetic code to the event of the relay's 250.")
        self.arrive_s = times("arrive", "From publishing a synthetic code to its mail.")
        self.probes = Count("otp_livecheck_probes", "Synthetic codes, by outcome.", ["outcome"], registry=self.registry)
        self.success = Gauge(
            "otp_livecheck_last_success_timestamp_seconds",
            "When a code last arrived, in seconds since 1970; 0 if none did.",
            registry=self.registry,
        )
        for outcome in OUTCOMES:  # so that a rate counts the first one
            self.probes.labels(outcome)

    def add(self, result: Result) -> None:
        """Count a result."""
        self.probes.labels(result.outcome).inc()
        if result.accept_s is not None:
            self.accept_s.observe(result.accept_s)
        if result.arrive_s is not None:
            self.arrive_s.observe(result.arrive_s)
        if result.good:
            self.success.set_to_current_time()


def _serve(host: str, port: int) -> _Metrics:
    metrics = _Metrics()
    try:
        start_http_server(port, host, metrics.registry)
    except OSError as error:
        output.fail(f"--metrics-port: cannot listen at {host}:{port}: {error.strerror}")
    return metrics


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        output.fail("--listen: must be HOST:PORT, such as 0.0.0.0:2525")
    return host.strip("[]"), int(port)


@dataclass
class Report:
    """The results so far; `recipient` is masked."""

    recipient: str
    timeout_s: float
    metrics: _Metrics | None = None
    outcomes: Counter[str] = field(default_factory=Counter[str])
    times: dict[str, deque[float]] = field(
        default_factory=lambda: {"accepted": deque(maxlen=_MAX_TIMES), "arrived": deque(maxlen=_MAX_TIMES)}
    )
    _good_at: float = field(default_factory=monotonic)
    _stalled: bool = False

    def add(self, result: Result) -> None:
        """Add a result; print one that is not good at once."""
        self.outcomes[result.outcome] += 1
        if self.metrics is not None:
            self.metrics.add(result)
        for name, took_s in (("accepted", result.accept_s), ("arrived", result.arrive_s)):
            if took_s is not None:
                self.times[name].append(took_s)
        quiet_s = monotonic() - self._good_at
        if result.good:
            if self._stalled:
                output.console.print(f"codes arrive again, after {quiet_s:.0f} s", style="green")
            self._good_at, self._stalled = monotonic(), False
            return
        why = f"{result.outcome.replace('_', ' ')}: {result.error}" if result.error else result.outcome
        self._stalled = self._stalled or quiet_s >= self.timeout_s
        text = f"stalled: no code has arrived for {quiet_s:.0f} s ({why})" if self._stalled else why
        output.console.print(text, style="yellow", markup=False, soft_wrap=True)

    def good(self, max_p95_ms: float | None) -> bool:
        """Whether every code arrived in time."""
        slow = max_p95_ms is not None and any((it["p95"] or 0) > max_p95_ms for it in self.percentiles().values())
        return set(self.outcomes) == {"sent"} and not slow

    def percentiles(self) -> dict[str, dict[str, float | None]]:
        """Return the percentiles of each kind of time, in milliseconds."""
        return {
            name: {share: charts.ms(charts.percentile(sorted(some), it)) for share, it in _SHARES.items()}
            for name, some in self.times.items() if some
        }  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {
            "recipient": self.recipient,
            "count": self.outcomes.total(),
            "lost": self.outcomes["lost"],
            "outcomes": dict(self.outcomes),
            **{f"{name}Ms": it for name, it in self.percentiles().items()},
        }

    def show(self) -> None:
        """Print the report."""
        out = output.results()
        ends = ", ".join(f"{name.replace('_', ' ')} {output.count(it)}" for name, it in self.outcomes.most_common())
        out.print(
            f"{output.count(self.outcomes.total())} codes to {self.recipient}: {ends or 'none yet'}", markup=False
        )
        rows = [(name, *(f"{it:.1f}" for it in some.values())) for name, some in self.percentiles().items()]
        if rows:
            out.print(output.table("p50", rows, "Milliseconds from publishing until", *list(_SHARES)[1:]))
