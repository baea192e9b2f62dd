"""What `otp-stream topology` shows."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from otp_stream.broker.management_api import vhost
from otp_stream.checks.prune import Ended, OldRung, Verdict
from otp_stream.checks.topology_drift import State, Survey
from otp_stream.settings import Settings

from . import say

_ENDED: dict[Verdict, str] = {
    "deleted": "deleted",
    "gone": "is gone",
    "in use": "left alone: a worker with those settings, or somebody else, has bound it or consumes from it",
    "holds": "left alone: holds {messages}, which go on within {within}; nothing new comes in. Run it again after that",
    "unseen": "left alone: RabbitMQ reported no fresh statistics in time. Wait longer with --wait. If its management "
    "API collects none (management_agent.disable_metrics_collector), check with rabbitmqctl list_queues name messages "
    "that it is empty, and delete it with rabbitmqctl delete_queue",
}
_BOUND: dict[State, str] = {"stands": "yes", "missing": "no"}


def told(found: Survey, settings: Settings, old: list[str]) -> dict[str, Any]:
    """Return a survey as JSON has it; `old` are wait queues of other settings."""
    return {
        "rabbitmq": {"url": settings.masked_rabbitmq_url, "virtualHost": vhost(settings.amqp_url)},
        "exchanges": [
            {"name": it.name, "type": it.type, "state": it.state, "problem": it.problem} for it in found.exchanges
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
            for it in found.queues
        ],
        "bindings": [
            {"source": it.source, "routingKey": it.routing_key, "destination": it.destination, "state": it.state}
            for it in found.bindings
        ],
        "old": old,
    }


def show(found: Survey, settings: Settings) -> None:
    """Print a survey."""
    out = say.out()
    out.print(
        f"{settings.masked_rabbitmq_url}, virtual host {vhost(settings.amqp_url)}\n",
        markup=False,
        soft_wrap=True,
    )
    out.print(_table(("Exchange", "Type", "State"), [(it.name, it.type, it.state) for it in found.exchanges]))
    bound = {it.destination: _BOUND.get(it.state, "?") for it in found.bindings}
    rows: list[tuple[str, ...]] = []
    for it in found.queues:
        depth = ("", "") if it.depth is None else (say.count(it.depth.messages), say.count(it.depth.consumers))
        rows.append((it.name, it.type, it.state, bound.get(it.name, ""), *depth, _way(it.arguments)))
    out.print(_table(("Queue", "Type", "State", "Bound", "Ready", "Consumers", ""), rows))


def end(found: Survey) -> None:
    """Say what is wrong and what cures it, and end with 1; do nothing where all stands."""
    lines = [problem for *_, problem in found.all if problem]
    if missing := sum(state == "missing" for _, state, _ in found.all):
        lines.append(f"{missing} missing: `otp-stream topology apply` makes them; so does a worker's start.")
    if lines:
        say.fail("\n".join(lines), 1)


def list_old(old: Sequence[OldRung], *, as_json: bool) -> None:
    """Print old wait queues."""
    if as_json:
        say.write(
            [{"queue": it.name, "waitMs": it.wait_ms, "messages": it.messages, "consumers": it.consumers} for it in old]
        )
    elif not old:
        say.out().print("No wait queue of other settings was found.")
    else:
        rows = [
            (it.name, _time(it.wait_ms), "?" if it.messages is None else say.count(it.messages), str(it.consumers))
            for it in old
        ]
        say.out().print(_table(("Wait queue of other settings", "Drains within", "Messages", "Consumers"), rows))


def tell(ended: Ended) -> None:
    """Print what became of one."""
    text = _ENDED[ended.verdict].format(messages=say.count(ended.messages), within=_time(ended.rung.wait_ms))
    say.out().print(f"{ended.rung.name}: {text}", markup=False, soft_wrap=True)


def told_end(ended: Ended) -> dict[str, Any]:
    """Return the same as JSON has it."""
    return {
        "queue": ended.rung.name,
        "verdict": ended.verdict,
        "messages": ended.messages,
        "drainsWithinMs": ended.rung.wait_ms,
    }


def _table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    made = Table(box=None, caption=" ", pad_edge=False, header_style="bold")
    for title in titles:
        made.add_column(
            title,
            justify="right" if title in {"Ready", "Consumers", "Messages", "Drains within"} else "left",
            no_wrap=bool(title),
        )
    for row in rows:
        made.add_row(*map(say.plain, row))
    return made


def _way(arguments: Mapping[str, Any]) -> str:
    """Return in words what a queue does with what is in it."""
    target = arguments.get("x-dead-letter-routing-key")
    if wait_ms := arguments.get("x-message-ttl"):
        return f"waits {_time(wait_ms)}, then {target}"
    if limit := arguments.get("x-delivery-limit"):
        return f"at most {limit} deliveries, then {target}"
    return ""


def _time(wait_ms: int) -> str:
    seconds = wait_ms / 1000
    return f"{seconds:g} s" if seconds < 120 else f"{seconds / 60:.3g} min"
