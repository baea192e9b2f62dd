"""How `otp-stream topology apply` sets the policy of the dead-letter queue."""

from typing import Any

from aio_pika.abc import AbstractConnection

from otp_stream.broker.management_api import ManagementApi, ManagementError
from otp_stream.broker.topology import Topology
from otp_stream.checks.dead_letter_policy import DeadLetterPolicy, apply_policy, policy_of, read_policy
from otp_stream.connection_errors import virtual_host
from otp_stream.settings import Settings

from . import output
from .amqp import talk

_DONE = {"missing": "set", "differs": "updated"}


def apply_dead_letter_policy(
    settings: Settings, topology: Topology, url: str | None, *, dry_run: bool, as_json: bool
) -> dict[str, Any] | None:
    """Set, update or delete the policy, and print what was done, or what an operator has to do. Returns it as JSON.

    The embedded broker has no policies. Without the management API nothing is changed: workers enforce the retention
    as well.
    """
    if settings.embedded:
        return None
    result, text, problem = _applied(settings, topology, url, dry_run=dry_run)
    if not as_json:
        if text:
            output.results().print(text, markup=False, soft_wrap=True)
        if problem:
            output.console.print(output.plain(problem), style="yellow", soft_wrap=True)
    return {**result, "problem": problem or None}


def _applied(
    settings: Settings, topology: Topology, url: str | None, *, dry_run: bool
) -> tuple[dict[str, Any], str, str]:
    """Return the result as JSON, a line for people, and what an operator has to do."""
    api = ManagementApi.of_broker(settings.amqp_url, url)
    policy = policy_of(topology, settings.retention, [])

    async def work(connection: AbstractConnection) -> tuple[DeadLetterPolicy, bool]:
        await api.verify(connection)
        found = await read_policy(api, topology, settings.retention)
        return found, not dry_run and await apply_policy(api, found)

    try:
        policy, changed = talk(settings, work)
    except ManagementError as error:
        result = {"name": policy.name, "definition": dict(policy.definition), "state": "unknown"}
        if not policy.definition:
            return result, "", ""
        command = policy.command(virtual_host(settings.amqp_url))
        verb = "compared" if dry_run else "set"
        return result, "", f"the policy {policy.name} was not {verb}: {error}. To set it, run: {command}"
    done = _DONE.get(policy.state, policy.state) if policy.definition else "deleted"
    result = {"name": policy.name, "definition": dict(policy.definition), "state": done if changed else policy.state}
    if policy.state == "other":
        return result, "", policy.advice
    limits = ", ".join(f"{name}={value}" for name, value in policy.definition.items())
    about = f"policy {policy.name}{f' ({limits})' if limits else ''}"
    if changed:
        return result, f"{done}: {about}", ""
    return result, f"{policy.state}: {about}" if policy.state in _DONE else "", ""
