"""What limits of a queue, by its arguments or by a policy, do to jobs."""

import shlex
from collections.abc import Iterator
from typing import Any

from otp_stream.broker.management_api import Policy, Seen
from otp_stream.broker.queue_inspect import Standing
from otp_stream.broker.topology import Topology
from otp_stream.core.check_result import Finding, Level

_DEFAULT_LIMIT = 20
"""Returns of a message of a quorum queue that has no `delivery-limit`, on RabbitMQ 4."""
_NO_LIMIT = -1
_DISCONNECTED = "consumer-disconnected-timeout"
"""How long a quorum queue of RabbitMQ 4.3 keeps the messages of a consumer whose node is gone: 60 s unless set."""
_HARMFUL = ("expires", "message-ttl", "max-length", "max-length-bytes", "delivery-limit")
"""What a policy must not set on our own queues: their arguments are all that they need."""


def risks(
    name: str, queue: Standing, policy: Policy | None, topology: Topology, vhost: str, *, version: tuple[int, ...]
) -> Iterator[Finding]:
    """Return what may happen to jobs in a producers' queue, which the worker takes as it stands.

    `version` is the broker's.
    """
    given: dict[str, Any] = {**(policy.definition if policy else {})}
    given |= {key.removeprefix("x-"): value for key, value in queue.arguments.items()}
    if queue.kind == "stream":
        yield Finding("problem", f"{name} is a stream, which is not consumed", "make it a classic or a quorum queue")
    if not queue.durable or queue.auto_delete:
        what = "deletes itself" if queue.auto_delete else "is not durable"
        yield Finding("warning", f"{name} {what}: its jobs may be lost", "have producers declare it durable")
    if given.get("single-active-consumer") is True:
        yield Finding("warning", f"{name} has x-single-active-consumer: one worker works, the others stand by")
    if "expires" in given:
        text = f"{name} is deleted, with its jobs, when nobody has used it for {given['expires']} ms (expires)"
        yield Finding("problem", text, "take expires out of the policy or the producers' declare")
    # a letter that has nowhere to go is dropped
    caught = "dead-letter-exchange" in given
    cure = "" if caught else _catching(name, policy, topology, vhost)
    end = "goes to the dead-letter exchange" if caught else "is dropped silently"
    if "message-ttl" in given:
        yield Finding("warning", f"{name}: a job that waits for {given['message-ttl']} ms {end} (message-ttl)", cure)
    for key in ("max-length", "max-length-bytes"):
        if key in given and given.get("overflow") == "reject-publish":
            yield Finding("note", f"{name}: producers are refused beyond {given[key]} ({key}, reject-publish)")
        elif key in given:
            yield Finding("warning", f"{name}: beyond {given[key]} the oldest job {end} ({key})", cure)
    limit, where = _delivery_limit(given, version)
    if queue.kind == "quorum" and limit != _NO_LIMIT and not caught:
        yield Finding("warning", f"{name}: a job that was returned {limit} times {end} ({where})", cure)


def cluster_risks(
    name: str, queue: Standing, policy: Policy | None, vhost: str, *, version: tuple[int, ...]
) -> Iterator[Finding]:
    """Return what happens to jobs in a producers' queue while a node of the cluster is down."""
    given: dict[str, Any] = {**(policy.definition if policy else {})}
    if queue.kind == "classic" and "ha-mode" not in given:
        text = f"{name} is a classic queue in a cluster: while its node is down, the queue and its jobs are unavailable"
        yield Finding("warning", text, "make it a quorum queue: see docs/rabbitmq.md")
    is_set = _DISCONNECTED in given or f"x-{_DISCONNECTED}" in queue.arguments
    if queue.kind == "quorum" and version >= (4, 3) and not is_set:
        text = f"{name}: if a node goes down, its jobs in flight are redelivered after 60 s, unless rabbitmq.conf sets "
        text += "consumer_disconnected_timeout"
        yield Finding("note", text, _set(name, policy, f'{{"{_DISCONNECTED}": 5000}}', vhost))


def _delivery_limit(given: dict[str, Any], version: tuple[int, ...]) -> tuple[Any, str]:
    """Return a quorum queue's limit, and where it comes from."""
    if "delivery-limit" in given:
        return given["delivery-limit"], "delivery-limit"
    return _DEFAULT_LIMIT if version >= (4,) else _NO_LIMIT, "delivery-limit: the default of RabbitMQ 4"


def findings(seen: Seen, topology: Topology, vhost: str) -> Iterator[Finding]:
    """Return which policies stand in the way of our own queues, or that nobody could tell."""
    if seen.error:
        text = f"policies were not looked at: the management API at {seen.error}"
        command = shlex.join(["rabbitmqctl", "list_policies", "-p", vhost])
        yield Finding("note", text, f"{command}: none may match {topology.prefix}.*")
        return
    harm: dict[tuple[str, tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for name in topology.arguments:
        if policy := seen.policies.get(name):
            keys = tuple(f"{key}={policy.definition[key]}" for key in _HARMFUL if key in policy.definition)
            if keys:
                harm.setdefault((policy.name, policy.clear, keys), []).append(name)
    for (name, clear, keys), queues in harm.items():
        level: Level = "problem" if any(key.startswith("expires=") for key in keys) else "warning"
        shown = ", ".join(queues[:3]) + (f" and {len(queues) - 3} more" if len(queues) > 3 else "")
        text = f"{name} sets {', '.join(keys)} on {shown}: retries or dead letters may be lost"
        command = shlex.join(["rabbitmqctl", clear[0], "-p", vhost, *clear[1:]])
        yield Finding(level, text, f"let its pattern match nothing that starts with {topology.prefix}., or: {command}")
    if not harm:
        yield Finding("ok", "no policy stands in the way of the worker's queues")


def _catching(name: str, policy: Policy | None, topology: Topology, vhost: str) -> str:
    """Return what gives a producers' queue a dead letter exchange without upsetting producers."""
    definition = f'{{"dead-letter-exchange": "", "dead-letter-routing-key": "{topology.dead}"}}'
    return _set(name, policy, definition, vhost)


def _set(name: str, policy: Policy | None, definition: str, vhost: str) -> str:
    """Return how a queue gets this definition by a policy."""
    if policy:  # of several, one alone would hold
        return f"add to {policy.name}: {definition}"
    pattern = f"^{name.replace('.', chr(92) + '.')}$"
    return shlex.join(["rabbitmqctl", "set_policy", "-p", vhost, name, pattern, definition, "--apply-to", "queues"])
