"""`python -m bench`: this worker beside its peers, and how its cost grows. Everything stays on 127.0.0.1."""

import argparse
import json
import os
import random
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from . import report, tenants
from .measure import RELAYS, Run, consumed_events, drain, steady, tidy
from .systems import System, limited, ours, peers, redis

OUT = Path(__file__).parent / "out"
URL = os.environ.get("OTP_TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672/")


def main() -> None:
    """Run the chosen measurement, and write its table and charts to bench/out."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("what", choices=["peers", "growth", "state", "events", "tenants"], nargs="?", default="peers")
    parser.add_argument("--pairs", type=int, default=5, help="how often each system runs, in turn with the others")
    parser.add_argument("--rate", type=float, default=700, help="jobs a second for the latencies")
    parser.add_argument("--relays", nargs="*", choices=list(RELAYS), default=["instant", "30 ms"])
    parser.add_argument("--only", nargs="*", help="names of systems")
    args = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    match args.what:
        case "peers":
            work = _peers(args.pairs, args.rate, args.relays, args.only)
        case "growth":
            work = _growth()
        case "events":
            work = _events(args.pairs)
        case "tenants":
            work = tenants.main(URL, args.pairs)
        case _:
            work = _state(args.pairs, args.rate)
    uvloop.run(_tidied(work))


async def _tidied(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    finally:
        await tidy(URL)


async def _peers(pairs: int, rate: float, relays: list[str], only: list[str] | None) -> None:
    systems = [ours(), ours("otp-stream, 2 workers", connections=25, workers=2, jobs=30_000)]
    for peer in peers():
        if isinstance(peer, str):
            _log(peer)
        else:
            systems.append(peer)
    systems = [it for it in systems if not only or it.name in only]
    runs: list[Run] = []
    for _ in range(pairs):
        # in a new order each time, so that a change of the machine's speed affects all of them
        for system in random.sample(systems, len(systems)):
            for relay in relays:
                jobs = 30_000 if relay == "instant" else 6_000
                runs += await _measured(system, lambda it, relay=relay: drain(it, relay, URL), jobs)
            if "instant" in relays and system.workers == 1 and system.name != "naive":
                runs += await _measured(system, lambda it: steady(it, "instant", URL, rate=rate, seconds=6), 30_000)
    (OUT / "peers.json").write_text(json.dumps([asdict(run) for run in runs], indent=1))
    (OUT / "peers.md").write_text(report.table(runs))
    report.charts(runs, OUT)
    sys.stdout.write(report.table(runs))


async def _growth() -> None:
    points: dict[str, list[tuple[float, Run]]] = {}
    for title, values, make in (
        ("jobs", (1_000, 10_000, 100_000), lambda n: (ours(jobs=n), "instant")),
        ("connections, 30 ms a reply", (1, 5, 20, 50, 100, 200), lambda n: (ours(connections=n, jobs=60 * n), "30 ms")),
        ("workers", (1, 2, 3, 4), lambda n: (ours(connections=25, workers=n, jobs=20_000), "instant")),
        ("ms a reply, 50 connections", (0, 10, 30, 100, 300), lambda n: (ours(jobs=3_000 if n else 20_000), n)),
    ):
        points[title] = []
        for value in values:
            system, relay = make(value)
            if isinstance(relay, int):
                RELAYS[f"{relay} ms"] = {"delay_s": relay / 1000}
                relay = f"{relay} ms"
            points[title] += [
                (value, run) for run in await _measured(system, lambda it, r=relay: drain(it, r, URL), 10**6)
            ]
    rows = {title: [{"at": x, **asdict(run)} for x, run in some] for title, some in points.items()}
    (OUT / "growth.json").write_text(json.dumps(rows, indent=1))
    report.curves(points, OUT)


async def _state(pairs: int, rate: float) -> None:
    """Measure the cost of shared state: in memory, in Redis, and in Redis with every check enabled."""
    with redis() as url:
        wide = {"SUPERSEDE": "latest"} | dict.fromkeys(("RECIPIENT_LIMIT", "DOMAIN_LIMIT", "TOTAL_LIMIT"), "9999999/1h")
        systems = [ours("memory"), ours("redis", REDIS_URL=url), ours("redis, all limits", REDIS_URL=url, **wide)]
        runs: list[Run] = []
        for _ in range(pairs):
            for system in random.sample(systems, len(systems)):
                runs += await _measured(system, lambda it: drain(it, "instant", URL), 20_000)
                for pace in (50, rate):
                    runs += await _measured(
                        system, lambda it, pace=pace: steady(it, "instant", URL, rate=pace, seconds=6), 10**6
                    )
        (OUT / "state.json").write_text(json.dumps([asdict(run) for run in runs], indent=1))


async def _events(pairs: int) -> None:
    """Measure the cost of events: disabled, without a consumer, and with one that receives all of them."""
    systems = [ours("no events", EVENTS="false"), ours("events"), ours("events, consumed")]
    runs: list[Run] = []
    for _ in range(pairs):
        for system in random.sample(systems, len(systems)):
            async with consumed_events(URL) if system.name == "events, consumed" else nullcontext():
                runs += await _measured(system, lambda it: drain(it, "instant", URL), 20_000)
    (OUT / "events.json").write_text(json.dumps([asdict(run) for run in runs], indent=1))
    base = median(run.rate for run in runs if run.system == "no events")
    for system in systems:
        rates = [run.rate for run in runs if run.system == system.name]
        sys.stdout.write(f"{system.name}: {median(rates):,.0f}/s ({median(rates) / base:.2f})\n")


async def _measured(system: System, measure: Callable[[System], Awaitable[Run]], jobs: int) -> list[Run]:
    try:
        run = await measure(limited(system, jobs))
    except (TimeoutError, RuntimeError) as error:
        _log(f"{system.name}: {error}")
        return []
    latency = "" if run.p99_ms is None else f", p50 {run.p50_ms:.1f} ms, p99 {run.p99_ms:.1f} ms"
    _log(
        f"{run.system}, {run.mode}, {run.relay}: {run.rate:,.0f}/s, {run.cpu_s_per_1000:.2f} CPU s per 1,000, "
        f"{run.memory_mib:.0f} MiB, {run.connections} connections{latency}, repeated {run.repeated}, lost {run.lost}"
    )
    return [run]


def _log(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    main()
