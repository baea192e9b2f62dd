"""Reports how the limits of a queue, by its arguments or a policy, affect jobs."""

import shlex
from collections.abc import Iterator
from typing import Any

from otp_stream.broker.queue_inspect import InspectedQueue
from otp_stream.broker.topology import Topology
from otp_stream.core.check_result import CheckResult, Level
from otp_stream.core.retention import Retention

from .dead_letter_policy import wanted
from .management import ManagementStatus, Policy

_DEFAULT_LIMIT = 20
"""RabbitMQ 4's `delivery-limit` for a quorum queue without one."""
_NO_LIMIT = -1
_DISCONNECTED = "consumer-disconnected-timeout"
"""How long a quorum queue of RabbitMQ 4.3 keeps the messages of a consumer whose node is down: 60 s by default."""
_HARMFUL = ("expires", "message-ttl", "max-length", "max-length-bytes", "delivery-limit")
"""Keys that a policy must not set on our own queues, because their arguments are complete."""


def queue_risks(
    name: str,
    queue: InspectedQueue,
    policy: Policy | None,
    topology: Topology,
    virtual_host: str,
    *,
    version: tuple[int, ...],
) -> Iterator[CheckResult]:
    """Yield how a producers' queue, which the worker does not change, may lose or delay jobs.

    `version` is the broker's.
    """
    limits: dict[str, Any] = {**(policy.definition if policy else {})}
    limits |= {key.removeprefix("x-"): value for key, value in queue.arguments.items()}
    yield from _type_risks(name, queue, limits)
    # without a dead-letter exchange, RabbitMQ drops what it removes
    dead_lettered = "dead-letter-exchange" in limits
    fix = "" if dead_lettered else _dead_letter_fix(name, policy, topology, virtual_host)
    end = "goes to the dead-letter exchange" if dead_lettered else "is dropped silently"
    if "message-ttl" in limits:
        text = f"{name}: a job that waits for {limits['message-ttl']} ms {end} (message-ttl)"
        yield CheckResult("warning", text, fix)
    for key in ("max-length", "max-length-bytes"):
        if key in limits and limits.get("overflow") == "reject-publish":
            yield CheckResult("note", f"{name}: beyond {limits[key]}, publishes are refused ({key}, reject-publish)")
        elif key in limits:
            yield CheckResult("warning", f"{name}: beyond {limits[key]} the oldest job {end} ({key})", fix)
    limit, source = _delivery_limit(limits, version)
    if queue.kind == "quorum" and limit != _NO_LIMIT and not dead_lettered:
        yield CheckResult("warning", f"{name}: a job that was returned {limit} times {end} ({source})", fix)


def cluster_risks(
    name: str, queue: InspectedQueue, policy: Policy | None, virtual_host: str, *, version: tuple[int, ...]
) -> Iterator[CheckResult]:
    """Yield the effects on jobs in a producers' queue while a node of the cluster is down."""
    definition: dict[str, Any] = {**(policy.definition if policy else {})}
    if queue.kind == "classic" and "ha-mode" not in definition:
        text = f"{name} is a classic queue in a cluster: while its node is down, the queue and its jobs are unavailable"
        yield CheckResult("warning", text, "make it a quorum queue: see docs/rabbitmq.md")
    is_set = _DISCONNECTED in definition or f"x-{_DISCONNECTED}" in queue.arguments
    if queue.kind == "quorum" and version >= (4, 3) and not is_set:
        text = f"{name}: if a node goes down, its jobs in flight are redelivered after 60 s, unless rabbitmq.conf sets "
        text += "consumer_disconnected_timeout"
        yield CheckResult("note", text, _policy_fix(name, policy, f'{{"{_DISCONNECTED}": 5000}}', virtual_host))


