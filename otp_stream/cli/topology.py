"""`otp-stream topology`: show and declare RabbitMQ's queues and exchanges, and delete those of old settings."""

import asyncio
from dataclasses import replace
from typing import Annotated, Any

import typer
from aio_pika.abc import AbstractConnection
from aiormq.exceptions import ChannelAccessRefused

from otp_stream.broker.declares import TopologyError
from otp_stream.broker.management_api import ManagementApi, ManagementError
from otp_stream.broker.queue_inspect import apply_topology, inspect_queue
from otp_stream.broker.topology import Topology
from otp_stream.checks.management import ManagementQueries
from otp_stream.checks.prune import (
    OldWaitQueue,
    Pruner,
    PruneResult,
    find_old_tenant_queues,
    find_old_wait_queues,
    guess_old_wait_queues,
)
from otp_stream.checks.topology_drift import TopologyDrift, definitions, inspect_topology
from otp_stream.client import CONNECTION_ERRORS
from otp_stream.connection_errors import no_connection, virtual_host
from otp_stream.settings import Settings, read_tenants

from . import output, topology_output
from .amqp import connected, talk, topology_of
from .audit import Act, audited
from .output import AsJson, ManagementUrl
from .permissions import permissions
from .settings import broker_settings
from .topology_policy import apply_dead_letter_policy

cli = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", help="Queues, exchanges and users: show, create, prune."
)

_DEFAULTS = (int(Settings.model_fields["base_delay_ms"].default), int(Settings.model_fields["max_delay_ms"].default))
_EMBEDDED = "the embedded broker has no management API"
_NOT_DELETED = (
    "Nothing was deleted: without the management API it is unknown whether a wait queue is empty (AMQP does not count "
    "messages that are being handed over). Enable the API (rabbitmq-plugins enable rabbitmq_management), pass its "
    "address with --management-url, or check and delete the queues yourself:\n"
    "  rabbitmqctl list_queues name messages      must be 0, more than 5 s after the last new job arrived\n"
    "  rabbitmqctl delete_queue NAME"
)


_DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")]
_Definitions = Annotated[
    bool, typer.Option("--definitions", help="Write RabbitMQ definitions, for `rabbitmqctl import_definitions`.")
]


