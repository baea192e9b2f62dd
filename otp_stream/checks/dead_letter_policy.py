"""The policy by which RabbitMQ enforces the retention: unlike a queue's arguments, it can change."""

import asyncio
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from otp_stream.broker.management_api import ManagementApi, readable
from otp_stream.broker.topology import Topology
from otp_stream.core.retention import Retention

from .policy_patterns import matched_names

State = Literal["exists", "missing", "differs", "not needed", "other"]
"""`differs`: it has another definition, or is not needed any more. `other`: another policy applies to the queue."""
_QUEUES = {"all", "queues", "quorum_queues"}


@dataclass(frozen=True, slots=True)
class DeadLetterPolicy:
    """Our policy, and its state at the broker."""

    name: str
    pattern: str
    definition: Mapping[str, Any]
    """Empty if the retention has no limits."""
    state: State
    other: str = ""
    """The name of the policy that applies instead. Only one policy applies to a queue."""

    @property
    def advice(self) -> str:
        """What an operator has to do about another policy."""
        definition = json.dumps(self.definition)
        return f"the policy {self.other} applies to the dead-letter queue, and only one can: add {definition} to it"

    def command(self, virtual_host: str) -> str:
        """Return the command that has the same effect as `apply_policy`."""
        if not self.definition:
            return shlex.join(["rabbitmqctl", "clear_policy", "-p", virtual_host, self.name])
        definition = json.dumps(self.definition)
        words = ["rabbitmqctl", "set_policy", "-p", virtual_host, self.name, self.pattern, definition]
        return shlex.join([*words, "--apply-to", "queues"])


def policy_of(topology: Topology, retention: Retention, policies: Iterable[Mapping[str, Any]]) -> DeadLetterPolicy:
    """Return our policy and its state, by the policies whose pattern matches the dead-letter queue, and our own."""
    name, definition = topology.dead, wanted(retention)
    pattern = f"^{re.escape(name)}$"
    own, others = None, list[Mapping[str, Any]]()
    for it in policies:
        if it["name"] == name:
            own = it
        elif it["apply-to"] in _QUEUES:
            others.append(it)
    strongest = max(others, key=_priority, default=None)
    if definition and strongest is not None and _priority(strongest) >= (_priority(own) if own else 0):
        has_all = strongest["definition"].items() >= definition.items()
        return DeadLetterPolicy(name, pattern, definition, "exists" if has_all else "other", strongest["name"])
    if own is None:
        return DeadLetterPolicy(name, pattern, definition, "missing" if definition else "not needed")
    same = dict(own["definition"]) == definition and own["pattern"] == pattern
    return DeadLetterPolicy(name, pattern, definition, "exists" if same else "differs")


def _priority(policy: Mapping[str, Any]) -> int:
    return policy.get("priority", 0)


def wanted(retention: Retention) -> dict[str, Any]:
    """Return the definition of the policy."""
    definition: dict[str, Any] = {}
    if retention.keep_ms is not None:
        definition["message-ttl"] = retention.keep_ms
    if retention.limit is not None:
        definition |= {"max-length": retention.limit, "overflow": "drop-head"}
    return definition


async def read_policy(api: ManagementApi, topology: Topology, retention: Retention) -> DeadLetterPolicy:
    """Read the policy from the API. Raises `ManagementError`."""
    policies: list[Mapping[str, Any]] = await api.fetch("policies/{virtual_host}")
    with readable(api):
        patterns = {it["pattern"] for it in policies if it["name"] != topology.dead and it["apply-to"] in _QUEUES}
        matched = await asyncio.to_thread(matched_names, patterns, [topology.dead])
        found = [it for it in policies if it["name"] == topology.dead or matched.get(it["pattern"])]
        return policy_of(topology, retention, found)


async def apply_policy(api: ManagementApi, policy: DeadLetterPolicy) -> bool:
    """Set, update or delete our policy. Returns whether anything was changed. Raises `ManagementError`."""
    if policy.state not in {"missing", "differs"}:
        return False
    path = f"policies/{{virtual_host}}/{quote(policy.name, safe='')}"
    content = {"pattern": policy.pattern, "definition": policy.definition, "apply-to": "queues", "priority": 0}
    if policy.definition:
        await asyncio.to_thread(api.put, path, content)
    else:
        await asyncio.to_thread(api.delete, path)
    return True