def policy_results(
    status: ManagementStatus, topology: Topology, virtual_host: str, retention: Retention
) -> Iterator[CheckResult]:
    """Yield the policies that harm the worker's own queues, or why the policies are unknown."""
    expected = wanted(retention)
    if status.error:
        text = f"policies were not checked: the management API at {status.error}"
        command = shlex.join(["rabbitmqctl", "list_policies", "-p", virtual_host])
        yield CheckResult("note", text, f"{command}: none may match {topology.prefix}.*")
        return
    harm: dict[tuple[str, tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for name in topology.arguments:
        if policy := status.policies.get(name):
            harmless = expected.items() if name == topology.dead else ()
            found = [(key, policy.definition[key]) for key in _HARMFUL if key in policy.definition]
            keys = tuple(f"{key}={value}" for key, value in found if (key, value) not in harmless)
            if keys:
                harm.setdefault((policy.name, policy.clear, keys), []).append(name)
    for (name, clear, keys), queues in harm.items():
        level: Level = "problem" if any(key.startswith("expires=") for key in keys) else "warning"
        shown = ", ".join(queues[:3]) + (f" and {len(queues) - 3} more" if len(queues) > 3 else "")
        text = f"{name} sets {', '.join(keys)} on {shown}: retries or dead letters may be lost"
        command = shlex.join(["rabbitmqctl", clear[0], "-p", virtual_host, *clear[1:]])
        fix = f"change its pattern so that it matches nothing that starts with {topology.prefix}., or run: {command}"
        yield CheckResult(level, text, fix)
    dead = status.policies.get(topology.dead)
    if expected and not (dead and dead.definition.items() >= expected.items()):
        text = f"no policy enforces the retention of {topology.dead}: workers do, while they run"
        yield CheckResult("note", text, "otp-stream topology apply")
    if not harm:
        yield CheckResult("ok", "no policy harms the worker's queues")


def _type_risks(name: str, queue: InspectedQueue, limits: dict[str, Any]) -> Iterator[CheckResult]:
    if queue.kind == "stream":
        text = f"{name} is a stream, which the worker does not consume"
        yield CheckResult("problem", text, "declare it as a classic or a quorum queue")
    if not queue.durable or queue.auto_delete:
        what = "is auto-delete" if queue.auto_delete else "is not durable"
        yield CheckResult("warning", f"{name} {what}: its jobs may be lost", "have producers declare it durable")
    if limits.get("single-active-consumer") is True:
        yield CheckResult("warning", f"{name} has x-single-active-consumer: one worker consumes, the others wait")
    if "expires" in limits:
        text = f"{name} is deleted, with its jobs, when no one has used it for {limits['expires']} ms (expires)"
        yield CheckResult("problem", text, "remove expires from the policy or from the producers' declare")


def _delivery_limit(limits: dict[str, Any], version: tuple[int, ...]) -> tuple[Any, str]:
    """Return the delivery limit of a quorum queue and its origin."""
    if "delivery-limit" in limits:
        return limits["delivery-limit"], "delivery-limit"
    return _DEFAULT_LIMIT if version >= (4,) else _NO_LIMIT, "delivery-limit: the default of RabbitMQ 4"


def _dead_letter_fix(name: str, policy: Policy | None, topology: Topology, virtual_host: str) -> str:
    """Return a fix that adds a dead-letter exchange to a producers' queue, and causes no mismatch in their declares."""
    definition = f'{{"dead-letter-exchange": "", "dead-letter-routing-key": "{topology.dead}"}}'
    return _policy_fix(name, policy, definition, virtual_host)


def _policy_fix(name: str, policy: Policy | None, definition: str, virtual_host: str) -> str:
    """Return a fix that sets a definition for a queue by a policy."""
    if policy:  # only one policy is in effect for a queue
        return f"add to {policy.name}: {definition}"
    pattern = f"^{name.replace('.', chr(92) + '.')}$"
    return shlex.join(
        ["rabbitmqctl", "set_policy", "-p", virtual_host, name, pattern, definition, "--apply-to", "queues"]
    )