@cli.command()
def show(
    as_definitions: _Definitions = False,
    management_url: ManagementUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show the required exchanges, queues and bindings, and whether they exist.

    The column Ready has the number of ready messages. Bindings are known only if the management API answers.
    Exits with 1 if something is missing or has other properties, or if RabbitMQ does not answer.
    """
    settings = broker_settings()
    topology = _with_tenants(settings)
    if as_definitions:
        host = virtual_host(settings.amqp_url)
        output.write_json(definitions(topology, host, _producers_queues(settings, topology)))
        return
    drift, old, why = talk(settings, lambda connection: _inspect(settings, topology, management_url, connection))
    if as_json:
        output.write_json(topology_output.drift_json(drift, settings, [it.name for it in old]))
    else:
        topology_output.show_drift(drift, settings)
        if why:
            output.console.print(f"Bindings are not known: {why}.", style="yellow", markup=False, soft_wrap=True)
    if old:
        output.console.print(topology_output.old_queues_text(old), style="yellow")
    topology_output.exit_on_drift(drift)


@cli.command()
def apply(dry_run: _DryRun = False, management_url: ManagementUrl = None, as_json: AsJson = False) -> None:
    """Declare what is missing, as a worker's start does; existing queues and exchanges are not changed.

    With the management API, it also sets the policy that deletes dead letters by DEAD_LETTER_RETENTION and
    DEAD_LETTER_MAX, or deletes it if both are off. A policy of yours that applies to the queue is not changed.

    Exits with 1 if something exists with other properties (then nothing is declared), if RabbitMQ does not answer or
    refuses to bind the exchange for jobs, and after --dry-run if something is missing.
    """
    settings = broker_settings()
    topology = _with_tenants(settings)
    before = talk(settings, lambda connection: inspect_topology(topology, connection, None))
    wrong = [it for it in before.all if it[1] == "differs"]
    missing = [name for name, state, _ in before.all if state == "missing"]
    only_read, refused = dry_run or bool(wrong), None
    if only_read:
        policy = apply_dead_letter_policy(settings, topology, management_url, dry_run=True, as_json=as_json)
    else:
        with audited(settings, "topology.apply", ", ".join(missing)) as act:
            act.start()
            refused = talk(settings, lambda connection: _apply(settings, topology, management_url, connection))
            policy = apply_dead_letter_policy(settings, topology, management_url, dry_run=False, as_json=as_json)
            act.count, act.result = len(missing), "failed" if refused else "done"
    if as_json:
        key = "missing" if only_read else "declared"
        output.write_json({key: missing, "problems": [problem for *_, problem in wrong], "policy": policy})
    elif not wrong:
        for name in missing:
            output.results().print(f"{'missing' if dry_run else 'declared'}: {name}", markup=False, soft_wrap=True)
        if not missing and not refused:
            output.results().print("Everything exists.")
    if refused:
        output.fail(refused, 1)
    if wrong:
        output.fail("\n".join(str(problem) for *_, problem in wrong), 1)
    if dry_run and missing:
        raise typer.Exit(1)


@cli.command()
def prune(
    dry_run: _DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for queues to drain, and for statistics.")] = 60,
    base_delay_ms: Annotated[int | None, typer.Option(min=1, help="The old BASE_DELAY_MS.")] = None,
    max_delay_ms: Annotated[int | None, typer.Option(min=1, help="The old MAX_DELAY_MS.")] = None,
    management_url: ManagementUrl = None,
    as_json: AsJson = False,
) -> None:
    """Delete the wait queues of old retry settings and the queues of removed tenants when they are empty.

    Run it when every worker has the new settings. It first unbinds the queues, so that no new job arrives; jobs that
    wait there are retried when their wait ends. A queue with messages is never deleted. The management API finds old
    queues and reports when they are empty; if it does not answer, the queues of the old settings are only listed.
    Exits with 1 if old queues are left, or if you do not confirm.
    """
    settings = broker_settings()
    topology = _with_tenants(settings)
    if settings.embedded:
        if as_json:
            output.write_json([])
        else:
            output.results().print(f"Nothing to prune: {_EMBEDDED}, and its queues are lost when it stops.")
        return
    api = ManagementApi.of_broker(settings.amqp_url, management_url)
    management = ManagementQueries(api)

    async def find(connection: AbstractConnection) -> list[OldWaitQueue]:
        await api.verify(connection)
        return [
            *await find_old_wait_queues(topology, management),
            *await find_old_tenant_queues(topology, management),
        ]

    try:
        old = talk(settings, find)
    except ManagementError as error:
        _list_guesses(settings, topology, (base_delay_ms, max_delay_ms), str(error), as_json=as_json)
        return
    if dry_run or not old or not as_json:
        topology_output.list_old_wait_queues(old, as_json=as_json)
    if dry_run or not old:
        return
    with audited(settings, "topology.prune", ", ".join(it.name for it in old)) as act:
        output.confirm(f"Delete {len(old)} at {settings.masked_rabbitmq_url} once empty?", yes)
        act.start()
        results = _delete(settings, old, Pruner(topology, management), wait, act, as_json=as_json)
    if any(it.verdict not in {"deleted", "gone"} for it in results):
        raise typer.Exit(1)


cli.command()(permissions)


def _with_tenants(settings: Settings) -> Topology:
    """Return the topology with the queues of the tenants; exit with 2 if `TENANTS_FILE` cannot be used."""
    tenants, problems = read_tenants(settings)
    if problems:
        output.fail("\n".join(problems))
    return replace(topology_of(settings), tenants=tuple(tenants.listed))


async def _apply(settings: Settings, topology: Topology, url: str | None, connection: AbstractConnection) -> str | None:
    """Declare and bind. Returns the text if the user may not bind the exchange for jobs: all else is done."""
    away = await apply_topology(topology, connection, settings.amqp_url, url)
    try:
        await topology.bind_jobs(connection, away)
    except TopologyError as error:
        if not isinstance(error.__cause__, ChannelAccessRefused):
            raise
        fix = "`otp-stream topology permissions` shows the permissions that it needs"
        return f"{error}; {fix}. Producers that use the default exchange need no exchange for jobs."
    return None


def _delete(
    settings: Settings, old: list[OldWaitQueue], pruner: Pruner, wait_s: float, act: Act, *, as_json: bool
) -> list[PruneResult]:
    """Prune, and count and print each result as soon as it is known."""
    act.count = 0

    async def work(connection: AbstractConnection) -> list[PruneResult]:
        def report(result: PruneResult) -> None:
            act.count = (act.count or 0) + (result.verdict == "deleted")
            if not as_json:
                topology_output.show_prune_result(result)

        return await pruner.prune(connection, old, timeout_s=wait_s, report=report)

    with output.console.status("Queues are unbound; waiting for new statistics (5 to 15 s) and for waits to end …"):
        try:
            results = talk(settings, work)
        except ManagementError as error:
            output.fail(f"{error}; the unbound queues stay unbound and drain. Run the command again", 1)
    if as_json:
        output.write_json([topology_output.prune_result_json(it) for it in results])
    return results


def _list_guesses(
    settings: Settings, topology: Topology, old: tuple[int | None, int | None], why: str, *, as_json: bool
) -> None:
    """List the old wait queues that can be found without the management API."""
    backoff = topology.backoff
    guesses = {_DEFAULTS, (backoff.base_ms, backoff.cap_ms), (old[0] or backoff.base_ms, old[1] or backoff.cap_ms)}
    found = talk(settings, lambda connection: guess_old_wait_queues(topology, connection, guesses))
    topology_output.list_old_wait_queues(found, as_json=as_json)
    tried = ", ".join(f"{base_ms}/{cap_ms}" for base_ms, cap_ms in sorted(guesses))
    output.console.print(
        f"{why}. Searched for the queues of BASE_DELAY_MS/MAX_DELAY_MS {tried}; for others, pass --base-delay-ms and "
        "--max-delay-ms.",
        style="yellow",
        markup=False,
        soft_wrap=True,
    )
    if found:
        output.fail(_NOT_DELETED, 1)


async def _inspect(
    settings: Settings, topology: Topology, url: str | None, connection: AbstractConnection
) -> tuple[TopologyDrift, list[OldWaitQueue], str | None]:
    """Return the drift, old wait queues, and why the bindings are unknown, if they are."""
    if settings.embedded:  # the API at the default port is that of another broker
        return await inspect_topology(topology, connection, None), [], _EMBEDDED
    api = ManagementApi.of_broker(settings.amqp_url, url)
    management = ManagementQueries(api)
    try:
        await api.verify(connection)
        bound = await management.exchange_bindings(topology.retry.name, topology.jobs_exchange.name)
        old = await find_old_wait_queues(topology, management)
        old += await find_old_tenant_queues(topology, management)
    except ManagementError as error:
        return await inspect_topology(topology, connection, None), [], str(error)
    return await inspect_topology(topology, connection, bound, management), old, None


def _producers_queues(settings: Settings, topology: Topology) -> dict[str, dict[str, Any]]:
    """Return the arguments of the producers' queues that exist; none, and a warning, if RabbitMQ does not answer."""

    async def inspect(connection: AbstractConnection) -> dict[str, dict[str, Any]]:
        found = {name: await inspect_queue(connection, name, {}) for name in (topology.jobs, topology.high)}
        return {name: {"x-queue-type": it.kind, **it.arguments} for name, it in found.items() if it}

    try:
        return asyncio.run(connected(settings, inspect))
    except (TopologyError, *CONNECTION_ERRORS) as error:
        output.console.print(
            f"{settings.masked_rabbitmq_url} {no_connection(error, settings.amqp_url)}: "
            f"{topology.jobs} and {topology.high} are written as plain queues, as a worker would declare them.",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
        return {}
