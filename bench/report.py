"""Runs as a table and as charts."""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import psutil

from .measure import Run

mpl.use("agg")
from matplotlib import pyplot as plt

_COLOURS = {"otp-stream": "#2563eb", "naive": "#9ca3af", "nodemailer pool": "#16a34a", "go": "#0891b2"}


def of(runs: Sequence[Run], mode: str, relay: str) -> dict[str, list[Run]]:
    """Return the runs of one kind by system, in the order of their rate."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        if (run.mode, run.relay) == (mode, relay):
            found.setdefault(run.system, []).append(run)
    return dict(sorted(found.items(), key=lambda it: median(run.rate for run in it[1])))


def machine() -> str:
    """Return a description of this machine."""
    memory = psutil.virtual_memory().total / 2**30
    packages = ", ".join(f"{name} {version(name)}" for name in ("faststream", "aiormq", "uvloop", "pydantic"))
    return (
        f"{psutil.cpu_count()} processors, {memory:.0f} GiB, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, {packages}"
    )


def table(runs: Sequence[Run]) -> str:
    """Return Markdown: medians, and the smallest and greatest rate in brackets."""
    lines = [f"Measured on: {machine()}. Broker, relay and worker share the machine.", ""]
    for mode, relay in dict.fromkeys((run.mode, run.relay) for run in runs):
        lines += [f"### {mode}, relay {relay}", ""]
        lines += [
            "| system | mails/s | CPU s per 1,000 | memory MiB | p50 ms | p99 ms | connections | repeated | lost |"
        ]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        for name, some in reversed(of(runs, mode, relay).items()):
            rates = [run.rate for run in some]
            lines.append(
                f"| {name} | {median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f}) "
                f"| {_mid(some, 'cpu_s_per_1000'):.2f} | {_mid(some, 'memory_mib'):.0f} "
                f"| {_shown(some, 'p50_ms')} | {_shown(some, 'p99_ms')} | {_mid(some, 'connections'):.0f} "
                f"| {sum(run.repeated for run in some)} | {sum(run.lost + run.wrong for run in some)} |"
            )
        lines.append("")
    return "\n".join(lines)


def _mid(runs: Sequence[Run], field: str) -> float:
    return median(getattr(run, field) for run in runs)


def _shown(runs: Sequence[Run], field: str) -> str:
    return "" if getattr(runs[0], field) is None else f"{_mid(runs, field):.1f}"


def charts(runs: Sequence[Run], folder: Path) -> None:
    """Draw rates, CPU time and latencies side by side, as PNG and SVG."""
    panels = [("drain", "instant", "rate", "mails a second, instant relay"),
              ("drain", "30 ms", "rate", "mails a second, relay with 30 ms a reply"),
              ("drain", "instant", "cpu_s_per_1000", "CPU seconds for 1,000 mails, instant relay"),
              ("steady", "instant", "p99_ms", "publish to accepted at one steady rate, ms: p50 and p99")]  # fmt: skip
    figure, axes = plt.subplots(2, 2, figsize=(11, 6.5), layout="constrained")
    for axis, (mode, relay, field, title) in zip(axes.flat, panels, strict=True):
        found = dict(sorted(of(runs, mode, relay).items(), key=lambda it: _mid(it[1], field), reverse=field != "rate"))
        names, values = list(found), [_mid(some, field) for some in found.values()]
        bars = axis.barh(names, values, color=[_COLOURS.get(name, "#93c5fd") for name in names])
        labels = [f"{value:,.0f}" if field == "rate" else f"{value:,.2f}" for value in values]
        if field == "p99_ms":
            labels = [f"{_mid(some, 'p50_ms'):.1f} and {_mid(some, 'p99_ms'):.1f}" for some in found.values()]
        axis.bar_label(bars, labels, padding=3)
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.2)
    _save(figure, folder / "peers")


def curves(points: dict[str, list[tuple[float, Run]]], folder: Path) -> None:
    """Draw how the rate grows with jobs, connections, workers and the relay's delay."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 6.5), layout="constrained")
    for axis, (title, some) in zip(axes.flat, points.items(), strict=True):
        places = [x for x, _ in some]
        axis.plot(places, [run.rate for _, run in some], marker="o", color="#2563eb")
        if places[0] and places[-1] / places[0] >= 100:
            axis.set_xscale("log")
        axis.set_xticks(places, [f"{place:,.0f}" for place in places])
        axis.minorticks_off()
        axis.set_title(f"mails a second by {title}", fontsize=10)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    _save(figure, folder / "growth")


def _save(figure: Any, place: Path) -> None:
    for kind in ("png", "svg"):
        figure.savefig(place.with_suffix(f".{kind}"), dpi=120)
    plt.close(figure)
