"""The output of `otp-stream topology`."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from otp_stream.checks.prune import OldWaitQueue, PruneResult, Verdict
from otp_stream.checks.topology_drift import State, TopologyDrift
from otp_stream.connection_errors import virtual_host
from otp_stream.settings import Settings

from . import output

_VERDICTS: dict[Verdict, str] = {
    "deleted": "deleted",
    "gone": "already deleted by someone else",
    "in use": "kept: a worker with the old settings, or another application, has bound it or consumes from it",
    "not empty": "kept: its {messages} messages move on within {within}, and no new ones arrive. Then run prune again",
    "has jobs": "kept: it has {messages} jobs, and no worker has this tenant. Within five minutes they move on to "
    "the queue that all workers consume. Then run prune again",
    "unknown": "kept: RabbitMQ reported no new statistics in time. Wait longer with --wait. If its management "
    "API collects none (management_agent.disable_metrics_collector), check with rabbitmqctl list_queues name messages "
    "that it is empty, and delete it with rabbitmqctl delete_queue",
}
_BOUND: dict[State, str] = {"exists": "yes", "missing": "no"}


def drift_json(drift: TopologyDrift, settings: Settings, old: list[str]) -> dict[str, Any]:
    """Return the JSON of `topology show`; `old` are queues of other settings."""
    return {
        "rabbitmq": {"url": settings.masked_rabbitmq_url, "virtualHost": virtual_host(settings.amqp_url)},
        "exchanges": [
            {"name": it.name, "type": it.type, "state": it.state, "problem": it.problem} for it in drift.exchanges
        ],
        "queues": [
            {
                "name": it.name,
                "type": it.type,
                "arguments": it.arguments,
                "state": it.state,
                "ready": it.depth and it.depth.messages,
                "consumers": it.depth and it.depth.consumers,
                "problem": it.problem,
            }
            for it in drift.queues
        ],
        "bindings": [
            {"source": it.source, "routingKey": it.routing_key, "destination": it.destination, "state": it.state}
            for it in drift.bindings
        ],
        "old": old,
    }


def show_drift(drift: TopologyDrift, settings: Settings) -> None:
    """Print the tables of `topology show`."""
    out = output.results()
    out.print(
        f"{settings.masked_rabbitmq_url}, virtual host {virtual_host(settings.amqp_url)}\n",
        markup=False,
        soft_wrap=True,
    )
    out.print(_table(("Exchange", "Type", "State"), [(it.name, it.type, it.state) for it in drift.exchanges]))
    bound = {it.destination: _BOUND.get(it.state, "?") for it in drift.bindings}
    rows: list[tuple[str, ...]] = []
    for it in drift.queues:
        depth = ("", "") if it.depth is None else (output.count(it.depth.messages), output.count(it.depth.consumers))
        rows.append((it.name, it.type, it.state, bound.get(it.name, ""), *depth, _path(it.arguments)))
    out.print(_table(("Queue", "Type", "State", "Bound", "Ready", "Consumers", ""), rows))


def exit_on_drift(drift: TopologyDrift) -> None:
    """Print the problems with their fixes and exit with 1; return if there are none."""
    lines = [problem for *_, problem in drift.all if problem]
    if missing := sum(state == "missing" for _, state, _ in drift.all):
        lines.append(f"{missing} missing: `otp-stream topology apply` declares them; so does a worker's start.")
    if lines:
        output.fail("\n".join(lines), 1)


def old_queues_text(old: Sequence[OldWaitQueue]) -> str:
    """Return how many queues of other settings exist."""
    waits = sum(it.wait_ms > 0 for it in old)
    texts = [f"{waits} wait queues of other settings"] if waits else []
    texts += [f"{len(old) - waits} queues of removed tenants"] if len(old) > waits else []
    return f"{' and '.join(texts)} exist too: otp-stream topology prune"


def list_old_wait_queues(old: Sequence[OldWaitQueue], *, as_json: bool) -> None:
    """Print a table of the queues, or their JSON."""
    if as_json:
        output.write_json(
            [{"queue": it.name, "waitMs": it.wait_ms, "messages": it.messages, "consumers": it.consumers} for it in old]
        )
    elif not old:
        output.results().print("No wait queue of other settings was found.")
    else:
        rows = [
            (
                it.name,
                _time(it.wait_ms) if it.wait_ms else "",
                "?" if it.messages is None else output.count(it.messages),
                str(it.consumers),
            )
            for it in old
        ]
        output.results().print(_table(("Queue of other settings", "Drains within", "Messages", "Consumers"), rows))


def show_prune_result(result: PruneResult) -> None:
    """Print one line of `topology prune`."""
    queue = result.queue
    text = _VERDICTS[result.verdict].format(messages=output.count(result.messages), within=_time(queue.wait_ms))
    output.results().print(f"{queue.name}: {text}", markup=False, soft_wrap=True)


def prune_result_json(result: PruneResult) -> dict[str, Any]:
    """Return the JSON of one result of `topology prune`."""
    return {
        "queue": result.queue.name,
        "verdict": result.verdict,
        "messages": result.messages,
        "drainsWithinMs": result.queue.wait_ms,
    }


def _table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(box=None, caption=" ", pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(
            title,
            justify="right" if title in {"Ready", "Consumers", "Messages", "Drains within"} else "left",
            no_wrap=bool(title),
        )
    for row in rows:
        table.add_row(*map(output.plain, row))
    return table


def _path(arguments: Mapping[str, Any]) -> str:
    """Return what happens to the messages of a queue."""
    target = arguments.get("x-dead-letter-routing-key")
    if wait_ms := arguments.get("x-message-ttl"):
        return f"waits {_time(wait_ms)}, then {target}"
    if limit := arguments.get("x-delivery-limit"):
        return f"at most {limit} deliveries, then {target}"
    return ""


def _time(wait_ms: int) -> str:
    seconds = wait_ms / 1000
    return f"{seconds:g} s" if seconds < 120 else f"{seconds / 60:.3g} min"
